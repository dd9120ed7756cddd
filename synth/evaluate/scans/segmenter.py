"""A trained segmenter as a judge: is the tumour where the labels say?

It also describes scans, by the maps of its bottleneck: features that know tumours.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from synth.base import families
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.data.case import MODALITIES, Case
from synth.data.volume import Volume
from synth.evaluate.scans.random_features import pooled
from synth.evaluate.scans.scan_case import Scans, regions_of
from synth.metrics.overlap import dice

FAMILY = "segmentation"
REGIONS = ("WT", "TC", "ET")
AIR = -1.0  # what its preparation makes of empty space


class Segmenter:
    """A segmentation checkpoint, trained on real cases that are judged by neither side."""

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.loaded = checkpoint.load(path, device=device)
        if self.loaded.family != FAMILY:
            raise SynthError(
                f"{path} is a {self.loaded.family} checkpoint", hint=f"one of {FAMILY} judges"
            )
        family = families.get(FAMILY)
        assert family.predict is not None
        assert family.prepare is not None
        self.predict, self.prepare = family.predict.load(), family.prepare.load()
        self.device = device
        self.name = f"bottleneck of {self.loaded.path}"
        self.bottleneck = bottleneck_of(self.loaded.model)

    def regions(self, case: Case) -> np.ndarray:  # (3, X, Y, Z) bool, on the file's grid
        """Segment the four scans of a case."""
        image, frame = self._prepared(case)
        found = self.predict(self.loaded.model, image, self.loaded.config, device=self.device)
        return frame.back(found.cpu().numpy(), fill=0) > 0.5

    def dice(self, case: Case) -> dict[str, float]:
        """Return the Dice of WT, TC and ET against the case's labels, and their mean.

        A region that labels and segmenter both leave empty counts as 1: a healthy brain can pass.
        """
        labels = case.load("seg")
        wanted = regions_of(labels.data[0], case.scheme)
        pairs = zip(REGIONS, self.regions(case), wanted, strict=True)
        found = {f"seg_dice_{name}": dice(a, b, both_empty="perfect") for name, a, b in pairs}
        return {"seg_dice": float(np.mean(list(found.values())))} | found

    @torch.no_grad()
    def __call__(self, scans: Scans) -> np.ndarray:  # (2 · channels,)
        """Describe a case by mean and standard deviation of the bottleneck's maps in the brain."""
        image, _ = self._prepared(scans.case)
        inside = (image > AIR).any(dim=0, keepdim=True).float()
        divisor: int = self.loaded.model.min_divisor  # ty: ignore[invalid-assignment]
        pads = [n for edge in reversed(image.shape[1:]) for n in (0, -edge % divisor)]
        kept: list[Any] = []
        hook = self.bottleneck.register_forward_hook(lambda *call: kept.append(call[-1]))
        try:
            self.loaded.model(F.pad(image, pads, value=AIR)[None].to(self.device))
        finally:
            hook.remove()
        maps = kept[0]
        if not (isinstance(maps, Tensor) and maps.ndim == 5):
            raise SynthError(
                "the segmenter's bottleneck has no maps", hint="use a convolutional one"
            )
        share = F.adaptive_avg_pool3d(F.pad(inside, pads)[None], maps.shape[2:]).to(maps.device)
        return pooled(maps.float(), share).cpu().numpy().astype(np.float64)

    def _prepared(self, case: Case) -> tuple[Tensor, Any]:
        volumes = [Volume.load(case.path(m)) for m in MODALITIES]
        return self.prepare(volumes, self.loaded.config)


def bottleneck_of(model: nn.Module) -> nn.Module:
    """Return the smallest module that holds all parameters of the bottleneck, and nothing else."""
    parts: dict[str, list[str]] = model.parts()  # ty: ignore[not-callable]
    own = set(parts["bottleneck"])
    levels = zip(*(name.split(".")[:-1] for name in sorted(own)), strict=False)
    shared = takewhile(lambda words: len(set(words)) == 1, levels)
    prefix = ".".join(words[0] for words in shared)
    module = model.get_submodule(prefix)
    if {f"{prefix}.{name}" for name, _ in module.named_parameters()} != own:
        raise SynthError("the segmenter's bottleneck is not one module", hint="use a MedNeXt")
    return module
