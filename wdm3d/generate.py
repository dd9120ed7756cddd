"""Paint healthy tissue into the masked region of a scan, on its own grid.

    result = inpaint("case-t1n.nii.gz", "case-mask.nii.gz", model="weights/wdm3d", seed=0)
    result.image.save("case-t1n-inference.nii.gz")

Outside the mask every voxel is the input's own, bit for bit.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from synth import checkpoint
from synth.case import Case, region
from synth.check import require_usable_mask
from synth.diffusion import Denoiser, Schedule, alpha_sigma
from synth.errors import SynthError
from synth.fill import mirror_axis
from synth.prepare import Prepared, background_of, brain_mask, prepare
from synth.sampling import Step, ddim, ddpm, dpmpp_2m, levels, noise_like, noised, with_known
from synth.seeding import generator
from synth.volume import Volume
from synth.wavelet import any_in_block
from wdm3d.config import Config
from wdm3d.data import dilated_tumour, load_images
from wdm3d.modes import Batch, Mode, mode_of
from wdm3d.recipe import schedule_of
from wdm3d.scene import Box, Scene, box_around, brain_frame, crop, view

AIR = -0.85  # painted values below this are background: the darkest CSF is well above it
TILE_LIMIT = 2.0  # boxes beyond this many crop edges are painted in tiles

Sampler = Literal["dpmpp_2m", "ddim", "ddpm"]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How an estimate is made of the network."""

    estimate: Literal["mean", "sample"] = "mean"
    """mean: the posterior mean, one call from pure noise; sample: a draw by the sampler."""
    samples: int = 1
    """mean: calls that are averaged. sample: draws, whose spread is written; the first is kept."""
    steps: int = 16
    """Network calls of a draw."""
    sampler: Sampler = "dpmpp_2m"
    """Solver of a draw."""
    spacing: Literal["logsnr", "karras", "uniform"] = "logsnr"
    """Where the noise levels of a draw lie."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.steps < 1:
            raise SynthError("samples and steps are at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Inpainted:
    """A filled scan and what it took."""

    image: Volume
    """The input with new tissue inside the mask; float32."""
    spread: Volume | None = None
    """Voxelwise standard deviation of the draws, where there are several."""
    facts: dict[str, float | int] = field(default_factory=dict)
    """network_calls, regions, seconds."""


def inpaint(
    t1n: Volume | str | Path,
    mask: Volume | str | Path,
    *,
    model: checkpoint.Checkpoint | str | Path = "weights/wdm3d",
    seed: int = 0,
    plan: Plan | None = None,
    name: str = "case",
    device: str = "cpu",
) -> Inpainted:
    """Fill the mask with healthy tissue.

    Args:
        t1n: the scan, or a Volume with one channel for each of the model's contrasts.
        mask: what to paint; what the scan holds there is never read.
        model: a loaded checkpoint or where it is.
        seed: with `name`, fixes every draw, whatever else runs before or beside it.
        plan: how to sample; default one call.
        name: the case's id.
        device: where a path's model is loaded to.
    """
    started = time.monotonic()
    image = t1n if isinstance(t1n, Volume) else Volume.load(t1n)
    hole = mask if isinstance(mask, Volume) else Volume.load_mask(mask)
    loaded = model if isinstance(model, checkpoint.Checkpoint) else load(model, device)
    config: Config = loaded.config
    if len(image.data) != len(config.modalities):
        raise SynthError(
            f"the model paints {', '.join(config.modalities)}, got {len(image.data)} scans",
            hint="give one scan for each of them, in that order",
        )
    require_usable_mask(hole, image, ("image", "mask"))
    known = ~hole.data[0]
    prepared = prepare(
        image, known=known, include=hole.data[0], divisor=2, spacing_mm=config.spacing_mm
    )
    painter = Painter(loaded, plan or Plan(), seed, name)
    painted, spread = painter.paint(_scene(prepared, known))
    return Inpainted(
        image=_finished(prepared, painted, hole.data[0]),
        spread=None if spread is None else _spread(prepared, spread, hole.data[0]),
        facts={
            "network_calls": painter.calls,
            "regions": painter.regions,
            "seconds": round(time.monotonic() - started, 2),
        },
    )


def load(path: str | Path, device: str = "cpu") -> checkpoint.Checkpoint:
    """Load an inpainting model, laid out for speed."""
    loaded = checkpoint.load(path, device=device)
    if loaded.family != "wdm3d":
        raise SynthError(
            f"{path} is a {loaded.family} checkpoint", hint="inpainting needs one of wdm3d"
        )
    for parameter in loaded.model.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
    return loaded


def _scene(prepared: Prepared, known: np.ndarray) -> Scene:
    frame = prepared.frame
    hole = ~frame.bring(known[None], fill=True, nearest=True)[0]
    inside = brain_mask(prepared.original) & known
    centre, reach = brain_frame(frame.bring(inside[None], nearest=True)[0])
    return Scene(
        image=prepared.data,
        hole=hole,
        axis_sum=mirror_axis(prepared.data[0], ~hole),
        centre=centre,
        reach=reach,
    )


class Painter:
    """Paints the regions of a scene one box at a time, and counts."""

    def __init__(self, loaded: checkpoint.Checkpoint, plan: Plan, seed: int, name: str) -> None:
        self.config: Config = loaded.config
        self.model, self.plan, self.seed, self.name = loaded.model, plan, seed, name
        self.mode: Mode = mode_of(self.config)
        self.schedule: Schedule = schedule_of(self.config)
        self.device = next(loaded.model.parameters()).device
        self.calls = self.regions = 0

    @torch.no_grad()
    def paint(self, scene: Scene) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (painted image, spread of the draws) in the model's frame."""
        painted = scene.image.copy()
        several = self.plan.estimate == "sample" and self.plan.samples > 1
        spread = np.zeros_like(painted) if several else None
        for part in regions(scene.hole, self.config.crop // 2):
            self.regions += 1
            first, deviation = self._region(scene, part)
            painted[:, part] = first[:, part]
            if spread is not None:
                spread[:, part] = deviation[:, part]
        return painted, spread

    def box_of(self, region: np.ndarray) -> Box:
        """Return the box that a region is painted in."""
        return box_around(region, self.config.crop, self.config.divisor)

    def walk(self) -> Tensor:
        """Return the log-SNRs of a draw."""
        return levels(self.schedule, self.plan.steps, self.plan.spacing)

    def _region(self, scene: Scene, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        box = self.box_of(region)
        if max(s.stop - s.start for s in box) > TILE_LIMIT * self.config.crop:
            log.info("%s: a region of %d voxels is painted in tiles", self.name, region.sum())
            return self._blended(scene, region, tiles(box, self.config.crop))
        try:
            return self._blended(scene, region, [(box, np.ones(1, np.float32))])
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if "memory" not in str(error).lower():
                raise
        log.warning("%s: out of memory, painting in tiles of %d", self.name, self.config.crop)
        return self._blended(scene, region, tiles(box, self.config.crop))

    def _blended(
        self, scene: Scene, region: np.ndarray, parts: Iterable[tuple[Box, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (first draw, spread) of a region, each a weighted sum of its boxes."""
        first, deviation = np.zeros_like(scene.image), np.zeros_like(scene.image)
        for box, weight in parts:
            if crop(region, box, False).any():
                draws = self.draw_box(scene, region, box)
                spread = draws.std(axis=0, ddof=1) if len(draws) > 1 else np.zeros_like(draws[0])
                add(first, weight * draws[0], box)
                add(deviation, weight * spread, box)
        return first, deviation

    def draw_box(self, scene: Scene, region: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
        """Return (K, C, …) images of a box: K draws, or one mean."""
        arrays = view(scene, region, box, self.config)
        one: Batch = {k: torch.from_numpy(v)[None].to(self.device) for k, v in arrays.items()}
        found = []
        for k in range(self.plan.samples):
            noise = generator(self.seed, self.name, self.regions, k)
            state = (
                self._mean(one, noise) if self.plan.estimate == "mean" else self._draw(one, noise)
            )
            found.append(self.mode.image(state, one)[0].cpu().numpy())
        images = np.stack(found)
        return images.mean(axis=0, keepdims=True) if self.plan.estimate == "mean" else images

    def _denoiser(self, batch: Batch) -> Denoiser:
        def denoise(x_t: Tensor, logsnr: Tensor, cond: Tensor | None = None) -> Tensor:
            del cond
            self.calls += 1
            alpha = alpha_sigma(logsnr)[0].to(x_t).view(-1, 1, 1, 1, 1)
            t = self.schedule.timestep(logsnr)
            seen = self.mode.inputs(self.mode.confine(x_t, batch), alpha, batch)
            return self.mode.answer(self.model(seen, t.to(x_t)), batch)

        return denoise

    def _noise(self, batch: Batch, source: torch.Generator) -> Tensor:
        like = torch.zeros_like(self.mode.state(batch["known"], batch))
        return self.mode.confine(noise_like(like, [source]), batch)

    def _mean(self, batch: Batch, source: torch.Generator) -> Tensor:
        """E[state | known]: what the network says of pure noise."""
        start = levels(self.schedule, 1, "uniform")[:1].to(self.device)
        return self._denoiser(batch)(self._noise(batch, source), start)

    def _draw(self, batch: Batch, source: torch.Generator) -> Tensor:
        denoise = self._denoiser(batch)
        if self.config.mode == "default":
            known = self.mode.state(batch["known"], batch)
            inside = any_in_block(batch["roi"] > 0)
            denoise = with_known(denoise, known, inside, noised(known, [source]))
        start = self._noise(batch, source)
        for step in self._steps(denoise, start, source):
            last = step
        return last.x

    def _steps(self, denoise: Denoiser, start: Tensor, source: torch.Generator) -> Iterator[Step]:
        walk = self.walk()
        if self.plan.sampler == "dpmpp_2m":
            return dpmpp_2m(denoise, start, walk)
        if self.plan.sampler == "ddim":
            return ddim(denoise, start, walk)
        return ddpm(denoise, start, walk, [source], variance="small")


def regions(hole: np.ndarray, reach: int) -> list[np.ndarray]:
    """Split a hole into what is painted together: components, joined while they fit in `reach`."""
    labels, count = ndimage.label(hole, np.ones((3, 3, 3)))
    boxes = [
        (np.array([s.start for s in b]), np.array([s.stop for s in b]), [number])
        for number, b in enumerate(ndimage.find_objects(labels), start=1)
    ]
    assert len(boxes) == count
    merged: list[tuple[np.ndarray, np.ndarray, list[int]]] = []
    for low, high, numbers in boxes:
        for i, (a, b, members) in enumerate(merged):
            union = np.minimum(a, low), np.maximum(b, high)
            if (union[1] - union[0] <= reach).all():
                merged[i] = (*union, [*members, *numbers])
                break
        else:
            merged.append((low, high, numbers))
    return [np.isin(labels, members) for _, _, members in merged]


def tiles(box: Box, edge: int) -> Iterator[tuple[Box, np.ndarray]]:
    """Cover a box with half-overlapping cubes; their weights, tents, sum to one inside."""
    tent = np.minimum(np.arange(edge) + 0.5, edge - np.arange(edge) - 0.5) / (edge / 2)
    weight = (tent[:, None, None] * tent[:, None] * tent).astype(np.float32)
    starts = [range(s.start - edge // 2, s.stop, edge // 2) for s in box]
    for corner in itertools.product(*starts):
        yield tuple(slice(a, a + edge) for a in corner), weight


def add(total: np.ndarray, part: np.ndarray, box: Box) -> None:
    """Add a box's values to the volume, leaving out what sticks out of it."""
    inside = [
        slice(max(s.start, 0), min(s.stop, n)) for s, n in zip(box, total.shape[1:], strict=True)
    ]
    source = [slice(i.start - s.start, i.stop - s.start) for i, s in zip(inside, box, strict=True)]
    total[(slice(None), *inside)] += part[(slice(None), *source)]


def _finished(prepared: Prepared, painted: np.ndarray, mask: np.ndarray) -> Volume:
    """Carry the painted region home; what came out as dark as air is background."""
    image = prepared.undo(painted, touched=mask)
    each = zip(image.data, prepared.original.data, prepared.low, prepared.high, strict=True)
    for channel, original, low, high in each:
        air = mask & (channel < low + (AIR + 1) / 2 * (high - low))
        channel[air] = background_of(original)
    return image


def _spread(prepared: Prepared, spread: np.ndarray, mask: np.ndarray) -> Volume:
    scale = (np.array(prepared.high) - prepared.low).reshape(-1, 1, 1, 1) / 2
    native = prepared.frame.back((spread * scale).astype(np.float32))
    return prepared.original.with_data(np.where(mask, np.maximum(native, 0), 0))


def scans_of(case: Case, config: Config) -> tuple[Volume, list[Path]]:
    """Return the scan to fill, one channel a contrast, and its files; a voided t1n will do."""
    if config.modalities == ("t1n",) and "t1n" not in case.files:
        return case.load("voided"), [case.path("voided")]
    return load_images(case, config.modalities), [case.path(m) for m in config.modalities]


def hole_of(case: Case, image: Volume) -> tuple[Volume, Path]:
    """Return what to paint and the file it follows from: the mask, or the dilated tumour."""
    if "mask" in case.files or "seg" not in case.files:
        return case.load("mask"), case.path("mask")
    labels = case.load("seg")
    image.require_same_grid(labels, ("image", "seg"))
    tumour = region(labels.data[0], case.scheme, "WT")
    return labels.with_data(dilated_tumour(tumour, image.spacing_mm)), case.path("seg")
