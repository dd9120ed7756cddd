"""Shape of a tumour label map in about twenty named numbers.

Labels are 1 (NCR), 2 (ED), 3 (ET); the regions WT = {1, 2, 3} ⊃ TC = {1, 3} ⊃ ET = {3}. The grid
is isotropic. A number that does not exist (the sphericity of a core that is not there) is NaN.

Areas, contacts and topology depend on the voxel's size: compare masks on one spacing only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import ndimage

from synth.base.errors import SynthError

REGIONS = {"wt": (1, 2, 3), "tc": (1, 3), "et": (3,)}
SMALLEST_COMPONENT_MM3 = 50.0
EMPTY_ML = 0.01
"""What an absent region weighs in a logarithm; about half a voxel of 2.8 mm."""

DESCRIBED = {
    "log_wt_ml": 0.1, "log_tc_ml": 0.1, "log_et_ml": 0.1, "tc_in_wt": 0.02, "et_in_tc": 0.02,
    "log_area_wt_cm2": 0.1, "sphericity_wt": 0.02, "sphericity_tc": 0.02,
    "elongation": 0.02, "flatness": 0.02, "extent": 0.02,
    "components_wt": 0.2, "components_tc": 0.2, "components_et": 0.2, "largest_wt": 0.02,
    "euler_wt": 0.2, "euler_tc": 0.2, "euler_et": 0.2, "rim_contact": 0.02, "core_contact": 0.02,
}  # fmt: skip
"""The features that describe a shape, and the least spread by which each is standardised: one
that a small reference never varies must not outweigh all the others."""
COUNTS = ("components_wt", "components_tc", "components_et", "euler_wt", "euler_tc", "euler_et")

# Crofton's weights of the 13 lines to the neighbours, by the number of axes a line runs along: the
# share of the sphere that is nearer to it than to any other (Ohser and Mücklich 2000).
DIRECTION_WEIGHTS = {1: 0.0915558, 2: 0.0739613, 3: 0.0703913}
Offset = tuple[int, int, int]
DIRECTIONS: tuple[Offset, ...] = tuple(
    (x, y, z) for x, y, z in itertools.product((-1, 0, 1), repeat=3) if (x, y, z) > (0, 0, 0)
)
FACES: tuple[Offset, ...] = tuple(d for d in DIRECTIONS if sum(map(abs, d)) == 1)
NEIGHBOURS_26 = ndimage.generate_binary_structure(3, 3)


def features(
    labels: np.ndarray, spacing_mm: float
) -> dict[str, float]:  # (X, Y, Z), or (3, X, Y, Z) masks of WT, TC, ET
    """Describe one tumour; see the module.

    - `log_*_ml` natural logarithms of volumes; `tc_in_wt`, `et_in_tc`, `ncr_in_tc` volume shares;
    - `log_area_wt_cm2`, `sphericity_*` = π^⅓ (6V)^⅔ / A, one for a ball;
    - `elongation`, `flatness`: second and third axis over the first; `extent`: share of the box;
    - `components_*` of 50 mm³ or more, `largest_wt` the share of the largest of any size;
    - `euler_*`: components − tunnels + cavities;
    - `rim_contact`: share of the NCR surface that touches ET; `core_contact`: of TC touching ED;
    - `nesting`: share of voxels of TC and ET inside the region around them. One for every label
      map, whose regions are nested by construction; three independent masks may have less.
    """
    if not spacing_mm > 0:
        raise SynthError(f"spacing {spacing_mm} mm", hint="give a number above 0")
    given = regions_of(labels)
    masks = np.logical_and.accumulate(given, axis=0)
    wt, tc, et = masks
    inner = int(given[1:].sum())
    ml = spacing_mm**3 / 1000
    volumes = dict(zip(REGIONS, (float(mask.sum()) * ml for mask in masks), strict=True))
    area_mm2 = surface_area(wt) * spacing_mm**2
    elongation, flatness = axis_ratios(wt)
    found = {f"log_{name}_ml": math.log(max(v, EMPTY_ML)) for name, v in volumes.items()}
    found |= {
        "tc_in_wt": volumes["tc"] / volumes["wt"],
        "et_in_tc": volumes["et"] / volumes["tc"] if volumes["tc"] else 0.0,
        "ncr_in_tc": 1 - volumes["et"] / volumes["tc"] if volumes["tc"] else 0.0,
        "log_area_wt_cm2": math.log(area_mm2 / 100),
        "sphericity_wt": sphericity(wt),
        "sphericity_tc": sphericity(tc),
        "elongation": elongation,
        "flatness": flatness,
        "extent": float(wt.mean()),
        "rim_contact": contact(tc & ~et, et),
        "core_contact": contact(tc, wt & ~tc),
        "nesting": float(masks[1:].sum() / inner) if inner else 1.0,
    }
    for name, mask in zip(REGIONS, masks, strict=True):
        sizes = component_sizes(mask)
        found[f"components_{name}"] = float((sizes * ml >= SMALLEST_COMPONENT_MM3 / 1000).sum())
        found[f"euler_{name}"] = float(euler_number(mask))
        if name == "wt":
            found["largest_wt"] = float(sizes.max() / sizes.sum())
    return found


def regions_of(labels: np.ndarray) -> np.ndarray:  # (X, Y, Z) or (3, X, Y, Z) → (3, x, y, z)
    """Return the masks of WT, TC and ET cut to the tumour's box; WT is never empty."""
    labels = np.asarray(labels)
    if labels.ndim not in (3, 4) or (labels.ndim == 4 and labels.shape[0] != len(REGIONS)):
        raise SynthError(
            f"expected labels (X, Y, Z) or masks (3, X, Y, Z), got shape {labels.shape}",
            hint="describe one mask at a time",
        )
    wt = labels[0] > 0 if labels.ndim == 4 else labels > 0
    found = ndimage.find_objects(wt.astype(np.uint8))
    if not found:
        raise SynthError("no tumour", hint="labels are 1 (NCR), 2 (ED) and 3 (ET)")
    if labels.ndim == 4:
        box = ndimage.find_objects(labels.any(axis=0).astype(np.uint8))[0]
        return labels[(slice(None), *box)].astype(bool)
    cut = labels[found[0]]
    odd = sorted(set(np.unique(cut).tolist()) - {0, *REGIONS["wt"]})
    if odd:
        raise SynthError(
            f"label {odd[0]} is none of 1 (NCR), 2 (ED), 3 (ET)",
            hint="map the labels by their scheme first",
        )
    return np.stack([np.isin(cut, numbers) for numbers in REGIONS.values()])


