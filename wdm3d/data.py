"""Training items: a case, a healthy mask placed on the fly by the official rule, its view.

The tumour, dilated, is unknown in every item, as it is in use; the truth is known in the healthy
mask only, and only there the loss looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from synth.base.errors import SynthError
from synth.base.seeding import mix
from synth.data.cache import Arrays, CaseData, bias_field, fingerprint, gamma
from synth.data.case import Case
from synth.data.fill import mirror_axis
from synth.data.placement import ANY_NEIGHBOUR, Site, components, place, site
from synth.data.prepare import HIGH_PERCENTILE, brain_mask, prepare
from synth.data.tumour_mask import tumour_mask
from synth.metrics.image import intensity_window
from wdm3d.boxes import box_around, crop
from wdm3d.config import Config
from wdm3d.scene import BACKGROUND, Scene, brain_frame, view


class InpaintingData(CaseData[Config]):
    """Cases with known healthy tissue, as items for the loop.

    If they are fixed, each case's own healthy mask is used, and nothing is varied.

    Args:
        cases: each with the configured contrasts, and a tumour (unhealthy mask or seg) if any.
        config: the model's.
        pool: shapes to place; default the tumours and healthy masks of these cases.
        **options: cache and fixed.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        config: Config,
        *,
        pool: Sequence[np.ndarray] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(cases, config, **options)
        self.pool = list(pool or ()) if pool or self.fixed else self._shapes()
        self._sites: dict[int, Site] = {}

    def item(self, index: int, seed: int) -> dict[str, Tensor]:
        """Return one item; when a mask finds no room, the seed goes on to another case."""
        for attempt in range(32):
            drawn = self._draw((index + attempt) % len(self), mix(seed, attempt))
            if drawn is not None:
                return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in drawn.items()}
        raise SynthError(
            "no healthy mask found a place in 32 cases",
            hint="are the masks too large for these brains, or the tumours everywhere?",
        )

    def prepared(self, index: int) -> Arrays:
        """Return a case's arrays in the model's frame: image, brain, unhealthy, healthy, axis."""
        case = self.cases[index]
        return self.cache.get(case.id, self.recipe_of(index), lambda: self._prepare(case))

    def recipe_of(self, index: int) -> str:
        """Return text that changes whenever a case's prepared arrays do."""
        files = self.cases[index].files
        return fingerprint(files) + repr((self.config.spacing_mm, self.config.modalities))

    def _prepare(self, case: Case) -> Arrays:
        image = case.load_scans(self.config.modalities)
        unhealthy = tumour_mask(case, image)
        prepared = prepare(image, known=~unhealthy, divisor=2, spacing_mm=self.config.spacing_mm)
        brain = prepared.frame.bring(brain_mask(image)[None], nearest=True)[0]
        sick = prepared.frame.bring(unhealthy[None], nearest=True)[0]
        arrays = {"image": prepared.data, "brain": brain, "unhealthy": sick}
        if "healthy" in case.files:
            healthy = case.load("healthy").data
            arrays["healthy"] = prepared.frame.bring(healthy, nearest=True)[0]
            voided = np.where(healthy[0] | unhealthy, 0, image.data[0])
            low, high = prepared.low[0], prepared.high[0]
            window = (np.array(intensity_window(voided)) - low) * (2 / (high - low)) - 1
            arrays["window"] = window.astype(np.float32)
        arrays["axis_sum"] = np.array(mirror_axis(prepared.data[0], ~sick))
        return arrays

    def _shapes(self) -> list[np.ndarray]:
        shapes = []
        for index in range(len(self)):
            arrays = self.prepared(index)
            own = self.cases[index]
            # A made case repeats the tumour of the case it was made from.
            for role in ("healthy",) if own.is_made else ("unhealthy", "healthy"):
                if role in arrays:
                    shapes += components(arrays[role], min_voxels=8)
        limit = 0.75 * self.config.crop  # larger shapes would leave the network no context
        return [s for s in shapes if max(s.shape) <= limit]

    def _draw(self, index: int, seed: int) -> Arrays | None:
        arrays = self.prepared(index)
        rng = np.random.default_rng(seed)
        given = not self.fixed and self._has_given_mask(index)
        if self.fixed or given:
            roi = cast(np.ndarray, arrays.get("healthy"))
            assert roi is not None, "validation needs mask-healthy"
        else:
            placed = place(self.pool, self._site(index), rng, scale=self.config.shape_scale)
            if placed is None:
                return None
            roi = placed
        image = np.asarray(arrays["image"])
        if self.config.augment and not self.fixed:
            image = bias_field(gamma(image, rng), rng)
        hole = roi | arrays["unhealthy"]
        if given:  # the box sees one part; the others are holes beside it, as in use
            if not roi.any():  # it fell between the voxels of the model's grid
                return None
            roi = _random_part(roi, rng)
        known = arrays["brain"] & ~hole
        centre, reach = brain_frame(known)
        scene = Scene(
            image=fitted(image, known),
            hole=hole,
            axis_sum=int(arrays["axis_sum"]),
            centre=centre,
            reach=reach,
        )
        if self.fixed:
            window = (arrays["window"] + 1) * gains(image, known)[0, 0, 0] - 1
            return item_of(scene, roi, self.config, None) | {"window": window}
        if self.config.augment and rng.random() < 0.5:
            scene, roi = flipped(scene), roi[::-1]
        return item_of(scene, roi, self.config, rng)

    def _has_given_mask(self, index: int) -> bool:
        """Whether a training case comes with the mask that it is to be trained on."""
        case = self.cases[index]
        return "healthy" in case.files and (case.is_made or self.config.given_masks == "all")

    def _site(self, index: int) -> Site:
        if index not in self._sites:
            arrays = self.prepared(index)
            spacing = (self.config.spacing_mm,) * 3
            self._sites[index] = site(arrays["brain"], arrays["unhealthy"], spacing)
        return self._sites[index]


