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
from label_gan.shape import Shape
from synth.base.errors import SynthError
from synth.data.cache import ArrayCache, Arrays, fingerprint
from synth.data.case import Case
from synth.data.labels import ET, NCR, to_classes

NEIGHBOUR_MM = 5.0
ROOM = 1.05  # the box is at least this times the ball about the lesion
SPARE = 1.3  # distances are kept this much beyond where they are cut, for the deformation

log = logging.getLogger(__name__)


def lesions(labels: np.ndarray, spacing_mm: Sequence[float], smallest_ml: float) -> list[Arrays]:
    """Return each group of neighbouring components, cut to its box, largest first."""
    tumour = labels > 0
    if not tumour.any():
        return []
    near = ndimage.distance_transform_edt(~tumour, sampling=spacing_mm) <= NEIGHBOUR_MM / 2
    groups, _ = ndimage.label(near, np.ones((3, 3, 3)))
    groups[~tumour] = 0
    found: list[np.ndarray] = []
    for number, box in enumerate(ndimage.find_objects(groups), start=1):
        cut = np.where(groups[box] == number, labels[box], 0).astype(np.uint8)
        if (cut > 0).sum() * np.prod(spacing_mm) / 1000 >= smallest_ml:
            found.append(cut)
    found.sort(key=np.count_nonzero, reverse=True)
    spacing = np.asarray(spacing_mm, np.float64)
    return [{"labels": cut, "spacing_mm": spacing} for cut in found]


