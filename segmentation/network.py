"""Builds a network by its name."""

from __future__ import annotations

from segmentation.config import Config
from segmentation.networks.segmenter import Segmenter


def build(config: Config) -> Segmenter:
    """Build the network of a configuration, with fresh weights."""
    if config.network.startswith("mednext_"):
        from segmentation.networks.mednext import MedNeXt

        return MedNeXt(config)
    from segmentation.networks.peers import Peer  # imports MONAI, which takes seconds

    return Peer(config)
