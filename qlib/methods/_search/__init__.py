"""What the methods that search for scales, ranges or codes are made of."""
