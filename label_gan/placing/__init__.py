"""New lesions in real brains: their source, their place, their mass effect."""
