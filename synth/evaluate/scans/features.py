"""What is kept of each case: features of random convolutions or of a segmenter, named numbers.

Random convolutions with pooled statistics tell textures apart nearly as well as trained ones
(Ustyuzhaninov et al., "What does it take to generate natural textures?", 2017), and unlike a
network that was trained on photographs they see all four contrasts and three dimensions. A trained
segmenter says whether the tumour is where the labels are; the maps of its bottleneck are features
that know tumours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from synth.base import families
from synth.base.errors import SynthError
from synth.base.seeding import generator
from synth.checkpoints import checkpoint
from synth.data.case import MODALITIES, Case
from synth.data.labels import regions_of
from synth.data.volume import Volume
from synth.evaluate.scans.scan_case import (
    LEVELS,
    TUMOUR,
    Scans,
    band_energies,
    region_statistics,
    texture_columns,
)
from synth.metrics.overlap import dice

WIDTH = 32
SCALES = 3
SEED = 0
QUARTILES = (25, 50, 75)
RANGE = (-3.0, 5.0)
FAMILY = "segmentation"
REGIONS = ("WT", "TC", "ET")
AIR = -1.0  # what its preparation makes of empty space
THUMBNAIL_SIDE = 96
DICE = ("seg_dice", "seg_dice_WT", "seg_dice_TC", "seg_dice_ET")
_SAMPLE = re.compile(r"-synth\d+$")
CELL_MM = 8.0
SIDE = 25
"""Cells along a side, 200 mm: a whole head. Odd, so that it mirrors onto itself."""
FULL = 0.5
"""Share of a cell that must be healthy brain."""
FEWEST_CELLS = 20


class RandomConvolutions:
    """Two random layers at three scales; mean and standard deviation of each map in the brain.

    Half of the first filters have no sum: they see edges and texture, not grey values.
    """

    name = f"random convolutions, seed {SEED}"

    def __init__(self, seed: int = SEED) -> None:
        draw = generator("random convolutions", seed)
        first = torch.randn(SCALES, WIDTH, len(MODALITIES), 3, 3, 3, generator=draw)
        half = first[:, ::2]
        half -= half.mean(dim=(2, 3, 4, 5), keepdim=True)
        second = torch.randn(SCALES, WIDTH, WIDTH, 3, 3, 3, generator=draw)
        self.layers = [
            tuple(w / w[0].numel() ** 0.5 for w in pair) for pair in zip(first, second, strict=True)
        ]

    @torch.no_grad()
    def __call__(self, scans: Scans) -> np.ndarray:  # (3 scales · 2 layers · 2 · 32,)
        """Describe a case."""
        image = torch.from_numpy(standardised(scans.image, scans.brain))[None]
        brain = torch.from_numpy(scans.brain)[None, None].float()
        numbers = []
        for first, second in self.layers:
            maps = F.relu(F.conv3d(image, first, padding=1))
            numbers.append(pooled(maps, brain))
            maps = F.relu(F.conv3d(maps, second, stride=2, padding=1))
            share = F.avg_pool3d(brain, 2)
            numbers.append(pooled(maps, share))
            # Tissue is averaged with tissue, never with the background.
            image = F.avg_pool3d(image * brain, 2) / share.clamp(min=1e-6)
            brain = share
        return torch.cat(numbers).numpy().astype(np.float64)


def standardised(image: np.ndarray, brain: np.ndarray) -> np.ndarray:  # (C, X, Y, Z), (X, Y, Z)
    """Return (x - median) / interquartile range of each contrast in the brain, 0 outside.

    Neither end of the scale hangs on the tumour, whose size would otherwise move every feature.
    """
    result = np.zeros(image.shape, np.float32)
    for channel, out in zip(image, result, strict=True):
        low, middle, high = np.percentile(channel[brain], QUARTILES)
        out[brain] = np.clip((channel[brain] - middle) / max(high - low, 1e-6), *RANGE)
    return result


def pooled(maps: Tensor, weight: Tensor) -> Tensor:  # (1, C, X, Y, Z), (1, 1, X, Y, Z) → (2 C,)
    """Weighted mean and standard deviation of every map over space."""
    share = weight / weight.sum().clamp(min=1e-6)
    mean = (maps * share).sum(dim=(0, 2, 3, 4))
    spread = ((maps - mean.view(1, -1, 1, 1, 1)).square() * share).sum(dim=(0, 2, 3, 4))
    return torch.cat((mean, spread.clamp(min=0).sqrt()))


class TumourSegmenter:
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
                "the segmenter has no convolutional bottleneck", hint="use a convolutional one"
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Code:
    """A brain in 8 mm cells, without its tumour, which the label map decides."""

    values: np.ndarray  # (4, 25³), standardised over the cells that are there, else 0
    there: np.ndarray  # (25³,) bool


def code_of(scans: Scans) -> Code:
    """Average a brain over cells about the middle of its box."""
    edge = CELL_MM / scans.spacing_mm
    places = np.argwhere(scans.healthy)
    box = np.argwhere(scans.brain)
    middle = (box.min(axis=0) + box.max(axis=0)) / 2
    cells = _cell(places, middle, edge)
    kept = ((cells >= 0) & (cells < SIDE)).all(axis=1)
    index = np.ravel_multi_index(tuple(cells[kept].T), (SIDE,) * 3)
    count = np.bincount(index, minlength=SIDE**3)
    room = [  # voxels of each cell along an axis, brain or not
        np.bincount(c[(c >= 0) & (c < SIDE)], minlength=SIDE)
        for n, m in zip(scans.brain.shape, middle, strict=True)
        for c in [_cell(np.arange(n), m, edge)]
    ]
    there = (count > 0) & (count >= FULL * np.einsum("i,j,k->ijk", *room).ravel())
    found = scans.image[:, *places[kept].T].astype(np.float64)
    sums = np.stack([np.bincount(index, weights=c, minlength=SIDE**3) for c in found])
    values = sums / np.maximum(count, 1)
    inside = values[:, there]
    if there.sum() < FEWEST_CELLS:
        raise SynthError(
            f"{scans.case.id}: a brain of {there.sum()} cells of {CELL_MM:g} mm",
            hint="is the voxel size in the header in millimetres?",
        )
    mean, sd = inside.mean(axis=1, keepdims=True), inside.std(axis=1, keepdims=True)
    return Code(values=np.where(there, (values - mean) / np.maximum(sd, 1e-9), 0), there=there)


def _cell(
    places: np.ndarray, middle: np.ndarray | float, edge: float
) -> np.ndarray:  # voxels → the cells they are in
    return np.floor((places - middle) / edge + SIDE / 2).astype(int)


@dataclass(frozen=True, kw_only=True, eq=False)
class Description:
    """What is kept of a case."""

    case: Case
    features: np.ndarray
    code: Code
    energies: np.ndarray
    """(4, levels, 7)."""
    looks: Mapping[str, Mapping[str, float]]
    """What the two-sample test sees, of the case ("") and of its spoiled copies."""
    row: dict[str, float]
    """Numbers of this case alone: regions, texture, Dice, brightness in the file's unit."""
    thumbnail: np.ndarray | None = field(default=None, repr=False)
    """(4, x, y, z) float16, for MS-SSIM."""

    @property
    def label_map(self) -> str:
        """The id of the label map that scans were drawn for."""
        return _SAMPLE.sub("", self.case.id)


