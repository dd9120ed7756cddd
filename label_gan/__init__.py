"""A 3-D GAN that draws tumour labels and healthy masks, and places them in brains.

    from label_gan import draw, load

    for shape, facts in draw(load("weights/label_gan"), 10, seed=0, volume_ml=(5, 60)):
        print(shape.volume_ml(), shape.labels.shape, facts)

Kwon et al., "Generation of 3D Brain MRI Using Auto-Encoding Generative Adversarial Networks"
(2019), and Ferreira et al. (BraTS 2023 and 2024), whose alpha-GAN is a preset here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from label_gan.generate import draw, load
    from label_gan.shape import Shape

__all__ = ["Shape", "draw", "load"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562): configurations need no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "label_gan.shape" if name == "Shape" else "label_gan.generate"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    """Return the public names, imported yet or not."""
    return list(__all__)