def _random_part(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the connected component of a random voxel."""
    numbers, _ = ndimage.label(mask, ANY_NEIGHBOUR)
    return numbers == numbers.ravel()[rng.choice(np.flatnonzero(mask))]


def fitted(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Refit the intensity scale on what is known beside the hole, as inference does."""
    return (image + 1) * gains(image, known) - 1


def gains(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(C, 1, 1, 1): what stretches known tissue, seen from background -1, to +1 again."""
    high = np.array([np.percentile(c[known], HIGH_PERCENTILE) for c in image])
    return np.float32(2 / (high + 1)).reshape(-1, 1, 1, 1)


def flipped(scene: Scene) -> Scene:
    """Return the scene with left and right exchanged."""
    last = scene.hole.shape[0] - 1
    return Scene(
        image=scene.image[:, ::-1],
        hole=scene.hole[::-1],
        axis_sum=2 * last - scene.axis_sum,
        centre=np.array([last - scene.centre[0], *scene.centre[1:]]),
        reach=scene.reach,
    )


def item_of(
    scene: Scene, roi: np.ndarray, config: Config, rng: np.random.Generator | None
) -> Arrays:
    """Crop a scene about its region: truth and view; `rng` shifts the box a little."""
    edge = config.crop
    box = box_around(roi, edge, config.divisor)
    if rng is not None:
        shift = rng.integers(-edge // 16, edge // 16 + 1, size=3) * 2  # the wavelet's grid is even
        # One size fits a batch: the box never grows in training.
        box = tuple(
            slice(m + int(d), m + int(d) + edge)
            for m, d in zip(((s.start + s.stop - edge) // 2 for s in box), shift, strict=True)
        )
    arrays = view(scene, roi, box, config)
    truth = scene.image
    if config.mode != "default":  # the unconditional model learns brains as they are
        truth = np.where(scene.hole & ~roi, np.float32(BACKGROUND), truth)
    return arrays | {"truth": crop(truth, box, BACKGROUND)}
