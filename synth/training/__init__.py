"""One training loop for all families, and its parts."""
