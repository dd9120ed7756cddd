"""Training items: four scans on the network's grid, standardised, and their regions.

Intensities are z-scores of the brain divided by three, so that tissue lies in about [-1, 1], with
air at -1. Both ends come from tissue. The scale of `synth.data.prepare`, which pins air at -1 and
bright tissue at +1, would follow an offset of the scanner or a bright tumour; with z-scores a scan
and a generated one, whatever their units, look alike to the network.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmentation.augment import AIR, apply_warp, crop, draw_warp, flip, vary_intensities
from segmentation.config import Config
from synth.base.errors import SynthError
from synth.base.seeding import mix
from synth.data.cache import Arrays, CaseData, fingerprint
from synth.data.case import MODALITIES, Case
from synth.data.check import require_brain
from synth.data.labels import REGIONS, regions_of
from synth.data.prepare import Frame, prepare
from synth.data.volume import Volume

log = logging.getLogger(__name__)

TRIM = 0.5  # per cent of the brain left out at either end: vessels, artefacts
SIGMAS = 3.0  # standard deviations from the mean to ±1
PLACES = 4096  # voxels remembered of each region, to centre crops on


def prepare_scans(source: Case | Volume | Sequence[Volume], config: Config) -> tuple[Tensor, Frame]:
    """Return (image (4, x, y, z) float32 on the network's grid, the frame that knows the way back).

    Args:
        source: a case, or its four scans in the order t1n, t1c, t2w, t2f, stacked or apart.
        config: the network's.
    """
    image, _, frame = _on_grid(*_scans(source), config)
    return torch.from_numpy(image), frame


def standardise(image: np.ndarray, brain: np.ndarray) -> np.ndarray:  # (C, x, y, z), (x, y, z)
    """Return brain z-scores / 3, not below air's -1; whatever gain and offset the scan has."""
    result = np.full(image.shape, AIR, np.float32)
    for modality, channel, out in zip(MODALITIES, image, result, strict=False):
        values = channel[brain]
        low, high = np.percentile(values, (TRIM, 100 - TRIM))
        core = values[(values >= low) & (values <= high)]
        if not core.std() > 0:
            raise SynthError(
                f"{modality} has one value in the whole brain", hint="is it a mask? Give the scan"
            )
        out[brain] = np.maximum((values - core.mean()) / (SIGMAS * core.std()), AIR)
    return result


class SegmentationData(CaseData[Config]):
    """Cases as items for the loop: `image` (4, x, y, z) float32, `regions` (3, x, y, z) bool.

    Items are crops of the size of the model's patch, or whole cases if they are fixed. Every case
    is prepared when this is built, so that a bad one speaks up before training begins.
    """

    roles = (*MODALITIES, "seg")

    def __init__(
        self, cases: Sequence[Case], config: Config, *, fixed: bool = False, **options: Any
    ) -> None:
        super().__init__(cases, config, fixed=fixed, **options)
        sick = [index for index in range(len(self)) if len(self.prepare_case(index)["WT"])]
        log.info("%d cases are prepared, %d with a tumour", len(self), len(sick))
        if self.cases and not sick and not fixed:
            raise SynthError(
                f"none of {len(self)} training cases has a tumour in its labels",
                hint="are these label maps, in the right scheme? Look at one with `synth check`",
            )

    def item(self, index: int, seed: int) -> dict[str, Tensor]:
        """Return a crop drawn and varied by `seed`, or the whole case if fixed."""
        arrays = self.prepare_case(index)
        if self.fixed:
            image = np.array(arrays["image"])
            regions = np.array(arrays["regions"])
        else:
            image, regions = self._crop(arrays, np.random.default_rng(seed))
        assert (image > AIR).any(), f"{self.cases[index].id}: an empty item"
        return {"image": torch.from_numpy(image), "regions": torch.from_numpy(regions)}

    def prepare_case(self, index: int) -> Arrays:
        """Return a case on the network's grid: image (float32), regions, and voxels of each."""
        case = self.cases[index]
        made = (self.config.spacing_mm, case.scheme, TRIM, PLACES, "float32")
        recipe = fingerprint(case.files) + repr(made)
        return self.cache.get(f"{case.id}-regions", recipe, lambda: self._prepare(case))

    def _prepare(self, case: Case) -> Arrays:
        try:
            scans, name = _scans(case)
            image, brain, frame = _on_grid(scans, name, self.config)
            labels = case.load("seg")
            scans[0].require_same_grid(labels, (MODALITIES[0], "seg"))
        except SynthError as error:
            if case.id in error.message:
                raise
            raise SynthError(f"{case.id}: {error.message}", hint=error.hint) from error
        native = regions_of(labels.data[0], case.scheme)
        regions = frame.bring(native, nearest=True)
        self._require_left(case, native, regions)
        arrays = {"image": image, "regions": regions}
        for name, mask in zip(("brain", *REGIONS), (brain, *regions), strict=True):
            arrays[name] = _some_voxels(mask, mix(case.id, name))
        return arrays

    def _require_left(self, case: Case, native: np.ndarray, regions: np.ndarray) -> None:
        """Refuse a tumour that is not on the network's grid; mention a part that is not."""
        for name, wanted, mask in zip(REGIONS, native, regions, strict=True):
            voxels = np.count_nonzero(wanted)
            if not voxels or mask.any():
                continue
            lost = f"{case.id}: none of the {voxels} voxels of {name} is left on the network's grid"
            if name == "WT":
                raise SynthError(
                    f"{lost} of {self.config.spacing_mm:g} mm",
                    hint="a smaller --spacing-mm keeps small tumours; if this one is not small, "
                    "do its labels lie outside the brain?",
                )
            log.warning("%s of %g mm", lost, self.config.spacing_mm)

    def _crop(self, arrays: Arrays, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        c, shape = self.config, np.array(arrays["image"].shape[1:])
        anchor = self._anchor(arrays, rng)
        patch = np.array(c.patch)
        # The anchor lies anywhere in the middle half of the crop, so that places vary.
        start = anchor - rng.integers(patch // 4, patch - patch // 4)
        start = np.clip(start, np.minimum(shape - patch, 0), np.maximum(shape - patch, 0))
        bend = draw_warp(c.patch, rng) if c.augment == "full" else None
        if bend is None:
            image = crop(arrays["image"], start, c.patch, AIR)
            regions = crop(arrays["regions"], start, c.patch, False)
        else:
            centre = start + (patch - 1) / 2
            image, regions = apply_warp(arrays["image"], arrays["regions"], centre, bend)
        if c.augment != "none":
            image, regions = flip(image, regions, rng)
            image = vary_intensities(image, c.augment, rng)
        return np.ascontiguousarray(image), np.ascontiguousarray(regions)

    def _anchor(self, arrays: Arrays, rng: np.random.Generator) -> np.ndarray:
        """Return a voxel the crop is to show: of a region, each as often as the others, or brain.

        Only regions that this case has are chosen.
        """
        places = arrays["brain"]
        wanted, turn = rng.random() < self.config.tumour_crops, rng.random()
        found = [arrays[name] for name in REGIONS if len(arrays[name])]
        if wanted and found:
            places = found[int(turn * len(found))]
        return np.array(places[rng.integers(len(places))], int)


def _on_grid(
    scans: Sequence[Volume], name: str, config: Config
) -> tuple[np.ndarray, np.ndarray, Frame]:
    """Return (image, brain, frame) on the network's grid."""
    for m, scan in zip(MODALITIES[1:], scans[1:], strict=True):
        scans[0].require_same_grid(scan, (MODALITIES[0], m))
    brain = np.zeros(scans[0].shape, bool)
    for m, scan in zip(MODALITIES, scans, strict=True):
        brain |= require_brain(scan, f"{name}{m}")
    image = scans[0].with_data(np.concatenate([s.data for s in scans]))
    scaled = prepare(image, divisor=1, margin_mm=0, spacing_mm=config.spacing_mm)
    inside = scaled.frame.bring(brain[None], nearest=True)[0]
    return standardise(scaled.data, inside), inside, scaled.frame


def _scans(source: Case | Volume | Sequence[Volume]) -> tuple[list[Volume], str]:
    """Return the four scans, and what to put before their names in messages."""
    if isinstance(source, Case):
        return [source.load(m) for m in MODALITIES], f"{source.id}: "
    if isinstance(source, Volume):
        source = [source.with_data(channel) for channel in source.data]
    if len(source) != len(MODALITIES):
        raise SynthError(f"{len(source)} scans", hint=f"wanted: {', '.join(MODALITIES)}")
    return list(source), ""


def _some_voxels(mask: np.ndarray, seed: int) -> np.ndarray:  # (n, 3)
    """Return up to `PLACES` voxels of a mask, the same ones every time."""
    voxels = np.argwhere(mask).astype(np.int16)
    if len(voxels) > PLACES:
        chosen = np.random.default_rng(seed).choice(len(voxels), PLACES, replace=False)
        voxels = voxels[np.sort(chosen)]
    return voxels
