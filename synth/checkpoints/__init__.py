"""Weights on disk: our checkpoint folders, their compression, other projects' files."""
