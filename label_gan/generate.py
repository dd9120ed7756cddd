"""Draws tumour labels from noise.

    loaded = load("weights/label_gan")
    for shape, facts in draw(loaded, 10, seed=0, volume_ml=(5, 60)):
        ...

Sample k depends on (seed, k) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from label_gan import lesion_size
from label_gan.config import Config
from label_gan.distance_maps import from_output, read_labels
from label_gan.shape import Shape
from synth.base.errors import SynthError
from synth.base.seeding import generator
from synth.checkpoints import checkpoint
from synth.data.labels import ED, NONE

TRIES = 64
SMALLEST_SHARE = 0.02
"""Pieces of a drawing below this share of its volume are dropped, as below SMALLEST_VOXELS."""
SMALLEST_VOXELS = 8
LEAST_FILLED = 0.2
"""A lesion fills at least this share of the voxels meant for it; a smaller one is not blown up."""

Facts = dict[str, float | int]


def load(path: str | Path, device: str = "cpu") -> checkpoint.Checkpoint:
    """Load a label generator."""
    loaded = checkpoint.load(path, device=device)
    if loaded.family != "label_gan":
        raise SynthError(
            f"{path} is a {loaded.family} checkpoint", hint="drawing labels needs one of label_gan"
        )
    return loaded


def draw(
    loaded: checkpoint.Checkpoint,
    count: int,
    *,
    seed: int = 0,
    truncation: float = 1.0,
    volume_ml: tuple[float, float] | None = None,
    first: int = 0,
    spacing_mm: float | None = None,
) -> Iterator[tuple[Shape, Facts]]:
    """Yield `count` shapes, and what was repaired in each.

    Args:
        loaded: a generator.
        count: how many.
        seed: with the sample's number, fixes the sample.
        truncation: multiplies the code; below 1 shapes are more typical.
        volume_ml: bounds of the whole tumour's volume.
        first: number of the first sample.
        spacing_mm: voxel of the label maps; default the training cohort's.

    Yields:
        The shape, and: tries, pieces_dropped, voxels_dropped, voxels_filled.
    """
    if volume_ml and not 0 < volume_ml[0] <= volume_ml[1] < np.inf:
        raise SynthError(
            f"volume_ml = {volume_ml}", hint="two numbers of millilitres, smaller first"
        )
    if not truncation >= 0:
        raise SynthError(f"truncation = {truncation}", hint="0 or above; 1 is untouched")
    name = f"{loaded.preset} {loaded.path.parent.name} seed {seed}"
    for number in range(first, first + count):
        shape, facts = draw_one(
            loaded.model,
            loaded.config,
            seed,
            number,
            truncation=truncation,
            volume_ml=volume_ml,
            spacing_mm=spacing_mm,
        )
        yield replace(shape, source=f"{name} sample {number}"), facts


@torch.no_grad()
def draw_one(
    network: nn.Module,
    config: Config,
    seed: int,
    number: int,
    *,
    truncation: float = 1.0,
    volume_ml: tuple[float, float] | None = None,
    spacing_mm: float | None = None,
    tries: int = TRIES,
) -> tuple[Shape, Facts]:
    """Draw one sample, again while it is empty or of another volume than asked for."""
    ordered = config.architecture == "ordered"
    natural_mm = float(network.spacing_mm) if ordered else config.crop_mm / config.grid  # ty: ignore
    spacing_mm = spacing_mm or natural_mm
    low, high = volume_ml or (0.0, np.inf)
    for attempt in range(tries):
        stream = generator(seed, "shape", number, attempt)
        maps, step_mm = _draw_maps(network, config, stream, truncation, volume_ml)
        labels = read_labels(maps, config, step_mm=step_mm, spacing_mm=spacing_mm)
        labels, facts = clean(labels)
        shape = Shape(labels=labels, spacing_mm=spacing_mm)
        if labels.any() and low <= shape.volume_ml() <= high:
            return shape.cropped(margin=1), {"tries": attempt + 1, **facts}
    asked = f"between {low:g} and {high:g} ml " if volume_ml else ""
    raise SynthError(
        f"sample {number}: no shape {asked}in {tries} draws",
        hint="ask for a wider range of volumes, or train the model longer",
    )


def clean(labels: np.ndarray) -> tuple[np.ndarray, Facts]:
    """Drop specks and fill cavities of the whole tumour (as oedema); count both in voxels."""
    parts, count = ndimage.label(labels, np.ones((3, 3, 3)))
    voxels = np.bincount(parts.ravel(), minlength=count + 1)
    voxels[0] = 0
    small = (voxels > 0) & (voxels < max(SMALLEST_VOXELS, SMALLEST_SHARE * voxels.sum()))
    kept = np.where(small[parts], NONE, labels).astype(np.uint8)
    cavities = ndimage.binary_fill_holes(kept) & (kept == NONE)
    kept[cavities] = ED
    return kept, {
        "pieces_dropped": int(small.sum()),
        "voxels_dropped": int(voxels[small].sum()),
        "voxels_filled": int(cavities.sum()),
    }


def _draw_maps(
    network: nn.Module,
    config: Config,
    stream: torch.Generator,
    truncation: float,
    volume_ml: tuple[float, float] | None,
) -> tuple[np.ndarray, float]:
    """Return distance maps on the network's grid, and the millimetres of its voxel.

    The ordered generator is asked for a size; its voxel is then chosen so that the whole tumour has
    the volume asked for, whatever the network made of it.
    """
    device = next(network.parameters()).device
    if config.architecture == "alpha":
        code = torch.randn(1, config.latent, generator=stream) * truncation
        return from_output(network(code.to(device))[0], config), config.crop_mm / config.grid
    size = lesion_size.choose(network.table.cpu(), stream, volume_ml)  # ty: ignore
    code = torch.randn(1, network.code_length, generator=stream) * truncation  # ty: ignore
    code[:, : config.latent] *= config.spread
    maps = from_output(network(code.to(device), size[None].to(device))[0], config)
    voxels = max(int((maps[0] < 0).sum()), int(LEAST_FILLED * (config.grid / config.box) ** 3))
    return maps, (1000 * lesion_size.volume_ml(size) / voxels) ** (1 / 3)
