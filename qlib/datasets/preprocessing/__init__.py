"""From images to the tensors that a network expects."""
