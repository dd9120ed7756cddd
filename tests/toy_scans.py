"""Patients of 4.5 mm voxels in four contrasts, from two sites, made in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from synth.data.case import MODALITIES, Case, discover
from synth.data.volume import Volume
from synth.evaluate.scans.scan_case import Scans, load_scans
from tests.conftest import ball

SHAPE = (36, 40, 36)
AFFINE = np.diag([-4.5, -4.5, 4.5, 1.0])
MM = 4.5
# How bright tissue, NCR, ED and ET are in each contrast, and how rough the scanner is.
SITES = {
    "A": ({"t1n": (1, -2, -1, 0.5), "t1c": (1.1, -2, -0.5, 5), "t2w": (-1, 3, 2, 1.5),
           "t2f": (-0.8, 1, 3, 2)}, 0.1),
    "B": ({"t1n": (0.4, -1, -1, 0), "t1c": (0.5, -1, -0.5, 2), "t2w": (-0.4, 2, 1, 1),
           "t2f": (0.3, 1, 2, 1)}, 0.5),
}  # fmt: skip


def smooth(rng: np.random.Generator, sigma: float) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal(SHAPE), sigma)
    return field / field.std()


COMMON = smooth(np.random.default_rng(7), 3.0)  # the anatomy that all patients share


def patient(seed: int, site: str = "A") -> dict[str, np.ndarray]:
    """Arrays by role."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    sides = rng.uniform(0.8, 0.95, size=(3, 1, 1, 1))
    brain = ((grid / sides) ** 2).sum(0) < 1
    tissue = COMMON + smooth(rng, 2.0)
    centre = tuple(int(n // 2 + rng.integers(-5, 6)) for n in SHAPE)
    seg = np.zeros(SHAPE, np.uint8)
    for radius, label in ((6, 2), (4, 3), (2.5, 1)):
        seg[ball(SHAPE, centre, radius) & brain] = label
    looks, rough = SITES[site]
    files = {"seg": seg}
    for m in MODALITIES:
        levels = (0, *looks[m][1:])
        image = looks[m][0] * tissue * (seg == 0) + np.choose(np.array([0, 1, 2, 3])[seg], levels)
        image = ndimage.gaussian_filter(image, 0.6) + rough * rng.standard_normal(SHAPE)
        gain = rng.uniform(80, 120)
        files[m] = np.where(brain, np.clip(500 + gain * image, 1, None).round(), 0).astype("int16")
    return files


def write(folder: Path, case_id: str, files: dict[str, np.ndarray]) -> Path:
    for role, data in files.items():
        volume = Volume(data=data[None], affine=AFFINE)
        volume.save(folder / case_id / f"{case_id}-{role}.nii.gz")
    return folder / case_id


def cohort(folder: Path, seeds: range, site: str = "A") -> list[Case]:
    for seed in seeds:
        write(folder, f"BraTS-GLI-{seed:05d}-000", patient(seed, site))
    return discover(folder)


def loaded(folder: Path, seeds: range, site: str = "A") -> list[Scans]:
    return [load_scans(case, MM) for case in cohort(folder, seeds, site)]
