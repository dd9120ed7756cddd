"""Training items: four scans of a case in the model's box, and its class map.

The box is cut or padded about the brain, never squeezed; every step is a
`synth.data.prepare.Frame`, which knows the way back to the file's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ddpm_lora.conditioning import BRAIN, class_map
from ddpm_lora.config import Config
from ddpm_lora.state_space import BACKGROUND
from synth.base.errors import SynthError
from synth.data.cache import Arrays, CaseData, fingerprint
from synth.data.case import MODALITIES, Case
from synth.data.prepare import Frame, background_of, brain_mask, prepare
from synth.data.volume import Volume

DIM = 0.25  # of the range, that twice the median of a brain always exceeds
SHIFT = 2  # voxels that the box wanders in training: odd ones change the Haar phase


def fitted(frame: Frame, shape: Sequence[int]) -> Frame:
    """Return the frame cut or padded about its centre to `shape` voxels of the model's grid."""
    ratio = np.array(frame.ratio)
    extent = np.ceil(np.array(shape) * ratio - 1e-9).astype(int)
    moved = -((extent - frame.extent) // 2)
    affine = frame.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ (moved / ratio)
    start = np.array(frame.start) + moved
    triples = ((int(v[0]), int(v[1]), int(v[2])) for v in (start, extent, np.array(shape)))
    start, extent, shape = triples
    return replace(frame, start=start, extent=extent, shape=shape, affine=affine)


def frame_about(image: Volume, config: Config, *, whole: bool = False) -> Frame:
    """Return the model's box about a brain: scans, or its mask as an image of 0 and 1.

    In training every box has the configured size; with `whole`, for sampling, it grows where the
    brain needs it, by what the network can divide.
    """
    include = np.full(image.shape, config.centre == "grid" and not whole)
    prepared = prepare(image, include=include, divisor=1, margin_mm=0, spacing_mm=config.spacing_mm)
    frame = prepared.frame
    needed = -(-np.array(frame.shape) // config.divisor) * config.divisor
    shape = np.maximum(config.crop, needed) if whole else np.array(config.crop)
    return fitted(frame, [int(n) for n in shape])


def load_case(case: Case) -> tuple[Volume, np.ndarray]:
    """Return the four scans of a case, stacked, and its class map on their grid."""
    image, labels = case.load_scans(), case.load("seg")
    image.require_same_grid(labels, (MODALITIES[0], "seg"))
    brain = brain_mask(image)
    return image, class_map(labels.data[0], case.scheme, brain, name=str(case.path("seg")))


class SynthesisData(CaseData[Config]):
    """Cases as items for the loop: `image` (4, x, y, z), `classes` (x, y, z)."""

    roles = (*MODALITIES, "seg")

    def item(self, index: int, seed: int) -> dict[str, Tensor]:
        """Return one case, flipped and shifted by `seed` where augmentation is on."""
        arrays = self.prepared(index)
        image = torch.from_numpy(np.float32(arrays["image"]))
        classes = torch.from_numpy(np.array(arrays["classes"]))
        if self.config.augment and not self.fixed:
            rng = np.random.default_rng(seed)
            if rng.random() < 0.5:
                image, classes = image.flip(1), classes.flip(0)
            by = [int(n) for n in rng.integers(-SHIFT, SHIFT + 1, size=3)]
            image = shifted(image, by, BACKGROUND)
            classes = shifted(classes, by, 0)
        return {"image": image, "classes": classes}

    def prepared(self, index: int) -> Arrays:
        """Return a case in the model's box: image, classes, and its intensity scale."""
        case, c = self.cases[index], self.config
        bright = c.gain, c.high_percentile, c.ceiling
        settings = (c.spacing_mm, c.crop, c.centre, *bright, case.scheme)
        recipe = fingerprint(case.files) + repr(settings)
        return self.cache.get(f"{case.id}-scans", recipe, lambda: self._prepare(case))

    def _prepare(self, case: Case) -> Arrays:
        image, classes = load_case(case)
        frame = frame_about(image, self.config)
        prepared = prepare(image, divisor=1)
        high = tuple(self._bright(channel, classes) for channel in image.data)
        scale = replace(prepared, high=high)
        boxed = frame.bring(scale.scale(image.data.astype(np.float32)), fill=BACKGROUND)
        labels = frame.bring(classes[None], nearest=True)[0]
        if not (labels == BRAIN).any():
            raise SynthError(f"{case.id}: no brain in the box", hint=f"crop = {self.config.crop}?")
        return {
            "image": boxed.clip(BACKGROUND, self.config.ceiling).astype(np.float16),
            "classes": labels,
            "low": np.array(scale.low, np.float32),
            "high": np.array(high, np.float32),
        }

    def _bright(self, channel: np.ndarray, classes: np.ndarray) -> float:
        """Return the intensity that becomes +1."""
        low = background_of(channel)
        seen = channel != low
        high = float(np.percentile(channel[seen & (classes > 0)], self.config.high_percentile))
        healthy = channel[seen & (classes == BRAIN)]
        if self.config.gain == "percentile" or not len(healthy):
            return high
        reach = 2 * (float(np.median(healthy)) - low)
        # The median of a z-scored scan is about its background, and no measure of brightness.
        return low + reach if reach > DIM * (high - low) else high

    def intensities(self) -> dict[str, dict[str, float]]:
        """Return what -1 and +1 mean at this site: the median scale of each contrast."""
        rows = [self.prepared(i) for i in range(len(self))]
        low, high = (np.median([r[end] for r in rows], axis=0) for end in ("low", "high"))
        spread = np.std([np.log(r["high"] - r["low"]) for r in rows], axis=0)
        return {
            m: {"low": float(low[i]), "high": float(high[i]), "log_spread": float(spread[i])}
            for i, m in enumerate(MODALITIES)
        }


def shifted(data: Tensor, by: Sequence[int], fill: float) -> Tensor:
    """Move the content of the last three axes by whole voxels; what comes in is `fill`."""
    result = torch.full_like(data, fill)
    there = tuple(slice(max(d, 0), n + min(d, 0)) for d, n in zip(by, data.shape[-3:], strict=True))
    here = tuple(slice(max(-d, 0), n - max(d, 0)) for d, n in zip(by, data.shape[-3:], strict=True))
    result[(..., *there)] = data[(..., *here)]
    return result
