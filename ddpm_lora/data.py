"""Training items: four scans of a case in the model's box, its class map, and what is to be drawn.

The box is cut or padded about the brain, never squeezed; every step is a
`synth.data.prepare.Frame`, which knows the way back to the file's grid. The *zone* is what a
network draws of each contrast: the whole box, or the tumour with a margin. It is made of whole
blocks of 2³ voxels, those of the wavelet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ddpm_lora.conditioning import BRAIN, class_map
from ddpm_lora.config import CONTRASTS, Config
from ddpm_lora.state_space import BACKGROUND
from synth.base.errors import SynthError
from synth.data.cache import Arrays, CaseData, fingerprint
from synth.data.case import MODALITIES, Case
from synth.data.prepare import Frame, background_of, brain_mask, prepare
from synth.data.volume import Volume
from synth.phantom.tissue import clearer, tissue_of

DIM = 0.25  # of the range, that twice the median of a brain always exceeds
SHIFT = 2  # voxels that the box wanders in training: odd ones change the Haar phase
MARGINS_MM = 2.0, 16.0  # of zones in training: what is painted into a brain has 6 or 14
CLEARER = 1.0, 3.0  # power of the shares of tissue: drawn ones are not as mixed as those of scans
SOME_CONTRASTS = 0.25  # share of painted items of which not all contrasts are at hand


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


def bright(channel: np.ndarray, classes: np.ndarray, config: Config) -> float:
    """Return the intensity of a contrast that becomes +1."""
    low = background_of(channel)
    seen = channel != low
    high = float(np.percentile(channel[seen & (classes > 0)], config.high_percentile))
    healthy = channel[seen & (classes == BRAIN)]
    if config.gain == "percentile" or not len(healthy):
        return high
    reach = 2 * (float(np.median(healthy)) - low)
    # The median of a z-scored scan is about its background, and no measure of brightness.
    return low + reach if reach > DIM * (high - low) else high


def zone_about(classes: np.ndarray, margin_mm: float, spacing_mm: float) -> np.ndarray:
    """Return (X, Y, Z) bool: blocks of 2³ voxels with tumour, or wholly within its margin."""
    tumour = (classes > 0) & (classes != BRAIN)
    if not tumour.any():
        return tumour
    near = ndimage.distance_transform_edt(~tumour) * spacing_mm <= margin_mm
    x, y, z = (n // 2 for n in near.shape)
    ill, whole = (mask.reshape(x, 2, y, 2, z, 2) for mask in (tumour, near))
    blocks = ill.any(axis=(1, 3, 5)) | whole.all(axis=(1, 3, 5))
    return np.kron(blocks, np.ones((2, 2, 2), bool))


class SynthesisData(CaseData[Config]):
    """Cases as items for the loop: `image` (4, x, y, z), `classes` (x, y, z).

    With anatomy also `tissue` (3, x, y, z), and `zone` (4, x, y, z) bool.
    """

    roles = (*MODALITIES, "seg")

    def item(self, index: int, seed: int) -> dict[str, Tensor]:
        """Return one case, flipped and shifted by `seed` where augmentation is on."""
        arrays = self.prepared(index)
        item = {"image": torch.from_numpy(np.float32(arrays["image"]))}
        item["classes"] = torch.from_numpy(np.array(arrays["classes"]))
        if self.config.anatomy:
            item["tissue"] = torch.from_numpy(np.float32(arrays["tissue"]))
        rng = np.random.default_rng(index if self.fixed else seed)
        if self.config.augment and not self.fixed:
            if rng.random() < 0.5:
                item = {name: data.flip(-3) for name, data in item.items()}
            by = [int(n) for n in rng.integers(-SHIFT, SHIFT + 1, size=3)]
            fill = {"image": BACKGROUND}
            item = {name: shifted(data, by, fill.get(name, 0)) for name, data in item.items()}
            if "tissue" in item:
                item["tissue"] = clearer(item["tissue"], rng.uniform(*CLEARER))
        if self.config.anatomy:
            item["zone"] = self._zone(item["classes"].numpy(), rng)
        return item

    def _zone(self, classes: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Draw what is to be drawn: everything, or the tumour and a margin, of some contrasts."""
        zone = np.ones((CONTRASTS, *classes.shape), bool)
        about = zone_about(classes, rng.uniform(*MARGINS_MM), self.config.spacing_mm)
        if rng.random() < self.config.paint_share and about.any():
            some = rng.random() < SOME_CONTRASTS
            at_hand = rng.permutation(CONTRASTS)[: rng.integers(1, CONTRASTS) if some else None]
            zone[at_hand] = about
        return torch.from_numpy(zone)

    def prepared(self, index: int) -> Arrays:
        """Return a case in the model's box: image, classes, and its intensity scale."""
        case, c = self.cases[index], self.config
        scale = c.gain, c.high_percentile, c.ceiling
        settings = (c.spacing_mm, c.crop, c.centre, *scale, case.scheme, c.anatomy)
        recipe = fingerprint(case.files) + repr(settings)
        return self.cache.get(f"{case.id}-scans", recipe, lambda: self._prepare(case))

    def _prepare(self, case: Case) -> Arrays:
        image, classes = load_case(case)
        frame = frame_about(image, self.config)
        prepared = prepare(image, divisor=1)
        high = tuple(bright(channel, classes, self.config) for channel in image.data)
        scale = replace(prepared, high=high)
        boxed = frame.bring(scale.scale(image.data.astype(np.float32)), fill=BACKGROUND)
        labels = frame.bring(classes[None], nearest=True)[0]
        if not (labels == BRAIN).any():
            raise SynthError(f"{case.id}: no brain in the box", hint=f"crop = {self.config.crop}?")
        boxed = boxed.clip(BACKGROUND, self.config.ceiling)
        arrays = {
            "image": boxed.astype(np.float16),
            "classes": labels,
            "low": np.array(scale.low, np.float32),
            "high": np.array(high, np.float32),
        }
        if self.config.anatomy:
            tissue = tissue_of(boxed, labels, self.config.spacing_mm)
            arrays["tissue"] = tissue.astype(np.float16)
        return arrays

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
