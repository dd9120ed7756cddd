"""A 3-D GAN that draws tumour labels and healthy masks, and places them in brains.

    from label_gan import draw, load

    for shape, facts in draw(load("weights/label_gan"), 10, seed=0, volume_ml=(5, 60)):
        print(shape.volume_ml(), shape.labels.shape, facts)

Kwon et al., "Generation of 3D Brain MRI Using Auto-Encoding Generative Adversarial Networks"
(2019), and Ferreira et al. (BraTS 2023 and 2024), whose alpha-GAN is a preset here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synth.base.public_names import export

if TYPE_CHECKING:
    from label_gan.generate import draw, load
    from label_gan.shape import Shape

__all__ = ["Shape", "draw", "load"]

__getattr__, __dir__ = export(
    __name__,
    {
        "Shape": "label_gan.shape",
        **dict.fromkeys(("draw", "load"), "label_gan.generate"),
    },
)
