"""Training items of the guided mode: holes that are placed once in each brain, with their guides.

Registering a template takes seconds, so what a hole's network sees is made once, in half precision,
and kept. The brains are a cohort's, or heads that never were, as many as one asks for.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from synth.base.errors import SynthError
from synth.base.seeding import mix
from synth.data.cache import ArrayCache, Arrays
from synth.data.heads import Anatomy, anatomies, draw_head, draw_shape
from synth.data.placement import place, site
from synth.data.prepare import crop_or_pad
from synth.metrics.image import intensity_window
from synth.training.log import Progress
from wdm3d.config import Config
from wdm3d.data import InpaintingData, item_of
from wdm3d.guides import guides_of
from wdm3d.scene import BACKGROUND, Scene

FIELDS = ("truth", "known", "fills", "reflected", "template_brain", "roi", "hole")
CUT_TO_BRAIN = 0.4  # share of holes that end where the brain does
GAINS = (0.75, 1.08)  # of tissue's intensities
MARGIN = 8  # voxels of air around a drawn brain


def _use_one_thread() -> None:
    torch.set_num_threads(1)


class Brains(Protocol):
    """Where brains come from."""

    def __len__(self) -> int: ...

    def brain(self, index: int) -> Arrays:
        """Return image (C, x, y, z) in [-1, 1], and brain and unhealthy (x, y, z) bool."""
        ...

    def name(self, index: int) -> str:
        """Return a name for the cache that changes whenever the brain does."""
        ...


@dataclass(frozen=True)
class DrawnHeads:
    """Heads that never were, `first` to `first + count - 1`."""

    count: int
    first: int = 0
    exclude: tuple[str, ...] = ()
    """Anatomies not to draw from, by name."""

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Heads are known by their number and by what they are drawn from."""
        return "-".join(["head", str(self.first + index), *self.exclude])

    def brain(self, index: int) -> Arrays:
        """Draw a head and cut it to its brain."""
        head = draw_head(self._anatomies(), self.first + index)
        (inner,) = ndimage.find_objects(head.brain.astype(np.uint8))
        start = tuple(s.start - MARGIN for s in inner)
        extent = tuple((s.stop - s.start + 2 * MARGIN + 1) // 2 * 2 for s in inner)
        image = crop_or_pad(head.image, start, extent, 0)
        brain = crop_or_pad(head.brain, start, extent, False)
        return {"image": 2 * image[None] - 1, "brain": brain, "unhealthy": np.zeros_like(brain)}

    def _anatomies(self) -> Sequence[Anatomy]:
        if self.exclude not in _LOADED:
            _LOADED.clear()  # they are large
            _LOADED[self.exclude] = anatomies(self.exclude)
        return _LOADED[self.exclude]


_LOADED: dict[tuple[str, ...], Sequence[Anatomy]] = {}


@dataclass(frozen=True, eq=False)
class CohortBrains:
    """The brains of cases, as the other modes prepare them."""

    data: InpaintingData

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        """Cases are known by their files."""
        return self.data.recipe_of(index)

    def brain(self, index: int) -> Arrays:
        """Return a prepared case."""
        return self.data.prepared(index)


class GuidedData:
    """Brains with holes as items for the loop.

    Args:
        brains: where they come from.
        config: the model's.
        cache: where what was made is kept.
        fixed: no augmentation, for validation; a case's own healthy mask is its hole.
    """

    def __init__(
        self, brains: Brains, config: Config, *, cache: ArrayCache, fixed: bool = False
    ) -> None:
        self.brains, self.config, self.cache, self.fixed = brains, config, cache, fixed

    def __len__(self) -> int:
        return len(self.brains)

    def prepare(self) -> None:
        """Make the holes of all brains, on all cores; those in the cache are left as they are."""
        missing = [i for i in range(len(self)) if not self.cache.holds(*self._key(i))]
        cores = min(os.cpu_count() or 1, len(missing))
        if not missing or self.cache.folder is None:
            return
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(cores, context, _use_one_thread) as pool,
            Progress(len(missing), label="holes", unit="brain") as progress,
        ):
            for _ in pool.map(self._touch, missing):
                progress.advance()

    def _touch(self, index: int) -> None:
        self.holes(index)
        self.cache.forget()  # a worker that holds what it made runs out of memory

    def item(self, index: int, seed: int) -> dict[str, Tensor]:
        """Return one hole of a brain; one that has no room for holes passes to the next."""
        rng = np.random.default_rng(seed)
        for attempt in range(32):
            made = self.holes((index + attempt) % len(self))
            if len(made["channels"]):
                return self._item(made, rng)
        raise SynthError("no hole found a place in 32 brains", hint="are they brains?")

    def holes(self, index: int) -> Arrays:
        """Return all holes of a brain: channels (K, 6C + 4, e, e, e) float16, and its window."""
        return self.cache.get(*self._key(index), lambda: self._make(index))

    def _key(self, index: int) -> tuple[str, str]:
        c = self.config
        settings = (c.crop, c.holes, c.spacing_mm, c.modalities, self.fixed)
        return f"holes-{index}", repr((self.brains.name(index), settings))

    def _item(self, made: Arrays, rng: np.random.Generator) -> dict[str, Tensor]:
        stored = made["channels"][rng.integers(len(made["channels"]))]
        channels = np.array(stored, np.float32)
        count = len(self.config.modalities)
        if self.config.augment and not self.fixed:
            for axis in (1, 2, 3):
                if rng.random() < 0.5:
                    channels = np.flip(channels, axis)
            intensities = channels[: 6 * count]
            channels = np.concatenate(
                [(intensities + 1) * np.float32(rng.uniform(*GAINS)) - 1, channels[6 * count :]]
            )
        sizes = (count, count, 4 * count, 1, 1, 1, 1)
        parts = torch.from_numpy(np.ascontiguousarray(channels)).split(sizes)
        item = dict(zip(FIELDS, parts, strict=True))
        if self.fixed:
            item["window"] = torch.from_numpy(np.array(made["window"]))
        return item

    def _make(self, index: int) -> Arrays:
        arrays, config = self.brains.brain(index), self.config
        rng = np.random.default_rng(mix(0, self.brains.name(index)) % 2**63)
        image, brain, sick = (np.asarray(arrays[n]) for n in ("image", "brain", "unhealthy"))
        if self.fixed and "healthy" in arrays:
            regions = [np.asarray(arrays["healthy"])]
        else:
            regions = self._placed(brain, sick, rng)
        hole = np.logical_or.reduce([sick, *regions])
        guides = guides_of((image + 1) / 2, hole, config.spacing_mm)
        scene = Scene(
            image=image, hole=hole, axis_sum=0, centre=np.zeros(3), reach=np.ones(3), guides=guides
        )
        found = [item_of(scene, region, config, rng) for region in regions if region.any()]
        channels = [np.concatenate([item[f] for f in FIELDS]).astype(np.float16) for item in found]
        shape = (0, 6 * len(image) + 4, *[config.crop] * 3)
        voided = np.where(hole, BACKGROUND, image[0])
        window = np.array(intensity_window(voided + 1), np.float32) - 1
        return {
            "channels": np.stack(channels) if channels else np.zeros(shape, np.float16),
            "window": arrays.get("window", window),
        }

    def _placed(
        self, brain: np.ndarray, sick: np.ndarray, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Place holes by the challenge's rule, none on another."""
        spacing = self.config.spacing_mm
        where, regions = site(brain, sick, (spacing,) * 3), []
        for _ in range(self.config.holes):
            region = place([draw_shape(rng, spacing)], where, rng, scale=(1.0, 1.0))
            if region is not None:
                where = where.occupied(region)
                regions.append(region & brain if rng.random() < CUT_TO_BRAIN else region)
        return regions
