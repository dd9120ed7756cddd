"""3-D wavelet diffusion that paints healthy tissue into a masked region of a brain MRI.

Friedrich et al., "WDM: 3D Wavelet Diffusion Models for High-Resolution Medical Image Synthesis"
(2024), in the inpainting setting of the BraTS Local-Synthesis challenge.
"""
