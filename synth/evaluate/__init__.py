"""Judges of results: inpainting, masks, scans, segmentation, comparisons."""
