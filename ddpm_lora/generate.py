"""Draws four scans for a label map, on its grid, in the look of a site.

    loaded = load(lora=["runs/site_b"])
    scans = draw(read(case), loaded, SamplerOptions(seed=3), index=0).scans

What is drawn follows from (seed, id of the label map, index) and the model, and nothing else.
Painting a tumour into a brain (paint.py) goes through the same box and the same sampler.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage

from ddpm_lora.conditioning import BRAIN, any_tissue, head_in, planes_of
from ddpm_lora.config import CONTRASTS, Config
from ddpm_lora.data import frame_about
from ddpm_lora.label_maps import LabelMap
from ddpm_lora.lora import merging
from ddpm_lora.network import denoiser, schedule_of
from ddpm_lora.state_space import BACKGROUND, space_of
from synth.base.devices import name_what_needs_memory
from synth.base.errors import SynthError
from synth.base.seeding import generator, mix
from synth.base.weights import SHIPPED, or_shipped
from synth.checkpoints import checkpoint
from synth.checkpoints.checkpoint import Checkpoint
from synth.data.case import MODALITIES
from synth.data.prepare import Frame
from synth.data.volume import Volume
from synth.diffusion.sampling import Step, ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, levels, noise_like
from synth.phantom.tissue import draw_tissue, tissue_of

Sampler = Literal["dpmpp_2m", "dpmpp_2m_sde", "ddim", "ddpm"]
DEFAULT_MODEL = Path("weights/ddpm_lora")
CALLS = 10
HOTTEST = 1.5  # temperature
WITH_TISSUE = 0.5
"""Temperature where tissue is shown. A small network leaves more chance in a scan than there is:
at 1 its grain hides the agreement of the contrasts, at 0.5 it is as large as in real scans."""
UNKNOWN_SITE = {"low": 0.0, "high": 1000.0, "log_spread": 0.0}
WHOLE_FROM = 100.0  # grey levels that a scan spans at least if it is to be stored as whole numbers
LARGEST = 32767  # of int16
DIMMEST = 1e-3  # of the scale: brain is never as dark as the background, which is 0
OTHER_UNIT = 3.0, 0.05  # a brain of so many edges of the model's box is not measured in mm

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How scans are drawn."""

    steps: int | None = None
    """Network calls; None is 10, for ddpm as many as the model was trained on."""
    sampler: Sampler = "dpmpp_2m"
    guidance: float = 1.0
    """1 draws as trained; above, labels count for more, at twice the cost."""
    temperature: float | None = None
    """Size of the noise that a draw begins with; None is WITH_TISSUE, or 1 where the network sees
    no tissue. Lower: smoother, less varied, and nearer to what tissue and labels say."""
    tissue: Literal["drawn", "scans", "none"] = "drawn"
    """Where CSF, grey and white matter lie in a whole brain: in a new person, as in the scans
    beside the label map, or where the network puts them."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature <= HOTTEST:
            raise SynthError(f"--temperature {self.temperature:g}", hint="0 to 1")
        if self.steps is not None and self.steps < 1:
            raise SynthError(f"--steps {self.steps}", hint="at least 1; 10 is usual")

    def first_noise(self, config: Config) -> float:
        """Return the size of the noise that a draw begins with."""
        usual = WITH_TISSUE if config.anatomy else 1.0
        return usual if self.temperature is None else self.temperature

    def calls(self, config: Config) -> int:
        """Return the steps of a draw."""
        return self.steps or (config.timesteps if self.sampler == "ddpm" else CALLS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Four scans of one label map, and what it took."""

    scans: Mapping[str, Volume]
    """By contrast: int16 where the site's scans span whole numbers, else float32; 0 outside."""
    facts: Mapping[str, Any]
    """network_calls, seconds, intensities."""


def load(
    model: str | Path | None = None, lora: Sequence[str | Path] = (), device: str = "cpu"
) -> Checkpoint:
    """Load a model with adapters merged in, each a folder or "folder:weight".

    Without `model` the adapters find their base; without either it is weights/ddpm_lora.
    """
    if lora:
        words = [_shipped(word) for word in lora]
        loaded = merging.load(words, base=model, device=device)
    else:
        loaded = checkpoint.load(model or DEFAULT_MODEL, device=device)
    if loaded.family != "ddpm_lora":
        raise SynthError(
            f"{model or loaded.path} is a {loaded.family} checkpoint",
            hint="scans are drawn by one of ddpm_lora",
        )
    for parameter in loaded.model.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
    if "intensities" not in loaded.metadata:
        log.warning(
            "the model does not say how bright its site's scans are: -1 … 1 becomes %g … %g",
            UNKNOWN_SITE["low"],
            UNKNOWN_SITE["high"],
        )
    return loaded


