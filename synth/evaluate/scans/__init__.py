"""The judge of generated scans: their realism, their tumours, and whether they are copies."""
