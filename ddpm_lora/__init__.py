"""Diffusion from a label map to t1n, t1c, t2w and t2f, adapted to a new site by LoRA."""
