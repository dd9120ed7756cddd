"""The training items of an arm: real cases and others in fixed shares.

A slot is one place in one batch. The slot's seed alone decides whether another case takes it, so
that two arms see the same real crops wherever both see real ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from segmentation.comparison.leakage import Cohorts
from segmentation.config import Config
from segmentation.data import SegmentationData
from synth.base.errors import SynthError
from synth.base.seeding import mix
from synth.data.cache import ArrayCache
from synth.training.data_order import Items, place

ARMS: dict[str, str] = {
    "base": "real cases alone",
    "synthetic": "a share of the slots goes to generated cases",
    "duplicated": "the same share goes to real cases once more, as many as are generated",
    "augmented": "the same, with full augmentation",
}


class Mixed:
    """Real items, and in a share of the slots items of another set."""

    def __init__(self, real: Items, other: Items | None, share: float) -> None:
        self.real, self.other, self.share = real, other, share

    def __len__(self) -> int:
        return len(self.real)

    def item(self, index: int, seed: int) -> dict[str, Any]:
        """Return the real item, or another in its place."""
        place = self.other_place(seed)
        if self.other is None or place is None:
            return self.real.item(index, seed)
        return self.other.item(place, seed)

    def other_place(self, seed: int) -> int | None:
        """Return which other item takes a slot; None where it stays real."""
        if self.other is None:
            return None
        rng = np.random.default_rng(mix(seed, "arm"))
        taken, turn = rng.random() < self.share, rng.random()
        return int(turn * len(self.other)) if taken else None


def arm_items(
    arm: str, cohorts: Cohorts, config: Config, *, share: float, cache: ArrayCache
) -> Mixed:
    """Return an arm's training items."""
    if arm not in ARMS:
        raise SynthError(f"unknown arm '{arm}'", hint=f"there are: {', '.join(ARMS)}")
    if arm == "augmented" and config.augment == "full":
        raise SynthError(
            "the arm augmented is the same as duplicated: all are fully augmented",
            hint="leave it out, or let the base have --augment light",
        )
    real = SegmentationData(cohorts.train, config, cache=cache)
    if arm == "base":
        return Mixed(real, None, 0.0)
    others = cohorts.made
    if arm != "synthetic":
        count = max(len(others), 1)
        others = tuple(cohorts.train[k % len(cohorts.train)] for k in range(count))
    strong = replace(config, augment="full") if arm == "augmented" else config
    return Mixed(real, SegmentationData(others, strong, cache=cache), share)


def hash_real_slots(items: Mixed, *, seed: int, slots: int) -> dict[int, str]:
    """Return slot → hash of its tensors, for the first slots that are real."""
    hashes = {}
    for slot in range(slots):
        index, own = place(slot, seed=seed, size=len(items))
        if items.other_place(own) is None:
            digest = hashlib.blake2b(digest_size=16)
            for _, tensor in sorted(items.item(index, own).items()):
                digest.update(tensor.numpy().tobytes())
            hashes[slot] = digest.hexdigest()
    return hashes


def require_same_real_slots(hashes: Sequence[dict[int, str]]) -> None:
    """Assert that arms see the same real crops where both see real ones."""
    first = hashes[0]
    for other in hashes[1:]:
        same = all(first[k] == other[k] for k in first.keys() & other.keys())
        assert same, "arms see different real crops"
