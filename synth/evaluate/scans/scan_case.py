"""A case as the evaluation reads it, and its numbers: brightness of regions, texture.

Cases are oriented, on one voxel size, from 0 to 1. Real and generated cases go the same way, so
that no number tells them apart by how they were stored. A scan whose tumour is not where its label
map says has regions that look like brain. Texture is the energy of Haar bands whose support lies
inside the brain: the brain's edge is not texture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from synth.base.errors import SynthError
from synth.base.files import read_json
from synth.data.case import MODALITIES, Case, discover, require_unique
from synth.data.labels import to_classes
from synth.data.prepare import brain_mask, prepare
from synth.data.volume import READ_ERRORS, Volume
from synth.diffusion.wavelet import BANDS, dwt3
from synth.evaluate.common import find_real_sets
from synth.metrics.statistics import intervals

NCR, ED, ET = 1, 2, 3
DIVISOR = 8
"""Grids are a multiple of this: three Haar levels."""
TUMOUR = {"NCR": NCR, "ED": ED, "ET": ET}
FEWEST_VOXELS = 8
AGREED = 0.9
"""A contrast has a sign if so many real cases agree on it."""
LEAST_SD = 0.02
"""Of statistics that are ratios of spreads: real cases are never told apart more finely."""
Row = Mapping[str, float]
LEVELS = 3
SMALLEST = 1e-6  # of the brain's variance; keeps the logarithm of an empty band finite


@dataclass(frozen=True, kw_only=True, eq=False)
class Scans:
    """Four contrasts of a case in RAS order, cut to the brain."""

    case: Case
    image: np.ndarray
    """(4, X, Y, Z) float32: 0 outside the brain, 1 its 99.5th percentile."""
    brain: np.ndarray
    """(X, Y, Z) bool."""
    classes: np.ndarray | None
    """(X, Y, Z): 1 NCR, 2 ED, 3 ET; None without a label map."""
    spacing_mm: float
    levels: tuple[float, ...]
    """The 99.5th percentile of each contrast in the file's own unit."""

    @property
    def healthy(self) -> np.ndarray:
        """The brain outside the tumour."""
        return self.brain if self.classes is None else self.brain & (self.classes == 0)


def find_scans(folder: Path, scheme: str = "auto", *, real: bool = False) -> list[Case]:
    """Find the cases of a folder that have a scan; `real` leaves out what was made from others."""
    if not folder.is_dir():
        raise SynthError(f"{folder}: no such folder", hint="check the path and its spelling")
    cases = [c for c in discover(folder, scheme=scheme) if set(MODALITIES) & c.files.keys()]
    cases = [c for c in cases if not (real and c.is_made)]
    if not cases:
        raise SynthError(
            f"{folder}: no {'real ' * real}case with scans",
            hint="names are like BraTS-GLI-00001-000-t1n.nii.gz",
        )
    require_unique(cases)
    return cases


def is_painted(case: Case) -> bool:
    """Whether the record beside a made case says that its tumour was painted into scans."""
    path = next((p for m in MODALITIES if (p := case.files.get(m))), None)
    record = path and path.parent.parent / "records" / f"{case.id}.json"
    return bool(record and record.is_file() and read_json(record, dict).get("into"))


def real_sets(
    truth_dir: Path, train_dir: Path | None, split: Path | None, scheme: str
) -> dict[str, list[Case]]:
    """Find the real cases: unseen ones as "real", and "training" ones if they are told."""
    sets = find_real_sets(
        truth_dir, train_dir, split, scheme, lambda folder: find_scans(folder, scheme, real=True)
    )
    seen = {c.id for c in sets.get("training", ())} & {c.id for c in sets["real"]}
    if seen:
        raise SynthError(
            f"{min(seen)} is an unseen case and a training case ({len(seen)} such)",
            hint="judge by cases that no model was trained on",
        )
    return sets


def common_spacing_mm(*sets: Iterable[Case]) -> float:
    """Return the coarsest of the sets' median voxel sizes, from the headers alone."""
    sizes = [[s for case in cases if (s := _spacing_mm(case))] for cases in sets]
    if not any(sizes):
        raise SynthError("no scan can be read", hint="`synth check` says what is wrong")
    return max(float(np.median(own)) for own in sizes if own)


def load_scans(case: Case, spacing_mm: float) -> Scans:
    """Read a case; its label map, if any, must be on the grid of its four contrasts."""
    image = case.load_scans()
    brain = brain_mask(image)
    prepared = prepare(image, divisor=DIVISOR, margin_mm=0, spacing_mm=spacing_mm)
    inside = prepared.frame.bring(brain[None], nearest=True)[0]
    return Scans(
        case=case,
        image=np.where(inside, (prepared.data + 1) / 2, 0).astype(np.float32),
        brain=inside,
        classes=_classes(case, image, prepared.frame.bring),
        spacing_mm=spacing_mm,
        levels=prepared.high,
    )


def _classes(
    case: Case, grid: Volume, bring: Callable[..., np.ndarray]
) -> np.ndarray | None:  # on the grid that `bring` brings to
    if "seg" not in case.files:
        return None
    labels = case.load("seg")
    grid.require_same_grid(labels, (MODALITIES[0], "seg"))
    classes = to_classes(labels.data[0], case.scheme)
    return bring(classes[None], nearest=True)[0]


def _spacing_mm(case: Case) -> float | None:
    """Return the edge of a cube as large as a voxel; None where the file is damaged."""
    path = next(case.files[m] for m in MODALITIES if m in case.files)
    try:
        affine = np.asarray(nib.load(path).affine)  # ty: ignore[missing-attribute]
    except READ_ERRORS:  # reported when the case is read
        return None
    return float(abs(np.linalg.det(affine[:3, :3])) ** (1 / 3))


