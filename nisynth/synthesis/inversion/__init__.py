"""What inversion methods share: the loop, its losses, jitter, and which iterate becomes the result."""