def location(labels: np.ndarray, brain: np.ndarray) -> dict[str, float]:  # both (X, Y, Z)
    """Return where the tumour's centre is in the brain's box: 0 to 1 along each array axis."""
    if not brain.any():
        raise SynthError("no brain", hint="its mask is empty")
    (box,) = ndimage.find_objects(brain.astype(np.uint8))
    centre = np.argwhere(labels > 0).mean(axis=0)
    return {
        f"centre_{axis}": float((c + 0.5 - s.start) / (s.stop - s.start))
        for axis, c, s in zip("xyz", centre, box, strict=True)
    }


def matrix(
    rows: Iterable[Mapping[str, float]], names: Sequence[str] = tuple(DESCRIBED)
) -> np.ndarray:  # (masks, features)
    """Stack features for a distance between sets; counts by arsinh, so that one speckled mask
    does not stand for all."""
    table = np.array([[row[name] for name in names] for row in rows], float)
    table = table.reshape(-1, len(names))
    counts = [i for i, name in enumerate(names) if name in COUNTS]
    table[:, counts] = np.arcsinh(table[:, counts])
    return table


def surface_area(mask: np.ndarray) -> float:
    """Estimate the area of a digitised body in voxel faces, by Crofton's formula.

    Counts how often lines in 13 directions cross the surface. Within 2 % for smooth bodies of
    three voxels in radius or more, without the 8 % that marching cubes adds to a binary mask;
    faces along the grid come out 7 % low.
    """
    padded = np.pad(mask, 1)
    crossings = (
        DIRECTION_WEIGHTS[sum(map(abs, d))]
        / math.hypot(*d)
        * np.count_nonzero(np.not_equal(*_pairs(padded, d)))
        for d in DIRECTIONS
    )
    return 2 * float(sum(crossings))


def sphericity(mask: np.ndarray) -> float:
    """Return π^⅓ (6V)^⅔ / A: the area of a ball of this volume over that of the mask."""
    if not mask.any():
        return math.nan
    return math.pi ** (1 / 3) * (6 * float(mask.sum())) ** (2 / 3) / surface_area(mask)


def axis_ratios(mask: np.ndarray) -> tuple[float, float]:
    """Return elongation and flatness: square roots of the ratios of the second moments."""
    places = np.argwhere(mask).astype(float)
    # A voxel is a cube, not a point: 1/12 keeps a sheet one voxel thick from having no thickness.
    moments = np.cov(places.T, bias=True) + np.eye(3) / 12
    third, second, first = np.linalg.eigvalsh(moments)
    return math.sqrt(second / first), math.sqrt(third / first)


def component_sizes(mask: np.ndarray) -> np.ndarray:
    """Return the voxel counts of the parts that do not touch, not even at a corner."""
    parts, _ = ndimage.label(mask, NEIGHBOURS_26)
    return np.bincount(parts.ravel())[1:]


def euler_number(mask: np.ndarray) -> int:
    """Return components − tunnels + cavities: corners − edges + faces − cubes of the voxels.

    Voxels that share a corner are connected, as in `component_sizes`.
    """
    cells = [(np.pad(mask, 1), 0)]
    # Along each axis a cell is as long as a voxel or a point between two: 2³ kinds in all.
    for axis in range(3):
        between = [
            (np.logical_or(*_pairs(c, _unit(axis))), dimensions + 1) for c, dimensions in cells
        ]
        cells += between
    # `dimensions` counts the axes along which the cell is a point; a cube has none.
    return sum((-1) ** (3 - points) * int(c.sum()) for c, points in cells)


def contact(inner: np.ndarray, outer: np.ndarray) -> float:
    """Return the share of the voxel faces around `inner` whose other side is in `outer`."""
    inner, outer = np.pad(inner, 1), np.pad(outer, 1)
    surface = touching = 0
    for direction in FACES:
        (a, b), (p, q) = _pairs(inner, direction), _pairs(outer, direction)
        surface += int((a != b).sum())
        touching += int((a & q).sum() + (b & p).sum())
    return touching / surface if surface else math.nan


def _pairs(array: np.ndarray, direction: Offset) -> tuple[np.ndarray, np.ndarray]:
    """Return two views: every voxel, and its neighbour in a direction, where both exist."""
    steps = list(zip(direction, array.shape, strict=True))
    here = tuple(slice(max(0, -d), n - max(0, d)) for d, n in steps)
    there = tuple(slice(max(0, d), n - max(0, -d)) for d, n in steps)
    return array[here], array[there]


def _unit(axis: int) -> Offset:
    x, y, z = (int(axis == k) for k in range(3))
    return x, y, z
