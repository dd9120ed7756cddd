"""Training items: the lesions of a cohort, each cut out and rotated.

A lesion is a group of tumour components less than 5 mm apart. For the ordered generator its box
grows with it and the voxel's millimetres are kept beside it; the alpha generator's box is fixed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from label_gan.config import Config
from label_gan.lesion_size import LOG_VOLUME, SPREAD, size_of
from label_gan.shape import Shape, signed_distance
from synth.base.errors import SynthError
from synth.data.cache import ArrayCache, Arrays, fingerprint
from synth.data.case import Case
from synth.data.labels import ET, NCR, to_classes

NEIGHBOUR_MM = 5.0
ROOM = 1.05  # the box is at least this times the ball about the lesion
SPARE = 1.3  # distances are kept this much beyond where they are cut, for the deformation

log = logging.getLogger(__name__)


def cut_lesions(
    labels: np.ndarray, spacing_mm: Sequence[float], smallest_ml: float
) -> list[np.ndarray]:
    """Return each group of neighbouring components, cut to its box, largest first."""
    tumour = labels > 0
    if not tumour.any():
        return []
    near = ndimage.distance_transform_edt(~tumour, sampling=spacing_mm) <= NEIGHBOUR_MM / 2
    groups, _ = ndimage.label(near, np.ones((3, 3, 3)))
    groups[~tumour] = 0
    lesions: list[np.ndarray] = []
    for number, box in enumerate(ndimage.find_objects(groups), start=1):
        cut = np.where(groups[box] == number, labels[box], 0).astype(np.uint8)
        if (cut > 0).sum() * np.prod(spacing_mm) / 1000 >= smallest_ml:
            lesions.append(cut)
    return sorted(lesions, key=np.count_nonzero, reverse=True)


class LesionData:
    """The lesions of cases as items for the loop: `maps`, `size`."""

    def __init__(
        self, cases: Sequence[Case], config: Config, *, cache: ArrayCache | None = None
    ) -> None:
        self.config = config
        self.fixed = config.architecture == "alpha"  # the box is the same for every lesion
        self.cache = cache or ArrayCache()
        self.lesions = [lesion for case in cases for lesion in self._lesions_of(case)]
        if not self.lesions:
            raise SynthError(
                f"no tumour to learn from in {len(cases)} cases",
                hint=f"each needs a seg file; lesions below {config.smallest_ml} ml do not count"
                + (f", nor those beyond {config.crop_mm} mm" if self.fixed else ""),
            )

    def __len__(self) -> int:
        return len(self.lesions)

    def item(self, index: int, seed: int) -> dict[str, Tensor]:
        """Return one lesion's maps on the network's grid, and its size."""
        lesion = self.lesions[index]
        size = np.array(lesion["size"])
        if self.fixed:
            return {"maps": torch.from_numpy(np.array(lesion["maps"])), "size": torch.tensor(size)}
        rng = np.random.default_rng(seed)
        stretch = np.exp(self.config.stretch * rng.standard_normal(3))
        size[LOG_VOLUME] += np.log(stretch).sum() / SPREAD
        maps = self._read_rotated(lesion, stretch, rng)
        return {"maps": torch.from_numpy(maps), "size": torch.from_numpy(size)}

    def shapes(self) -> Iterator[Shape]:
        """Yield the lesions as they are, on the cohort's spacing."""
        for lesion in self.lesions:
            mean = float(np.prod(lesion["spacing_mm"]) ** (1 / 3))
            yield Shape(labels=np.array(lesion["labels"]), spacing_mm=mean)

    def spacing_mm(self) -> float:
        """Return the cohort's typical voxel."""
        return float(np.median([shape.spacing_mm for shape in self.shapes()]))

    def _lesions_of(self, case: Case) -> list[Arrays]:
        c = self.config
        settings = (c.architecture, c.grid, c.box, c.reach, c.smallest_ml, c.crop_mm, c.channels)
        recipe = fingerprint({"seg": case.path("seg")}) + repr((settings, case.scheme))
        packed = self.cache.get(f"{case.id}-lesions", recipe, lambda: self._prepare(case))
        lesions: dict[int, Arrays] = {}
        for key, array in packed.items():
            number, name = key.split("_", 1)
            lesions.setdefault(int(number), {})[name] = array
        return [lesions[number] for number in sorted(lesions)]

    def _prepare(self, case: Case) -> Arrays:
        """Return all arrays of all lesions of a case, as "number_name"."""
        volume = case.load("seg")
        spacing = np.asarray(volume.spacing_mm, np.float64)
        cuts = cut_lesions(
            to_classes(volume.data[0], case.scheme), volume.spacing_mm, self.config.smallest_ml
        )
        lesions = []
        for labels in cuts:
            size = size_of(labels, float(np.prod(volume.spacing_mm)))
            maps = (self._soft_regions if self.fixed else self._distances)(labels, spacing)
            if maps:
                lesions.append({"labels": labels, "spacing_mm": spacing, "size": size, **maps})
        if len(lesions) < len(cuts):
            log.info("%s: a lesion beyond %g mm is left out", case.id, self.config.crop_mm)
        return {f"{n}_{k}": v for n, lesion in enumerate(lesions) for k, v in lesion.items()}

    def _distances(self, labels: np.ndarray, spacing: np.ndarray) -> Arrays:
        """Signed distances of WT, TC and NCR in mm on the source's grid, and the box's voxel."""
        places = np.argwhere(labels > 0) * spacing
        centre = (places.max(0) + places.min(0)) / 2
        radius = np.linalg.norm(places - centre, axis=1).max() + spacing.max() / 2
        volume_mm3 = len(places) * spacing.prod()
        step = max(self.config.box * volume_mm3 ** (1 / 3), 2 * ROOM * radius) / self.config.grid
        reach = SPARE * self.config.reach * step
        margin = np.ceil(reach / spacing).astype(int) + 1
        padded = np.pad(labels, [(m, m) for m in margin])
        masks = (padded > 0, np.isin(padded, (NCR, ET)), padded == NCR)
        maps = np.stack([signed_distance(m, spacing) for m in masks]).clip(-reach, reach)
        return {
            "maps": maps.astype(np.float16),
            "step_mm": np.array(step),
            "centre": centre / spacing + margin,
        }

    def _read_rotated(
        self, lesion: Arrays, stretch: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:  # (3, X, Y, Z)
        """Read the distances on the network's grid: rotated, flipped, stretched, bent."""
        c, step = self.config, float(lesion["step_mm"])
        matrix = Rotation.random(rng=rng).as_matrix() * rng.choice([-1.0, 1.0])
        line = np.arange(c.grid) - (c.grid - 1) / 2
        places = np.stack(np.meshgrid(line, line, line, indexing="ij")) * step  # (3, X, Y, Z) mm
        if c.elastic:
            coarse = rng.standard_normal((1, 3, 5, 5, 5)) * c.elastic * c.grid * step
            bent = F.interpolate(torch.from_numpy(coarse), (c.grid,) * 3, mode="trilinear")
            places = places + bent[0].numpy()
        scale = np.prod(stretch) ** (1 / 3)  # the box grows with the lesion
        places = np.tensordot(matrix, places * (scale / stretch)[:, None, None, None], 1)
        voxels = places / lesion["spacing_mm"][:, None, None, None]
        voxels += lesion["centre"][:, None, None, None]
        # Trilinear; beyond the edge as at the edge.
        last = np.array(lesion["maps"].shape[1:], np.float64)[:, None, None, None] - 1
        grid = torch.from_numpy(voxels / last * 2 - 1).movedim(0, -1).flip(-1)[None].float()
        maps = torch.from_numpy(np.float32(lesion["maps"]))[None]
        read = F.grid_sample(maps, grid, padding_mode="border", align_corners=True)[0].numpy()
        return (read / (c.reach * step)).clip(-1, 1)

    def _soft_regions(self, labels: np.ndarray, spacing: np.ndarray) -> Arrays:
        """TC, WT, ET as shares of each voxel of the fixed box; nothing for what exceeds it."""
        edge = np.maximum(np.round(self.config.crop_mm / spacing).astype(int), 1)
        if (labels.shape > edge).any():
            return {}
        before = (edge - labels.shape) // 2
        pads = list(zip(before, edge - labels.shape - before, strict=True))
        padded = torch.from_numpy(np.pad(labels, pads))
        tc, wt, et = (padded == NCR) | (padded == ET), padded > 0, padded == ET
        chosen = [wt] if self.config.channels == 1 else [tc, wt, et]
        chosen += [torch.zeros_like(wt)] * (self.config.channels == 4)  # RC is not in our numbers
        regions = torch.stack(chosen)[None].float()
        soft = F.interpolate(regions, (self.config.grid,) * 3, mode="area")
        return {"maps": soft[0].numpy()}
