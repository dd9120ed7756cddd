"""Paints the tumour of a label map into the scans of a brain.

    loaded = load(lora=["runs/site_b"])
    scans = paint(read_into(case, host), loaded, SamplerOptions(seed=3)).scans

Only the zone, the tumour and a margin, is drawn: every voxel farther from the tumour is copied, not
computed. The law is that of training: the network sees the known brain free of noise at every
step. A contrast that is not at hand is drawn whole, to agree with those that are.
"""

from __future__ import annotations

import time

import numpy as np
from scipy import ndimage

from ddpm_lora.conditioning import BRAIN
from ddpm_lora.config import CONTRASTS, Config
from ddpm_lora.data import bright, zone_about
from ddpm_lora.generate import (
    Box,
    Drawn,
    SamplerOptions,
    facts_of,
    in_scanner_units,
    model_image,
    scales_of,
)
from ddpm_lora.label_maps import LabelMap
from ddpm_lora.state_space import BACKGROUND
from synth.base.errors import SynthError
from synth.base.seeding import generator, mix
from synth.checkpoints.checkpoint import Checkpoint
from synth.data.case import MODALITIES
from synth.data.prepare import background_of
from synth.data.volume import Volume
from synth.phantom.mass_effect import displace
from synth.phantom.tissue import PUSHED, before_tumour, tissue_of

ZONE_MM = 6.0  # about the tumour, that may change with it
PUSHED_ZONE_MM = 14.0  # with mass effect, which fades over this
Scales = dict[str, tuple[float, float]]


def paint(
    labels: LabelMap,
    loaded: Checkpoint,
    options: SamplerOptions,
    *,
    index: int = 0,
    mass_effect: bool = False,
) -> Drawn:
    """Paint the index-th tumour of a label map into its scans.

    The scans keep their own type of numbers. With `mass_effect` tissue makes room for the tumour,
    within a wider zone.
    """
    started = time.monotonic()
    config: Config = loaded.config
    _require_possible(labels, config)
    box = Box.of(labels, config)
    scales = _scales(labels, scales_of(labels, loaded, options, index), config)
    given = _in_model_units(labels, scales)
    image = box.bring(given, fill=BACKGROUND).clip(BACKGROUND, config.ceiling)
    margin_mm = PUSHED_ZONE_MM if mass_effect else ZONE_MM
    zone = _zone(labels, box, config, margin_mm)
    rng = np.random.default_rng(mix(options.seed, labels.id, index, "mass effect"))
    pushed = float(rng.uniform(*PUSHED)) if mass_effect else 0.0
    tissue = _tissue(labels, box, image, config, pushed)
    source = generator(options.seed, labels.id, index)
    made = model_image(box.classes, tissue, loaded, options, source, known=(image, zone))
    native = box.image_back(made)
    if box.frame.ratio != (1.0, 1.0, 1.0):
        native += _detail(given, box.image_back(image), labels)
    touched = box.back(zone.astype(np.uint8), nearest=True) > 0
    touched &= labels.classes > 0
    away = ndimage.distance_transform_edt(~labels.painted, sampling=labels.grid.spacing_mm)
    touched[_at_hand(labels)] &= away <= margin_mm
    whole = list(in_scanner_units(native, labels.classes > 0, scales))
    scans, changed = {}, 0
    for number, contrast in enumerate(MODALITIES):
        if (own := labels.scans.get(contrast)) is None:
            scans[contrast] = labels.grid.with_data(whole[number])
        else:
            scans[contrast] = _into(own, native[number], touched[number], scales[contrast])
            changed = int(touched[number].sum())
    facts = facts_of(options, config, started, scales)
    return Drawn(scans=scans, facts=facts | {"changed_voxels": changed, "pushed": round(pushed, 3)})


def _require_possible(labels: LabelMap, config: Config) -> None:
    if not config.anatomy:
        raise SynthError(
            "this model draws whole brains alone", hint="--into wants one trained with --anatomy"
        )
    if not (labels.classes[labels.painted] > 0).any():
        raise SynthError(f"{labels.id}: no tumour to paint", hint="is the label map empty?")


