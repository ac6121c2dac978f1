"""What the methods that learn by gradient descent are made of."""