@dataclass(frozen=True, kw_only=True, eq=False)
class Box:
    """A label map's way into the model's box, and back.

    One voxel of air all round: a brain that fills its grid is not taken for the background.
    """

    frame: Frame
    classes: np.ndarray
    """(x, y, z) of the model's grid."""

    @classmethod
    def of(cls, labels: LabelMap, config: Config) -> Box:
        """Lay the box about a label map's brain."""
        _require_millimetres(labels, config)
        padded = np.pad(labels.classes, 1)
        affine = labels.grid.affine.copy()
        affine[:3, 3] -= affine[:3, :3].sum(axis=1)
        head = Volume(data=(padded > 0).astype(np.float32)[None], affine=affine)
        frame = frame_about(head, config, whole=True)
        return cls(frame=frame, classes=frame.bring(padded[None], nearest=True)[0])

    def bring(self, data: np.ndarray, *, fill: float = 0, nearest: bool = False) -> np.ndarray:
        """Carry (C, X, Y, Z) of the label map's grid into the box."""
        padded = np.pad(data, ((0, 0), (1, 1), (1, 1), (1, 1)), constant_values=fill)
        return self.frame.bring(padded, fill=fill, nearest=nearest)

    def back(self, image: np.ndarray, *, fill: float = 0, nearest: bool = False) -> np.ndarray:
        """Carry (C, x, y, z) of the box onto the label map's grid."""
        return self.frame.back(image, fill=fill, nearest=nearest)[:, 1:-1, 1:-1, 1:-1]

    def image_back(self, image: np.ndarray) -> np.ndarray:
        """Carry an image onto the native grid; tissue is not mixed with background at the edge."""
        if self.frame.ratio != (1.0, 1.0, 1.0):
            nearest = ndimage.distance_transform_edt(
                self.classes == 0, return_distances=False, return_indices=True
            )
            image = image[:, *nearest]
        return self.back(image, fill=BACKGROUND)


def draw(labels: LabelMap, loaded: Checkpoint, options: SamplerOptions, *, index: int = 0) -> Drawn:
    """Draw the index-th set of scans of a label map."""
    started = time.monotonic()
    config: Config = loaded.config
    box = Box.of(labels, config)
    tissue = _tissue(labels, box, options, config, index) if config.anatomy else None
    source = generator(options.seed, labels.id, index)
    image = model_image(box.classes, tissue, loaded, options, source)
    native = box.image_back(image)
    scales = scales_of(labels, loaded, options, index)
    scans = in_scanner_units(native, labels.classes > 0, scales)
    return Drawn(
        scans={m: labels.grid.with_data(scan) for m, scan in zip(MODALITIES, scans, strict=True)},
        facts=facts_of(options, config, started, scales),
    )


