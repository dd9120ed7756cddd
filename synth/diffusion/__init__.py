"""Gaussian diffusion: noise schedules, samplers, the wavelet transform, the U-Net."""
