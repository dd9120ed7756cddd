"""Brains in scans: given, already extracted, or found in a whole head.

    brain = find_brain(scan)
    brain.mask, brain.how                            # (X, Y, Z) bool, "found by deepbet"
    brain.alone(scan)                                # the scan with air around the brain

Whole heads are extracted by deepbet (Fisch et al. 2024), which comes with its weights; it is an
optional part, `pip install "synth-brain[bet]"`.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from synth.base.errors import SynthError
from synth.data.prepare import HIGH_PERCENTILE, brain_mask
from synth.data.volume import Volume

LARGEST_BRAIN_ML = 2300.0
"""What is larger than this and not air is a whole head."""
GAP = 0.2  # darkest tissue above the air around an extracted brain, as a share of tissue's range


@dataclass(frozen=True, kw_only=True, eq=False)
class Brain:
    """A brain's place in a scan."""

    mask: np.ndarray
    """(X, Y, Z) bool."""
    how: str
    """Where the mask comes from, in words."""
    whole_head: bool
    """Whether the scan has more than the brain."""

    def alone(self, image: Volume) -> Volume:
        """Return the scan with air outside the brain; an extracted brain is left as it is."""
        if not self.whole_head:
            return image
        channels = []
        for channel in image.data:
            share = (100 - HIGH_PERCENTILE, HIGH_PERCENTILE)
            low, high = np.percentile(channel[self.mask], share)
            air = 0.0 if low > 0 else low - GAP * (high - low)
            channels.append(np.where(self.mask, channel, np.float32(air)))
        return image.with_data(np.stack(channels))


def find_brain(image: Volume, given: Volume | None = None) -> Brain:
    """Return the brain of a scan, from its first contrast; `given` is a mask that settles it."""
    inside = brain_mask(image)
    whole = inside.sum() * image.voxel_ml > LARGEST_BRAIN_ML
    if given is not None:
        image.require_same_grid(given, ("image", "brain"))
        mask = given.data[0] != 0
        if not mask.any():
            raise SynthError("the brain mask is empty")
        return Brain(mask=mask, how="given", whole_head=bool((inside & ~mask).any()))
    if not whole:
        return Brain(mask=inside, how="already extracted", whole_head=False)
    return Brain(mask=_extracted(image), how="found by deepbet", whole_head=True)


def _extracted(image: Volume) -> np.ndarray:
    if importlib.util.find_spec("deepbet") is None:
        raise SynthError(
            "the scan has its skull, and nothing here finds the brain in it",
            hint='give --brain MASK, or install deepbet: pip install "synth-brain[bet]"',
        )
    deepbet: Any = importlib.import_module("deepbet")
    scan = nib.Nifti1Image(image.data[0].astype(np.float32), image.affine)
    try:
        _, mask, _ = deepbet.BrainExtraction(no_gpu=True).run(scan)
    except (ValueError, IndexError) as error:  # it found no voxel of brain
        raise SynthError("no brain was found in the scan", hint="is it a head?") from error
    return np.asanyarray(mask.dataobj).reshape(image.shape) > 0
