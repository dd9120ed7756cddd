"""What is kept of each judged case: features, a coarse map, named numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from synth.data.case import MODALITIES, Case
from synth.evaluate.scans.copies import Code, code_of
from synth.evaluate.scans.regions import TUMOUR, region_statistics
from synth.evaluate.scans.scan_case import Scans
from synth.evaluate.scans.texture import LEVELS, band_energies, texture_columns

if TYPE_CHECKING:
    from synth.evaluate.scans.segmenter import Segmenter

THUMBNAIL_SIDE = 96
DICE = ("seg_dice", "seg_dice_WT", "seg_dice_TC", "seg_dice_ET")
_SAMPLE = re.compile(r"-synth\d+$")


@dataclass(frozen=True, kw_only=True, eq=False)
class Description:
    """What is kept of a case."""

    case: Case
    features: np.ndarray
    code: Code
    energies: np.ndarray
    """(4, levels, 7)."""
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
    segmenter: Segmenter | None = None,
    *,
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
