"""Classical fills of a hole in an image: baselines, and the start of our network.

All take (X, Y, Z) arrays in canonical RAS orientation and return a copy in which only voxels of the
hole differ. `harmonic` solves Laplace's equation Δu = 0 in the hole, `biharmonic` Δ²u = 0 (a thin
plate), both with the known voxels as boundary and nothing flowing through the volume's faces.
`mirror` copies the other hemisphere, `mirror_rim` then bends it onto the hole's rim.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import linalg

TOLERANCE = 1e-5  # relative residual; the fills are compared at 8 bits of grey and fewer
LARGE = 200_000  # unknown voxels: more than any tumour at 1 mm
Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]
FACES = ndimage.generate_binary_structure(3, 1)


def brain_mean(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill with the mean of the known brain (voxels off the background, the smallest value)."""
    known = image[~hole]
    return np.where(hole, known[known > known.min()].mean(), image)


def rim_mean(image: np.ndarray, hole: np.ndarray, width: int = 4) -> np.ndarray:
    """Fill with the mean of the known voxels within `width` steps of the hole."""
    rim = ndimage.binary_dilation(hole, FACES, width) & ~hole
    return np.where(hole, image[rim].mean(), image)


def harmonic(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill smoothly: the steady temperature of a hole whose rim is held at the known values."""
    box = _around(hole, 1)
    inner, boundary = _laplacian(image[box], hole[box], rows=hole[box])
    return _solve(image, hole, -inner, boundary, harmonic)


def biharmonic(image: np.ndarray, hole: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """Fill as a thin plate: value and slope go on smoothly across the rim."""
    box = _around(hole, 3)
    rows = ndimage.binary_dilation(hole[box], FACES)
    inner, boundary = _laplacian(image[box], hole[box], rows=rows)
    again = partial(biharmonic, tolerance=tolerance)
    return _solve(image, hole, (inner.T @ inner).tocsr(), -(inner.T @ boundary), again, tolerance)


def mirror_axis(image: np.ndarray, known: np.ndarray, reach: int = 8) -> int:
    """Return s of the best left-right symmetry x → s − x, judged on known brain voxels."""
    brain = known & (image > image.min())
    centre = 2 * ndimage.center_of_mass(brain)[0]
    candidates = range(round(centre) - reach, round(centre) + reach + 1)
    step = max(1, image.shape[2] // 48)  # every few slices are enough to see the midline
    thin, inside = image[..., ::step], brain[..., ::step]
    return max(candidates, key=lambda s: _correlation(thin, inside, s))


def reflect(data: np.ndarray, axis_sum: int, fill: float = 0) -> np.ndarray:
    """Return data at x → axis_sum − x; what lies outside the volume is `fill`."""
    result = np.full_like(data, fill)
    source = axis_sum - np.arange(len(data))
    inside = (source >= 0) & (source < len(data))
    result[inside] = data[source[inside]]
    return result


def mirror(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill with the other hemisphere; where that is unknown too, harmonically."""
    return _fill_from_reflection(image, hole, hole, mirror_axis(image, ~hole))


def mirror_rim(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fill with the other hemisphere, shifted smoothly so that it meets the rim."""
    return mirror_rim_fill(image, hole, hole, mirror_axis(image, ~hole))


def _fill_from_reflection(
    image: np.ndarray, hole: np.ndarray, unknown: np.ndarray, axis_sum: int
) -> np.ndarray:
    """Fill from the reflection x → axis_sum − x where it is known, harmonically where not."""
    usable = reflect(~unknown, axis_sum, fill=False) & hole
    filled = np.where(usable, reflect(image, axis_sum), image)
    rest = hole & ~usable
    return harmonic(filled, rest) if rest.any() else filled


def mirror_rim_fill(
    image: np.ndarray, hole: np.ndarray, unknown: np.ndarray, axis_sum: int
) -> np.ndarray:
    """Do as `mirror_rim`, about a known axis; `unknown` is not copied from, as the hole."""
    guess = _fill_from_reflection(image, hole, unknown, axis_sum)
    rim = ndimage.binary_dilation(hole, FACES) & ~hole
    usable = reflect(~unknown, axis_sum, fill=False)
    # A rim voxel whose partner is unknown has no offset: it takes its neighbours'.
    whole = np.where(usable, reflect(image, axis_sum), 0)
    blind = rim & ~usable
    if not (rim & usable).any():
        return guess
    offset = np.where(rim & usable, image - whole, 0)
    return np.where(hole, guess + harmonic(offset, hole | blind), image)


BASELINES: dict[str, Fill] = {
    "brain mean": brain_mean,
    "rim mean": rim_mean,
    "harmonic": harmonic,
    "biharmonic": biharmonic,
    "mirror": mirror,
    "mirror + rim": mirror_rim,
}


def _around(hole: np.ndarray, margin: int) -> tuple[slice, ...]:
    (box,) = ndimage.find_objects(hole.astype(np.uint8))
    return tuple(
        slice(max(s.start - margin, 0), min(s.stop + margin, n))
        for s, n in zip(box, hole.shape, strict=True)
    )


def _laplacian(
    image: np.ndarray, hole: np.ndarray, rows: np.ndarray
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Δ at the voxels of `rows`, split into (matrix on the hole's voxels, part of the known)."""
    number = np.full(hole.shape, -1)
    number[hole] = np.arange(hole.sum())
    row_of = np.full(hole.shape, -1)
    row_of[rows] = np.arange(rows.sum())
    known_part = np.zeros(int(rows.sum()))
    triples: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(row: np.ndarray, where: tuple[np.ndarray, ...], weight: float) -> None:
        column = number[where]
        free = column >= 0
        triples.append((row[free], column[free], np.full(int(free.sum()), weight)))
        np.add.at(known_part, row[~free], weight * image[where][~free])

    places = np.nonzero(rows)
    for axis in range(3):
        for step in (-1, 1):
            moved = list(places)
            moved[axis] = places[axis] + step
            inside = (moved[axis] >= 0) & (moved[axis] < hole.shape[axis])
            here = row_of[tuple(p[inside] for p in places)]
            add(here, tuple(m[inside] for m in moved), 1.0)
            add(here, tuple(p[inside] for p in places), -1.0)
    row, column, weight = (np.concatenate(part) for part in zip(*triples, strict=True))
    shape = (int(rows.sum()), int(hole.sum()))
    return sparse.csr_matrix((weight, (row, column)), shape=shape), known_part


def _solve(
    image: np.ndarray,
    hole: np.ndarray,
    matrix: sparse.csr_matrix,
    right: np.ndarray,
    fill: Fill,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """Solve the symmetric positive definite system by conjugate gradients, Jacobi-scaled.

    `fill` is what the system stands for: a large hole begins from the answer at half the size.
    """
    scale = sparse.diags(1 / np.maximum(matrix.diagonal(), 1e-12))
    if len(right) > LARGE:
        start = _coarse_fill(image, hole, fill)
    else:
        start = np.full(len(right), image[~hole].mean() if (~hole).any() else 0.0)
    values, _ = linalg.cg(matrix, right, x0=start, rtol=tolerance, maxiter=4000, M=scale)
    result = image.copy()
    result[hole] = values
    return result


def _coarse_fill(image: np.ndarray, hole: np.ndarray, fill: Fill) -> np.ndarray:
    """Return the hole's values of the fill at half the size, enlarged."""
    box = _around(hole, 4)
    near, inside = image[box], hole[box]
    pad = [(0, n % 2) for n in near.shape]
    known = np.pad(~inside, pad).astype(np.float32)
    x, y, z = (n // 2 for n in known.shape)
    blocks = (x, 2, y, 2, z, 2)
    share = known.reshape(blocks).mean(axis=(1, 3, 5))
    mean = (np.pad(near, pad) * known).reshape(blocks).mean(axis=(1, 3, 5))
    empty = share == 0
    coarse = np.where(empty, 0, mean / np.where(empty, 1, share)).astype(image.dtype)
    coarse = fill(coarse, empty) if empty.any() else coarse
    fine = ndimage.affine_transform(
        coarse, [0.5] * 3, -0.25, output_shape=near.shape, order=1, mode="nearest"
    )
    return fine[inside]


def _correlation(image: np.ndarray, brain: np.ndarray, axis_sum: int) -> float:
    both = brain & reflect(brain, axis_sum, fill=False)
    if both.sum() < 2:
        return -1.0
    a, b = image[both], reflect(image, axis_sum)[both]
    # A shift that leaves little overlap must not win by luck.
    return float(np.corrcoef(a, b)[0, 1]) * float(both.sum() / brain.sum())
