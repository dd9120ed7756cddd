"""Synthetic brain-tumour MRI: masks, healthy tissue, scans, and whether they help."""

__version__ = "0.1.0"
