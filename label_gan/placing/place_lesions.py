"""Places healthy masks or tumours in a real brain.

What is made of a case depends on (seed, case id, index) and on the cohort, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from label_gan.placing.lesion_pool import LesionPool
from label_gan.placing.location_prior import weights
from label_gan.shape import rotate
from synth.base.errors import SynthError
from synth.base.seeding import mix
from synth.data.case import MODALITIES, Case
from synth.data.check import require_brain
from synth.data.labels import ED, to_scheme
from synth.data.placement import Site, find, put, site
from synth.data.prepare import background_of
from synth.data.tumour_mask import tumour_mask
from synth.data.volume import Volume
from synth.phantom.mass_effect import displace, trace_tissue

Kind = Literal["healthy", "tumour"]
LESIONS: dict[str, tuple[float, ...]] = {"healthy": (0.45, 0.45, 0.10), "tumour": (1.0,)}
"""Probability of one, two, three … components, as the predecessor drew healthy masks."""
TRIES = 20
"""Shapes for which a place is sought before a new case is given up, as in the predecessor."""


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """What is to be made of each case."""

    kind: Kind = "healthy"
    lesions: tuple[float, ...] = LESIONS["healthy"]
    mass_effect: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lesions or min(self.lesions) < 0 or abs(sum(self.lesions) - 1) > 1e-6:
            raise SynthError(
                f"--components {' '.join(f'{p:g}' for p in self.lesions)}",
                hint="probabilities of one, two, three … components, which sum to 1",
            )
        if self.mass_effect and self.kind == "healthy":
            raise SynthError(
                "--mass-effect with --kind healthy", hint="only a tumour pushes; --kind tumour"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredBrain:
    """A case, measured once for everything that is made of it."""

    case: Case
    images: Mapping[str, Volume]
    tumour: np.ndarray
    """(X, Y, Z) bool: what is there already, dilated."""
    site: Site


@dataclass(frozen=True, kw_only=True, eq=False)
class NewCase:
    """A new case: its new files by what follows the id, and its record."""

    id: str
    volumes: Mapping[str, Volume]
    record: Mapping[str, Any]


def measure(case: Case, kind: Kind, heat: np.ndarray | None) -> MeasuredBrain:
    """Read a case; everything that is read of it must be sound."""
    if kind == "healthy":
        case.path("t1n")
    names = [m for m in MODALITIES if m in case.files]
    if not names:
        raise SynthError(f"{case.id}: no scan", hint="one of t1n, t1c, t2w, t2f shows the brain")
    images = {m: case.load(m) for m in (names if kind == "tumour" else ["t1n"])}
    first, image = next(iter(images.items()))
    brain = require_brain(image, str(case.path(first)))
    for role in (*images, *(r for r in ("seg", "healthy") if r in case.files)):
        image.require_same_grid(images.get(role) or case.load(role), (first, role))
    tumour = tumour_mask(case, image)
    prior = None if heat is None else weights(heat, brain, image.affine)
    where = site(brain, tumour, image.spacing_mm, prior=prior)
    return MeasuredBrain(case=case, images=images, tumour=tumour, site=where)


def make_case(brain: MeasuredBrain, index: int, pool: LesionPool, options: MaskOptions) -> NewCase:
    """Make new case number `index` of a brain; where there is no room, only its record says so."""
    case = brain.case
    rng = np.random.default_rng(mix(options.seed, case.id, index))
    probabilities = np.array(options.lesions) / sum(options.lesions)
    count = 1 + int(rng.choice(len(probabilities), p=probabilities))
    where, lesions, parts = brain.site, [], []
    gave_up, volumes = None, {}
    for number in range(1, count + 1):
        labels, facts = _place(where, pool, options.kind, rng)
        if labels is None:
            gave_up = f"no place for component {number} of {count}: {facts}"
            break
        parts.append(facts)
        lesions.append(labels * brain.site.brain)
        where = where.occupied(labels > 0)
    else:
        tumour = options.kind == "tumour"
        volumes = _tumour(brain, lesions, options) if tumour else _healthy_mask(brain, lesions)
    record = {
        "source": case.id,
        "kind": options.kind,
        "index": index,
        "wanted": count,
        "gave_up": gave_up,
        "components": parts,
    }
    return NewCase(id=f"{case.id}-{options.kind}{index:02d}", volumes=volumes, record=record)


def _place(
    where: Site, pool: LesionPool, kind: Kind, rng: np.random.Generator
) -> tuple[np.ndarray | None, Any]:
    """Return the labels of a placed shape and its facts, or None and why."""
    voxel_ml = float(np.prod(where.spacing_mm)) / 1000
    sizes = []
    for attempt in range(1, TRIES + 1):
        shape, facts = pool.draw(rng, min(where.spacing_mm))
        labels = rotate(shape, where.spacing_mm, rng)
        if kind == "healthy":
            labels = ndimage.binary_fill_holes(labels > 0) * np.uint8(ED)
        sizes.append(float((labels > 0).sum()) * voxel_ml)
        corner = find(labels > 0, where, rng) if sizes[-1] else None
        if corner is not None:
            placed = put(labels, corner, where.brain.shape)
            return placed, facts | {"shapes_tried": attempt} | _facts(placed > 0, where, voxel_ml)
    room = len(where.candidates) * voxel_ml
    return None, (
        f"{TRIES} shapes of {min(sizes):.1f} to {max(sizes):.1f} ml tried, in a brain of "
        f"{where.brain.sum() * voxel_ml:.0f} ml, {room:.0f} ml of it far enough from the tumour"
    )


def _facts(mask: np.ndarray, where: Site, voxel_ml: float) -> dict[str, Any]:
    nearest = float(where.distance_mm[mask].min())
    inside = mask & where.brain
    return {
        "centre_voxel": [round(float(c), 1) for c in np.argwhere(inside).mean(0)],
        "volume_ml": round(float(inside.sum()) * voxel_ml, 3),
        "in_brain": round(float(inside.sum() / mask.sum()), 4),
        "distance_mm": round(nearest, 2) if np.isfinite(nearest) else None,
    }


def _healthy_mask(brain: MeasuredBrain, lesions: list[np.ndarray]) -> dict[str, Volume]:
    """Return the files of the inpainting challenge, the old tumour voided with the new holes."""
    t1n, healthy = brain.images["t1n"], np.any(lesions, axis=0)
    mask = healthy | brain.tumour
    empty = np.float32(background_of(t1n.data[0]))
    return {
        "t1n-voided": t1n.with_data(np.where(mask, empty, t1n.data[0])),
        "mask": t1n.with_data(mask),
        "mask-healthy": t1n.with_data(healthy),
        "mask-unhealthy": t1n.with_data(brain.tumour),
    }


def _tumour(
    brain: MeasuredBrain, lesions: list[np.ndarray], options: MaskOptions
) -> dict[str, Volume]:
    """Return the new label map, without the old labels, the brain, and displaced scans if asked."""
    inside, image = brain.site.brain, next(iter(brain.images.values()))
    volumes = {
        "seg": image.with_data(to_scheme(np.max(lesions, axis=0), brain.case.scheme)),
        "brain": image.with_data(inside),
    }
    if options.mass_effect:
        wheres = [trace_tissue(lesion > 0, inside, image.spacing_mm) for lesion in lesions]
        for name, scan in brain.images.items():
            data = scan.data
            for where in wheres:
                data = displace(data, where)
            volumes[f"{name}-displaced"] = scan.with_data(data)
    return volumes
