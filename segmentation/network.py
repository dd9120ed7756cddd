"""Networks by name, all behind one face: `segmenter.Segmenter`."""

from __future__ import annotations

from segmentation.config import Config
from segmentation.segmenter import Segmenter


def build(config: Config) -> Segmenter:
    """Build the network of a configuration, with fresh weights."""
    if config.network.startswith("mednext_"):
        from segmentation.mednext import MedNeXt

        return MedNeXt(config)
    from segmentation.peers import Peer  # imports MONAI, which takes seconds

    return Peer(config)
