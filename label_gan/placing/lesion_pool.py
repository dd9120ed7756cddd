"""The shapes to place: lesions of real cases, and drawn ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from label_gan.shape import Shape
from synth.base.errors import SynthError
from synth.data.case import Case
from synth.data.labels import ED, to_classes
from synth.data.placement import ANY_NEIGHBOUR
from synth.data.prepare import SAME_SPACING
from synth.data.tumour_mask import MIN_COMPONENT_MM3
from synth.data.volume import Volume

MIN_HOLE_VOXELS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class LesionPool:
    """Draws a shape: a component of a random real case, or one of the generator's."""

    donors: Sequence[Case]
    holes: bool
    """Use given healthy masks as well as tumours; they carry no labels of sub-regions."""
    model: Path | None = None
    generated: float = 0.5
    """Share of shapes that the model draws, where there is one."""
    volume_ml: tuple[float, float] | None = None
    truncation: float = 1.0
    device: str = "cpu"

    def draw(self, rng: np.random.Generator, spacing_mm: float) -> tuple[Shape, dict[str, Any]]:
        """Return a shape, a generated one on voxels of this size, and what is recorded of it."""
        if self.model is None or rng.random() >= self.generated:
            return self._draw_real(rng)
        from label_gan import generate

        ((shape, facts),) = generate.draw(
            load_model(self.model, self.device),
            1,
            seed=int(rng.integers(2**62)),
            truncation=self.truncation,
            volume_ml=self.volume_ml,
            spacing_mm=spacing_mm,
        )
        return shape, {"shape": f"generated: {shape.source}", **facts}

    def require_shape(self) -> None:
        """Refuse a cohort without shapes before anything is made."""
        if self.model is None or self.generated < 1:
            self._draw_real(np.random.default_rng(0))

    def _draw_real(self, rng: np.random.Generator) -> tuple[Shape, dict[str, Any]]:
        """Draw a case, then one of its components; cases without a fitting one are passed over."""
        low, high = self.volume_ml or (0.0, np.inf)
        unreadable = []
        for index in rng.permutation(len(self.donors)):
            donor = self.donors[index]
            shapes, problem = lesions_of(donor, self.holes)
            if problem:
                unreadable.append(problem)
            shapes = [s for s in shapes if low <= s.volume_ml() <= high]
            if shapes:
                shape = shapes[int(rng.integers(len(shapes)))]
                return shape, {"shape": shape.source, "donor": donor.id, "unreadable": unreadable}
        kind = "tumour or healthy mask" if self.holes else "tumour label"
        size = f" of {low:g} to {high:g} ml" if self.volume_ml else ""
        raise SynthError(
            f"no {kind}{size} to take a shape from in {len(self.donors)} cases",
            hint="give a trained --model and --only-generated, or a cohort with tumours",
        )


def lesions_of(case: Case, holes: bool) -> tuple[list[Shape], str]:
    """Return a case's lesions, and why there are none where a file cannot be used."""
    paths = tuple(case.files.get(role) for role in ("seg", "healthy" if holes else ""))
    return _read_lesions(case.id, case.scheme, *paths)


@functools.lru_cache(maxsize=512)
def _read_lesions(
    name: str, scheme: str, seg: Path | None, healthy: Path | None
) -> tuple[list[Shape], str]:
    shapes = []
    try:
        if seg is not None:
            volume = Volume.load_labels(seg)
            labels = to_classes(volume.data[0], scheme, name=str(seg))
            smallest = MIN_COMPONENT_MM3 / 1000 / volume.voxel_ml
            shapes += _components(labels, volume.spacing_mm, smallest, f"{name} tumour")
        if healthy is not None:
            volume = Volume.load_mask(healthy)
            labels = volume.data[0] * np.uint8(ED)
            shapes += _components(
                labels, volume.spacing_mm, MIN_HOLE_VOXELS, f"{name} healthy mask"
            )
    except SynthError as error:
        return [], error.message
    return shapes, ""


def _components(
    labels: np.ndarray, spacing_mm: Sequence[float], smallest: float, source: str
) -> list[Shape]:
    """Return the connected components as shapes on isotropic grids."""
    numbers, _ = ndimage.label(labels > 0, ANY_NEIGHBOUR)
    shapes = []
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        mine = numbers[box] == number
        if mine.sum() < smallest:
            continue
        part, step = labels[box] * mine, min(spacing_mm)
        if max(spacing_mm) > (1 + SAME_SPACING) * step:  # thick slices: no shape of theirs is known
            zoom = np.array(spacing_mm) / step
            part = ndimage.zoom(part, zoom, order=0, grid_mode=True, mode="nearest")
        shapes.append(Shape(labels=part, spacing_mm=step, source=f"{source} {len(shapes)}"))
    return shapes


@functools.lru_cache(maxsize=1)
def load_model(path: Path, device: str) -> Any:
    """Load the generator of shapes, once a process."""
    import torch

    from label_gan import generate
    from synth.base.devices import pick

    torch.set_num_threads(1)  # sums in one order: the same shapes whatever the machine does
    return generate.load(path, pick(device))
