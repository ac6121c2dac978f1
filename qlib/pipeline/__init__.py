"""The only place where network, images and method meet: from a specification to a record."""