class LesionData:
    """The lesions of cases as items for the loop: `maps`, `size`."""

    def __init__(
        self, cases: Sequence[Case], config: Config, *, cache: ArrayCache | None = None
    ) -> None:
        self.config = config
        self.cache = cache or ArrayCache()
        self.lesions = [lesion for case in cases for lesion in self._of(case)]
        if not self.lesions:
            raise SynthError(
                f"no tumour to learn from in {len(cases)} cases",
                hint=f"each needs a seg file; lesions below {config.smallest_ml} ml do not count"
                + (f", nor those beyond {config.crop_mm} mm" if self.fixed else ""),
            )

    @property
    def fixed(self) -> bool:
        """Whether the box is the same for every lesion."""
        return self.config.architecture == "alpha"

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
        maps = self._turned(lesion, stretch, rng)
        return {"maps": torch.from_numpy(maps), "size": torch.from_numpy(size)}

    def shapes(self) -> Iterator[Shape]:
        """Yield the lesions as they are, on the cohort's spacing."""
        for lesion in self.lesions:
            mean = float(np.prod(lesion["spacing_mm"]) ** (1 / 3))
            yield Shape(labels=np.array(lesion["labels"]), spacing_mm=mean)

    def sizes(self) -> np.ndarray:  # (N, 6)
        """Return the size of every lesion."""
        return np.stack([lesion["size"] for lesion in self.lesions])

    def spacing_mm(self) -> float:
        """Return the cohort's typical voxel."""
        return float(np.median([shape.spacing_mm for shape in self.shapes()]))

    def _of(self, case: Case) -> list[Arrays]:
        c = self.config
        settings = (c.architecture, c.grid, c.box, c.reach, c.smallest_ml, c.crop_mm, c.channels)
        recipe = fingerprint({"seg": case.path("seg")}) + repr((settings, case.scheme))
        packed = self.cache.get(f"{case.id}-lesions", recipe, lambda: self._prepare(case))
        count = 1 + max((int(key.split("_")[0]) for key in packed), default=-1)
        return [
            {k.split("_", 1)[1]: v for k, v in packed.items() if k.startswith(f"{n}_")}
            for n in range(count)
        ]

    def _prepare(self, case: Case) -> Arrays:
        volume = case.load("seg")
        labels = to_classes(volume.data[0], case.scheme)
        found = lesions(labels, volume.spacing_mm, self.config.smallest_ml)
        for lesion in found:
            lesion["size"] = size_of(lesion["labels"], float(np.prod(volume.spacing_mm)))
            lesion |= self._soft_regions(lesion) if self.fixed else self._distances(lesion)
        kept = [lesion for lesion in found if "maps" in lesion]
        if len(kept) < len(found):
            log.info("%s: a lesion beyond %g mm is left out", case.id, self.config.crop_mm)
        return {f"{n}_{k}": v for n, lesion in enumerate(kept) for k, v in lesion.items()}

    def _distances(self, lesion: Arrays) -> Arrays:
        """Signed distances of WT, TC and NCR in mm on the source's grid, and the box's voxel."""
        labels, spacing = lesion["labels"], lesion["spacing_mm"]
        places = np.argwhere(labels > 0) * spacing
        centre = (places.max(0) + places.min(0)) / 2
        radius = np.linalg.norm(places - centre, axis=1).max() + spacing.max() / 2
        volume_mm3 = len(places) * spacing.prod()
        step = max(self.config.box * volume_mm3 ** (1 / 3), 2 * ROOM * radius) / self.config.grid
        reach = SPARE * self.config.reach * step
        margin = np.ceil(reach / spacing).astype(int) + 1
        padded = np.pad(labels, [(m, m) for m in margin])
        masks = (padded > 0, np.isin(padded, (NCR, ET)), padded == NCR)
        maps = np.stack([_distance_mm(m, spacing) for m in masks]).clip(-reach, reach)
        return {
            "maps": maps.astype(np.float16),
            "step_mm": np.array(step),
            "centre": centre / spacing + margin,
        }

    def _turned(
        self, lesion: Arrays, stretch: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:  # (3, X, Y, Z)
        """Read the distances on the network's grid: turned, flipped, stretched, bent."""
        c, step = self.config, float(lesion["step_mm"])
        turn = Rotation.random(rng=rng).as_matrix() * rng.choice([-1.0, 1.0])
        line = np.arange(c.grid) - (c.grid - 1) / 2
        places = np.stack(np.meshgrid(line, line, line, indexing="ij")) * step  # (3, X, Y, Z) mm
        if c.elastic:
            coarse = rng.standard_normal((1, 3, 5, 5, 5)) * c.elastic * c.grid * step
            bent = F.interpolate(torch.from_numpy(coarse), (c.grid,) * 3, mode="trilinear")
            places = places + bent[0].numpy()
        scale = np.prod(stretch) ** (1 / 3)  # the box grows with the lesion
        places = np.tensordot(turn, places * (scale / stretch)[:, None, None, None], 1)
        voxels = places / lesion["spacing_mm"][:, None, None, None]
        voxels += lesion["centre"][:, None, None, None]
        return (_read(lesion["maps"], voxels) / (c.reach * step)).clip(-1, 1)

    def _soft_regions(self, lesion: Arrays) -> Arrays:
        """TC, WT, ET as shares of each voxel of the fixed box; nothing for what exceeds it."""
        edge = np.maximum(np.round(self.config.crop_mm / lesion["spacing_mm"]).astype(int), 1)
        labels = lesion["labels"]
        if (labels.shape > edge).any():
            return {}
        before = (edge - labels.shape) // 2
        pads = list(zip(before, edge - labels.shape - before, strict=True))
        padded = torch.from_numpy(np.pad(labels, pads))
        tc, wt, et = (padded == NCR) | (padded == ET), padded > 0, padded == ET
        chosen = [wt] if self.config.channels == 1 else [tc, wt, et]
        chosen += [torch.zeros_like(wt)] * (self.config.channels == 4)  # RC is not in our numbers
        soft = F.interpolate(
            torch.stack(chosen)[None].float(), (self.config.grid,) * 3, mode="area"
        )
        return {"maps": soft[0].numpy()}


def _read(maps: np.ndarray, voxels: np.ndarray) -> np.ndarray:  # (C, …), (3, X, Y, Z)
    """Read maps at voxel coordinates, trilinearly; beyond the edge as at the edge."""
    last = np.array(maps.shape[1:], np.float64)[:, None, None, None] - 1
    grid = torch.from_numpy(voxels / last * 2 - 1).movedim(0, -1).flip(-1)[None].float()
    source = torch.from_numpy(np.float32(maps))[None]
    return F.grid_sample(source, grid, padding_mode="border", align_corners=True)[0].numpy()


def _distance_mm(mask: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Signed distance in millimetres on any grid; far outside where the mask is empty."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    half = float(spacing_mm.min()) / 2
    inside = ndimage.distance_transform_edt(mask, sampling=spacing_mm)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    return np.where(mask, half - inside, outside - half)
