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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synth.base.devices import is_out_of_memory, name_what_needs_memory
from synth.base.errors import SynthError
from synth.base.seeding import generator
from synth.checkpoints import checkpoint
from synth.data.brain import Brain, find_brain
from synth.data.cache import Arrays
from synth.data.check import require_usable_mask
from synth.data.fill import harmonic, mirror_axis
from synth.data.prepare import Prepared, background_of, brain_mask, prepare
from synth.data.volume import Volume
from synth.diffusion.sampling import (
    Step,
    ddim,
    ddpm,
    dpmpp_2m,
    levels,
    noise_like,
    noised,
    with_known,
)
from synth.diffusion.schedule import Denoiser, Schedule, alpha_sigma
from synth.diffusion.wavelet import any_in_block
from wdm3d.background import AIR, beyond, emptied, grounded
from wdm3d.boxes import Box, add, box_around, crop, regions, tiles
from wdm3d.config import Config, SamplerOptions
from wdm3d.guides import Guides, guides_of
from wdm3d.modes import Batch, Mode, mode_of
from wdm3d.recipe import schedule_of
from wdm3d.scene import BACKGROUND, Scene, brain_frame, contrast, view
from wdm3d.texture import add_grain, borrow_detail

TILE_LIMIT = 2.0  # boxes beyond this many crop edges are painted in tiles

SPREAD_GAIN = 2.4
"""Of the spread of a guided model's draws; chosen on drawn heads, so that intervals cover."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inpainted:
    """A filled scan and what it took."""

    image: Volume
    """The input with new tissue inside the mask; float32."""
    spread: Volume | None = None
    """Voxelwise standard deviation of the draws, where there are several."""
    facts: dict[str, Any] = field(default_factory=dict)
    """network_calls, regions, seconds; how the brain was found."""


def inpaint(
    t1n: Volume | str | Path,
    mask: Volume | str | Path,
    *,
    model: checkpoint.Checkpoint | str | Path = "weights/wdm3d",
    seed: int = 0,
    options: SamplerOptions | None = None,
    name: str = "case",
    device: str = "cpu",
    brain: Volume | str | Path | None = None,
) -> Inpainted:
    """Fill the mask with healthy tissue.

    Args:
        t1n: the scan, or a Volume with one channel for each of the model's contrasts.
        mask: what to paint; what the scan holds there is never read.
        model: a loaded checkpoint or where it is.
        seed: with `name`, fixes every draw, whatever else runs before or beside it.
        options: how to sample; default what suits the model.
        name: the case's id.
        device: where a path's model is loaded to.
        brain: mask of the brain in a whole head; default: found, if the model can use it (guided).
    """
    started = time.monotonic()
    image = t1n if isinstance(t1n, Volume) else Volume.load(t1n)
    hole = mask if isinstance(mask, Volume) else Volume.load_mask(mask)
    hole = hole.with_data(hole.data != 0)  # 0 and 1 are as good as False and True
    loaded = model if isinstance(model, checkpoint.Checkpoint) else load(model, device)
    config: Config = loaded.config
    _require_contrasts(image, config)
    require_usable_mask(hole, image, ("image", "mask"))
    known, image = ~hole.data[0], emptied(image, hole.data[0])
    image.require_plausible("image")
    extracted = _extracted(image, hole.data[0], config, brain)
    prepared = prepare(
        grounded(extracted.alone(image), known) if extracted else grounded(image, known),
        known=known,
        include=hole.data[0],
        divisor=2,
        spacing_mm=config.spacing_mm,
    )
    scene, brain_known = _scene(prepared, known, config)
    painter = Painter(loaded, options or SamplerOptions(), seed, name)
    painted, spread = painter.paint(scene)
    painted[:, beyond(brain_known, scene.hole, scene.axis_sum, config.spacing_mm)] = BACKGROUND
    whole_head = extracted is not None and extracted.whole_head
    finished = _finished(image, prepared, painted, hole.data[0], whole_head)
    if painter.options.grain:
        finished = add_grain(finished, hole.data[0], generator(seed, name, "grain"))
    return Inpainted(
        image=finished,
        spread=None if spread is None else _spread(prepared, spread, hole.data[0]),
        facts={
            "network_calls": painter.calls,
            "regions": painter.regions,
            "seconds": round(time.monotonic() - started, 2),
        }
        | ({"brain": extracted.how} if extracted else {}),
    )


def _require_contrasts(image: Volume, config: Config) -> None:
    wanted, given = len(config.modalities), len(image.data)
    if given != wanted and not (config.mode == "guided" and wanted == 1):
        raise SynthError(
            f"the model paints {', '.join(config.modalities)}, got {given} scans",
            hint="give one scan for each of them, in that order",
        )


def _extracted(
    image: Volume, hole: np.ndarray, config: Config, given: Volume | str | Path | None
) -> Brain | None:
    """Return the brain without what the mask hides; other modes take scans as they are."""
    if config.mode != "guided":
        return None
    mask = given if given is None or isinstance(given, Volume) else Volume.load_mask(given)
    found = find_brain(image, mask)
    if not (found.mask & ~hole).any():
        raise SynthError("the mask covers the whole brain", hint="some healthy tissue must be left")
    # What the hole hides may be brain: only air would be wrong to assume there.
    return replace(found, mask=found.mask | hole)


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


def _scene(prepared: Prepared, known: np.ndarray, config: Config) -> tuple[Scene, np.ndarray]:
    """Return the scene and the known brain, both in the model's frame."""
    frame = prepared.frame
    hole = ~frame.bring(known[None], fill=True, nearest=True)[0]
    brain = frame.bring((brain_mask(prepared.original) & known)[None], nearest=True)[0]
    centre, reach = brain_frame(brain)
    scene = Scene(
        image=prepared.data,
        hole=hole,
        axis_sum=mirror_axis(prepared.data[0], ~hole),
        centre=centre,
        reach=reach,
        guides=guides_of((prepared.data + 1) / 2, hole, config.spacing_mm)
        if config.mode == "guided"
        else None,
    )
    return scene, brain