def _scales(labels: LabelMap, usual: Scales, config: Config) -> Scales:
    """Return what -1 and +1 mean in each contrast: in the scans at hand, else as at the site."""
    own = dict(usual)
    before = np.where(labels.painted & (labels.classes > 0), BRAIN, labels.classes)
    for contrast, volume in labels.scans.items():
        channel = volume.data[0]
        own[contrast] = background_of(channel), bright(channel, before, config)
    return own


def _in_model_units(labels: LabelMap, scales: Scales) -> np.ndarray:
    """Return the scans in the model's intensities, (4, X, Y, Z); background where there is none."""
    image = np.full((CONTRASTS, *labels.classes.shape), BACKGROUND, np.float32)
    for number, contrast in enumerate(MODALITIES):
        if contrast in labels.scans:
            low, high = scales[contrast]
            values = labels.scans[contrast].data[0].astype(np.float32)
            image[number] = (values - low) * (2 / (high - low)) - 1
    return image


def _zone(labels: LabelMap, box: Box, config: Config, margin_mm: float) -> np.ndarray:
    """Return (4, x, y, z) bool: what is drawn of each contrast."""
    new = box.bring(labels.painted[None].astype(np.uint8), nearest=True)[0] > 0
    about = zone_about(np.where(new, box.classes, 0), margin_mm, config.spacing_mm)
    zone = np.ones((CONTRASTS, *about.shape), bool)
    zone[_at_hand(labels)] = about
    return zone


def _at_hand(labels: LabelMap) -> list[int]:
    return [number for number, m in enumerate(MODALITIES) if m in labels.scans]


def _tissue(
    labels: LabelMap, box: Box, image: np.ndarray, config: Config, pushed: float
) -> np.ndarray:
    """Read the tissue of the scans; make room for the tumour; the tumour has none."""
    new = box.bring(labels.painted[None].astype(np.uint8), nearest=True)[0] > 0
    healthy = np.where(new & (box.classes > 0), BRAIN, box.classes)
    tissue = tissue_of(image[_at_hand(labels)], healthy, config.spacing_mm)
    if pushed:
        tumour = np.where(new, box.classes, BRAIN * (box.classes > 0))
        tissue = displace(tissue, before_tumour(tumour, config.spacing_mm, pushed))
    tissue = tissue * (box.classes == BRAIN)
    total = tissue.sum(0)
    return np.where(total > 0, tissue / np.maximum(total, 1e-6), 0).astype(np.float32)


def _detail(given: np.ndarray, coarse: np.ndarray, labels: LabelMap) -> np.ndarray:
    """Return what the model's grid cannot hold of the scans; none in the tumour, (4, X, Y, Z)."""
    share = 1 - ndimage.gaussian_filter(np.float32(labels.painted), 1.0)
    share = np.where(labels.classes == BRAIN, share, 0)
    detail = np.zeros_like(given)
    detail[_at_hand(labels)] = ((given - coarse) * share)[_at_hand(labels)]
    return detail


def _into(own: Volume, new: np.ndarray, where: np.ndarray, scale: tuple[float, float]) -> Volume:
    """Put new values, in the model's units, into a scan, in its own type of numbers."""
    data = own.data.copy()
    kept = np.float32 if own.header is None else own.header.get_data_dtype()
    if np.issubdtype(kept, np.integer) and not (data % 1).any():
        data = data.astype(kept)
    low, high = scale
    values = (new[where].astype(np.float64) + 1) * ((high - low) / 2) + low
    if np.issubdtype(data.dtype, np.integer):
        span = np.iinfo(data.dtype)
        least = max(span.min, low + 1 if low == data.min() else span.min)  # brain is no background
        values = np.rint(values).clip(least, span.max)
    data[0][where] = values.astype(data.dtype)
    return own.with_data(data)
