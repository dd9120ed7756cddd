"""Segmentation networks behind one interface: MedNeXt, and those of MONAI."""