def describe(
    scans: Scans,
    features: Callable[[Scans], np.ndarray],
    segmenter: TumourSegmenter | None = None,
    *,
    looks: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    thumbnail: bool = False,
) -> Description:
    """Measure a case; `segmenter` compares its own answer with the labels."""
    energies = band_energies(scans)
    row = region_statistics(scans) | texture_columns(energies)
    row |= {
        f"level_{m}": math.log10(max(level, 1e-12))
        for m, level in zip(MODALITIES, scans.levels, strict=True)
    }
    if segmenter is not None:
        known = scans.classes is not None
        row |= segmenter.dice(scans.case) if known else {"seg_dice": math.nan}
    return Description(
        case=scans.case,
        features=features(scans),
        code=code_of(scans),
        energies=energies,
        looks=looks,
        row=row,
        thumbnail=_thumbnail(scans.image) if thumbnail else None,
    )


def column_names(*, segmenter: bool, training: bool) -> list[str]:
    """Return the numbers that an evaluation has of each made case."""
    nothing = np.full((len(MODALITIES), LEVELS, 1), np.nan)
    names = [f"{r}_{m}_{kind}" for m in MODALITIES for r in ("brain", *TUMOUR)
             for kind in ("mean", "sd")]  # fmt: skip
    names += [*texture_columns(nothing), *(f"level_{m}" for m in MODALITIES)]
    names += DICE if segmenter else ()
    names += ["signs", "z_intensity", "z_texture"]
    return names + (["nearest_distance", "copied"] if training else [])


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Average whole blocks until no side is longer than 96."""
    block = -(-max(image.shape[1:]) // THUMBNAIL_SIDE)
    x, y, z = (n // block * block for n in image.shape[1:])
    cells = image[:, :x, :y, :z].reshape(
        len(image), x // block, block, y // block, block, z // block, block
    )
    return cells.mean(axis=(2, 4, 6)).astype(np.float16)
