"""Segmentation networks and the comparison that says whether synthetic data help."""