def region_statistics(scans: Scans) -> dict[str, float]:
    """Return mean and sd of NCR, ED, ET and the healthy brain in every contrast.

    Of a tumour region: how many sd of the healthy brain it is brighter, and its sd over that of the
    brain; of the brain: its mean over the 99.5th percentile, and sd over mean. NaN for regions of
    fewer than 8 voxels.
    """
    found = {}
    for contrast, image in zip(MODALITIES, scans.image, strict=True):
        brain = image[scans.healthy].astype(np.float64)
        mean, sd = (float(brain.mean()), float(brain.std())) if brain.size else (np.nan, np.nan)
        sd = max(sd, 1e-6)
        found[f"brain_{contrast}_mean"], found[f"brain_{contrast}_sd"] = mean, sd / max(mean, 1e-6)
        for name, number in TUMOUR.items():
            values = image[scans.classes == number] if scans.classes is not None else image[:0]
            enough = values.size >= FEWEST_VOXELS
            level, spread = (values.mean(), values.std()) if enough else (np.nan, np.nan)
            found[f"{name}_{contrast}_mean"] = float((level - mean) / sd)
            found[f"{name}_{contrast}_sd"] = float(spread / sd)
    return found


def worst_z(row: Row, real: Sequence[Row], names: Sequence[str]) -> float:
    """Return the largest |z| of a case among real ones; nan where nothing can be compared.

    `real` must not hold the case itself.
    """
    found = [abs(z) for name in names if np.isfinite(z := _z(row[name], column(real, name)))]
    return max(found, default=np.nan)


def signs(real: Sequence[Row]) -> dict[str, int]:
    """Return which regions are brighter (+1) or darker (-1) than brain, where real cases agree."""
    found = {}
    for name in mean_names():
        values = column(real, name)
        brighter = float((values[np.isfinite(values)] > 0).mean()) if len(values) else 0.5
        if max(brighter, 1 - brighter) >= AGREED and np.isfinite(values).any():
            found[name] = 1 if brighter > 0.5 else -1
    return found


def share_of_signs(row: Row, expected: Mapping[str, int]) -> float:
    """Return the share of the contrasts that have the sign of real cases; nan without any."""
    agree = [np.sign(row[n]) == s for n, s in expected.items() if np.isfinite(row[n])]
    return float(np.mean(agree)) if agree else np.nan


def mean_names() -> list[str]:
    """Return the names of the mean brightness of tumour regions."""
    return [f"{region}_{m}_mean" for region in TUMOUR for m in MODALITIES]


def column(rows: Sequence[Row], name: str) -> np.ndarray:
    """Return one number of every case."""
    return np.array([row[name] for row in rows], float)


def _z(value: float, real: np.ndarray) -> float:
    real = real[np.isfinite(real)]
    if len(real) < 3 or not np.isfinite(value):
        return np.nan
    return float((value - real.mean()) / max(real.std(ddof=1), LEAST_SD))


def band_energies(scans: Scans) -> np.ndarray:  # (4, 3 levels, 7 bands)
    """Return ln of the energy of every detail band, as a share of the brain's variance.

    White noise adds the same to all bands; blur takes from the fine levels. NaN where the brain
    has no room for a level.
    """
    lll = torch.from_numpy(scans.image)[None]
    brain = torch.from_numpy(scans.brain)[None, None].float()
    variance = scans.image[:, scans.brain].var(axis=1)
    found = np.full((len(MODALITIES), LEVELS, len(BANDS) - 1), np.nan)
    for level in range(LEVELS):
        bands = dwt3(lll).unflatten(1, (len(MODALITIES), len(BANDS)))[0]
        inside = (F.avg_pool3d(brain, 2 ** (level + 1)) == 1)[0, 0].numpy()
        details = bands[:, 1:].numpy()[..., inside]  # (4, 7, voxels)
        if inside.any():
            energy = (details.astype(np.float64) ** 2).mean(axis=-1)
            found[:, level] = np.log(energy / np.maximum(variance, 1e-12)[:, None] + SMALLEST)
        lll = bands[:, 0][None]
    return found


def texture_columns(energies: np.ndarray) -> dict[str, float]:  # (4, levels, 7)
    """Return the mean of the seven bands by contrast and level; level 1 is the finest."""
    pooled = energies.mean(axis=-1)
    return {
        f"texture_{m}_{level + 1}": float(pooled[i, level])
        for i, m in enumerate(MODALITIES)
        for level in range(LEVELS)
    }


def energy_ratio(made: np.ndarray, real: np.ndarray, *, seed: int = 0) -> dict[str, float | None]:
    """Return made over real energy from their ln in each case, with a bootstrap interval."""
    made, real = made[np.isfinite(made)], real[np.isfinite(real)]
    sides = [intervals(v, seed=seed) if len(v) else None for v in (made, real)]
    if None in sides:
        return {"ratio": None, "low": None, "high": None}
    # Both sides are resampled: the interval of each, joined as independent errors are.
    difference = float(made.mean() - real.mean())
    (a, b), (c, d) = (side.mean for side in sides if side)
    below = np.hypot(made.mean() - a, d - real.mean())
    above = np.hypot(b - made.mean(), real.mean() - c)
    values = {"ratio": difference, "low": difference - below, "high": difference + above}
    return {name: float(np.exp(v)) for name, v in values.items()}
