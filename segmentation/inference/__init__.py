"""Segmenting whole scans: several networks, their mean, labels, files."""
