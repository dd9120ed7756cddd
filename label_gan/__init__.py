"""A 3-D GAN that draws tumour labels and masks of healthy tissue, and places them in brains."""