class Painter:
    """Paints the regions of a scene one box at a time, and counts."""

    def __init__(
        self, loaded: checkpoint.Checkpoint, options: SamplerOptions, seed: int, name: str
    ) -> None:
        self.config: Config = loaded.config
        self.model, self.seed, self.name = loaded.model, seed, name
        self.options = options.suited_to(self.config)
        self.mode: Mode = mode_of(self.config)
        self.schedule: Schedule = schedule_of(self.config)
        self.device = next(loaded.model.parameters()).device
        self.calls = self.regions = self.flips = 0

    @torch.no_grad()
    def paint(self, scene: Scene) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (painted image, spread of the draws) in the model's frame."""
        painted = scene.image.copy()
        several = self.options.estimate == "sample" and self.options.samples > 1
        spread = np.zeros_like(painted) if several else None
        for part in regions(scene.hole, self.config.crop // 2):
            self.regions += 1
            first, deviation = self._region(scene, part)
            painted[:, part] = first[:, part]
            if spread is not None:
                # Draws of a guided model differ less than they err: see SPREAD_GAIN.
                gain = np.float32(1 if scene.guides is None else SPREAD_GAIN)
                spread[:, part] = gain * deviation[:, part]
            if scene.guides is not None and self.options.estimate != "sample":
                painted = self._with_mirror(scene.guides, painted, part)
        return painted, spread

    def _with_mirror(self, guides: Guides, painted: np.ndarray, region: np.ndarray) -> np.ndarray:
        """Return a mean with what the mirror image adds: structure, and fine detail if asked."""
        mirror = 2 * guides.mirror_fill(region) - 1
        change = guides.mirror_share(region) * (mirror - painted)
        mean = painted + np.where(region, change, np.float32(0))
        if self.options.estimate == "mean":
            return mean
        return np.stack(
            [
                borrow_detail(
                    smooth, np.where(region, fill, smooth), region, self.config.spacing_mm
                )
                for smooth, fill in zip(mean, mirror, strict=True)
            ]
        )

    def box_of(self, region: np.ndarray) -> Box:
        """Return the box that a region is painted in."""
        return box_around(region, self.config.crop, self.config.divisor)

    def walk(self) -> Tensor:
        """Return the log-SNRs of a draw."""
        return levels(self.schedule, self.options.steps, self.options.spacing)

    def _region(self, scene: Scene, region: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        box, edge = self.box_of(region), self.config.crop
        self.flips = self.options.flips or 0
        if max(s.stop - s.start for s in box) <= TILE_LIMIT * edge:
            try:
                return self._blended(scene, region, [(box, np.ones(1, np.float32))])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            edge = max(edge // 2 // self.config.divisor, 1) * self.config.divisor
            log.warning("%s: out of memory, painting in tiles of %d voxels", self.name, edge)
        else:
            log.info("%s: a region of %d voxels is painted in tiles", self.name, region.sum())
        with name_what_needs_memory(f"{self.name}, even in tiles of {edge} voxels"):
            self.flips = 0  # eight tiles overlap in every voxel: that is mean enough
            return self._blended(scene, region, tiles(box, edge))

    def _blended(
        self, scene: Scene, region: np.ndarray, parts: Iterable[tuple[Box, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (first draw, spread) of a region, each a weighted sum of its boxes."""
        first, deviation = np.zeros_like(scene.image), np.zeros_like(scene.image)
        for part, (box, weight) in enumerate(parts):
            if crop(region, box, False).any():
                draws = self.draw_box(scene, region, box, part)
                spread = draws.std(axis=0, ddof=1) if len(draws) > 1 else np.zeros_like(draws[0])
                add(first, weight * draws[0], box)
                add(deviation, weight * spread, box)
        return first, deviation

    def draw_box(
        self, scene: Scene, region: np.ndarray, box: Box, part: int = 0
    ) -> np.ndarray:  # (K, C, …)
        """Return images of a box, the part-th of its region: K draws, or one mean."""
        arrays = view(scene, region, box, self.config)
        if len(scene.image) == len(self.config.modalities):
            return self._drawn(arrays, part)
        drawn = [self._drawn(contrast(arrays, c), part) for c in range(len(scene.image))]
        return np.concatenate(drawn, axis=1)  # with the same noise and the same guides: they agree

    def _drawn(self, arrays: Arrays, part: int) -> np.ndarray:  # (K, C, …)
        one: Batch = {k: torch.from_numpy(v)[None].to(self.device) for k, v in arrays.items()}
        if self.flips:
            return self._flipped_mean(one, part)[None]
        found = []
        for k in range(self.options.samples):
            noise = generator(self.seed, self.name, self.regions, part, k)
            state = (
                self._draw(one, noise)
                if self.options.estimate == "sample"
                else self._mean(one, noise)
            )
            found.append(self.mode.image(state, one)[0].cpu().numpy())
        images = np.stack(found)
        return images if self.options.estimate == "sample" else images.mean(axis=0, keepdims=True)

    def _flipped_mean(self, batch: Batch, part: int) -> np.ndarray:
        """Return the mean of the answers to all flips along the first axes, each shifted.

        A shift by half a block of the wavelet's grid hides its edges; what wraps around the box
        lies far from the hole.
        """
        total = np.zeros(batch["known"].shape[1:], np.float32)
        axes = range(2, 2 + self.flips)
        half = 2**self.config.wavelet_levels // 2
        flips = [f for n in range(len(axes) + 1) for f in itertools.combinations(axes, n)]
        for k, flip in enumerate(flips):
            shifts = [half * (axis in flip) for axis in axes]
            moved = {name: v.flip(flip).roll(shifts, tuple(axes)) for name, v in batch.items()}
            noise = generator(self.seed, self.name, self.regions, part, k)
            image = self.mode.image(self._mean(moved, noise), moved)
            back = image.roll([-s for s in shifts], tuple(axes)).flip(flip)
            total += back[0].cpu().numpy() / len(flips)
        return total

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
            inside = batch["roi"] > 0
            for _ in range(self.config.wavelet_levels):
                inside = any_in_block(inside)
            denoise = with_known(denoise, known, inside, noised(known, [source]))
        start = self._noise(batch, source)
        for step in self._steps(denoise, start, source):
            last = step
        return last.x

    def _steps(self, denoise: Denoiser, start: Tensor, source: torch.Generator) -> Iterator[Step]:
        walk = self.walk()
        if self.options.sampler == "dpmpp_2m":
            return dpmpp_2m(denoise, start, walk)
        if self.options.sampler == "ddim":
            return ddim(denoise, start, walk)
        return ddpm(denoise, start, walk, [source])


def _finished(
    image: Volume, prepared: Prepared, painted: np.ndarray, mask: np.ndarray, whole_head: bool
) -> Volume:
    """Carry the painted region home; what came out as dark as air is background.

    In a whole head there is no background beside the brain: there the head goes on harmonically.
    """
    result = np.where(mask, prepared.undo(painted, touched=mask).data, image.data)
    if not np.isfinite(result[:, mask]).all():
        raise SynthError("the network answered with NaN", hint="its weights are damaged: retrain")
    for channel, original, low, high in zip(
        result, image.data, prepared.low, prepared.high, strict=True
    ):
        air = mask & (channel < low + (AIR + 1) / 2 * (high - low))
        if not whole_head:
            channel[air] = background_of(original)
        elif air.any():
            channel[air] = harmonic(channel, air)[air]
    return image.with_data(result.astype(np.float32))


def _spread(prepared: Prepared, spread: np.ndarray, mask: np.ndarray) -> Volume:
    scale = (np.array(prepared.high) - prepared.low).reshape(-1, 1, 1, 1) / 2
    native = prepared.frame.back((spread * scale).astype(np.float32))
    return prepared.original.with_data(np.where(mask, np.maximum(native, 0), 0))