def facts_of(
    options: SamplerOptions,
    config: Config,
    started: float,
    scales: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    """Return what a draw took, for its record."""
    return {
        "network_calls": options.calls(config) * (1 if options.guidance == 1 else 2),
        "seconds": round(time.monotonic() - started, 2),
        "intensities": {m: [round(float(v), 3) for v in s] for m, s in scales.items()},
    }


def _tissue(
    labels: LabelMap, box: Box, options: SamplerOptions, config: Config, index: int
) -> np.ndarray:
    """Return the tissue of a whole brain, (3, x, y, z)."""
    if options.tissue == "drawn":
        rng = np.random.default_rng(mix(options.seed, labels.id, index, "tissue"))
        return draw_tissue(box.classes, config.spacing_mm, rng)
    if options.tissue == "none":
        brain = torch.from_numpy(box.classes == BRAIN)[None, None]
        return any_tissue(brain)[0].numpy()
    if not labels.scans:
        raise SynthError(
            f"{labels.id}: no scans beside the label map to read tissue from",
            hint="--tissue drawn",
        )
    image = np.concatenate([volume.data for volume in labels.scans.values()]).astype(np.float32)
    return tissue_of(box.bring(image), box.classes, config.spacing_mm)


def _require_millimetres(labels: LabelMap, config: Config) -> None:
    """Refuse a brain that is far larger or smaller than any the model knows."""
    reach = np.ptp(np.argwhere(labels.classes), axis=0) + 1  # voxels
    longest, edge = max(reach * labels.grid.spacing_mm), max(config.crop) * config.spacing_mm
    most, least = OTHER_UNIT
    if not least * edge <= longest <= most * edge:
        raise SynthError(
            f"{labels.id}: a brain {round(float(longest), 3):g} mm long",
            hint="is the voxel size in the header in millimetres?",
        )


def model_image(
    classes: np.ndarray,
    tissue: np.ndarray | None,
    loaded: Checkpoint,
    options: SamplerOptions,
    source: torch.Generator,
    known: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """Return (4, x, y, z) in the model's intensities.

    `known` is such an image, and (4, x, y, z) bool, what of it is to be drawn.
    """
    with name_what_needs_memory(f"a box of {' × '.join(map(str, classes.shape))} voxels"):
        return _sampled(classes, tissue, loaded, options, source, known)


def _sampled(
    classes: np.ndarray,
    tissue: np.ndarray | None,
    loaded: Checkpoint,
    options: SamplerOptions,
    source: torch.Generator,
    known: tuple[np.ndarray, np.ndarray] | None,
) -> np.ndarray:
    config: Config = loaded.config
    device = next(loaded.model.parameters()).device
    shown = None if tissue is None else torch.from_numpy(tissue)[None]
    planes = planes_of(torch.from_numpy(classes)[None], shown).to(device)
    head = head_in(planes)
    space = space_of(config, loaded.model)
    empty = torch.full((1, CONTRASTS, *classes.shape), BACKGROUND, device=device)
    noise = options.first_noise(config) * noise_like(space.state(empty, head), [source])
    given = None
    if known is not None:
        given_image, zone = (torch.from_numpy(k)[None].to(device) for k in known)
        given = given_image, zone
    answer = denoiser(loaded.model, config, planes, guidance=options.guidance, known=given)
    for step in _steps(answer, noise, config, options, source):
        last = step
    image = space.image(last.x, head)[0].float().cpu().numpy()
    if not np.isfinite(image).all():
        raise SynthError("the network answered with NaN", hint="its weights are damaged: retrain")
    return image


def _steps(
    denoise: Any,
    noise: torch.Tensor,
    config: Config,
    options: SamplerOptions,
    source: torch.Generator,
) -> Iterator[Step]:
    spacing: Any = "uniform" if options.sampler == "ddpm" else "logsnr"
    walk = levels(schedule_of(config), options.calls(config), spacing)
    if options.sampler == "dpmpp_2m":
        return dpmpp_2m(denoise, noise, walk)
    if options.sampler == "ddim":
        return ddim(denoise, noise, walk)
    stochastic = ddpm if options.sampler == "ddpm" else dpmpp_2m_sde
    return stochastic(denoise, noise, walk, [source])


def scales_of(
    labels: LabelMap, loaded: Checkpoint, options: SamplerOptions, index: int
) -> dict[str, tuple[float, float]]:
    """Return what -1 and +1 mean in this draw."""
    rng = np.random.default_rng(mix(options.seed, labels.id, index, "intensities"))
    return site_scales(loaded.metadata.get("intensities"), rng)


def site_scales(
    site: Mapping[str, Mapping[str, float]] | None, rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Return what -1 and +1 mean in one case: contrasts vary from case to case as at the site."""
    scales = {}
    for contrast in MODALITIES:
        own = UNKNOWN_SITE if site is None else site[contrast]
        gain = float(np.exp(own["log_spread"] * rng.standard_normal()))
        scales[contrast] = own["low"], own["low"] + gain * (own["high"] - own["low"])
    return scales


def in_scanner_units(
    image: np.ndarray, head: np.ndarray, scales: Mapping[str, tuple[float, float]]
) -> Iterator[np.ndarray]:
    """Yield each contrast of a (4, X, Y, Z) image as a scanner would store it, 0 outside the head.

    Scales from 0 or more that span 100 and more are those of whole numbers.
    """
    spans = [high - low for low, high in scales.values()]
    positive = min(low for low, _ in scales.values()) >= 0
    whole = positive and min(spans) >= WHOLE_FROM
    for channel, (low, high) in zip(image, scales.values(), strict=True):
        values = (channel + 1) * ((high - low) / 2) + low
        if whole:
            values = np.rint(values).clip(1, LARGEST)
        elif positive:
            values = np.maximum(values, DIMMEST * (high - low))
        yield np.where(head, values, 0).astype(np.int16 if whole else np.float32)


def _shipped(word: str | Path) -> str | Path:
    """Look for a relative path, such as weights/, where this package is, too."""
    path, _ = merging.weight_of(word)
    return word if or_shipped(path) == path else str(SHIPPED / word)
