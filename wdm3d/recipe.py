"""How the inpainting model is trained: noise at a continuous level, error inside the hole."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from synth.data.cache import ArrayCache
from synth.data.case import Case
from synth.data.volume import Volume
from synth.diffusion.schedule import Schedule, alpha_sigma
from synth.metrics.image import inpainting_metrics
from synth.metrics.ssim_loss import ssim_map
from synth.training.data_order import Items
from synth.training.recipe import Writer, whole_model_writer
from wdm3d.config import Config
from wdm3d.data import InpaintingData
from wdm3d.guided_data import CohortBrains, DrawnHeads, GuidedData
from wdm3d.modes import Batch, analyse, low_scale, mode_of, synthesise
from wdm3d.network import AtlasUNet, build
from wdm3d.scene import brain_frame

VALIDATION_HEADS = 8
UNSEEN = 900_000  # heads from this number on are drawn for validation only


def schedule_of(config: Config) -> Schedule:
    """Return the noise schedule a configuration names."""
    build = {"linear": Schedule.linear, "cosine": Schedule.cosine}[config.schedule]
    return build(config.timesteps)


class Recipe:
    """The one-loss recipe of `synth.training.loop`."""

    def __init__(self, config: Config, *, atlas: Tensor | None = None) -> None:
        self.config = config
        self.mode = mode_of(config)
        self.schedule = schedule_of(config)
        self.model: nn.Module = build(config)
        if atlas is not None and isinstance(self.model, AtlasUNet):
            self.model.atlas.data.copy_(atlas)

    def optimizers(self) -> dict[str, Optimizer]:
        """One AdamW."""
        c = self.config
        return {"model": AdamW(self.model.parameters(), lr=c.lr, weight_decay=c.weight_decay)}

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Denoise at a random level; a share of the items starts from pure noise."""
        t = self.times(len(batch["roi"])).to(batch["roi"].device)
        clean = self.mode.state(batch["truth"], batch)
        noise = self.mode.confine(torch.randn_like(clean), batch)
        answer = self.predict(self.noisy(clean, noise, t), t, batch)
        yield "model", self.loss(answer, batch)

    def times(self, count: int) -> Tensor:
        """Draw timesteps: a share at pure noise, the rest anywhere on the schedule."""
        last = float(self.config.timesteps - 1)
        at_end = torch.rand(count) < self.config.terminal_share
        return torch.where(at_end, torch.tensor(last), torch.rand(count) * last)

    def noisy(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0)."""
        alpha, sigma = self.levels(t)
        return alpha * clean + sigma * noise

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) of real timesteps, shaped to multiply bands."""
        alpha, sigma = alpha_sigma(self.schedule.logsnr(t))
        return alpha.float().view(-1, 1, 1, 1, 1), sigma.float().view(-1, 1, 1, 1, 1)

    def predict(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The network's clean bands."""
        alpha, _ = self.levels(t)
        return self.model(self.mode.inputs(x_t, alpha, batch), t)

    def loss(self, answer: Tensor, batch: Batch) -> Tensor:
        """Errors inside the hole, normalised by its size; lightly, errors everywhere."""
        weights, roi = self.config, batch["roi"]
        if weights.mode == "default":
            return (answer - self.mode.state(batch["truth"], batch)).square().mean()
        error = self._image_error(answer, batch)
        size = roi.flatten(1).sum(1).clamp(min=1) * error.shape[1]
        absolute = (error.abs() * roi).flatten(1).sum(1) / size
        squared = (error.square() * roi).flatten(1).sum(1) / size
        total = (weights.l1 * absolute + weights.mse * squared).mean()
        if weights.ssim:
            total = total + weights.ssim * self._dissimilarity(error, batch, size)
        if weights.everywhere:
            total = total + weights.everywhere * error.square().mean()
        return total

    def _dissimilarity(self, error: Tensor, batch: Batch, size: Tensor) -> Tensor:
        """1 - SSIM inside the hole, of images scaled to [0, 1]."""
        roi, scale = batch["roi"], self.config.residual_scale
        units = scale if self.config.mode in ("context", "guided") else 1.0
        truth = (batch["truth"] + 1) / 2
        unlike = 1 - ssim_map(truth + error * roi * (units / 2), truth)
        return ((unlike * roi).flatten(1).sum(1) / size).mean()

    def _image_error(self, answer: Tensor, batch: Batch) -> Tensor:
        """Predicted − true voxels, in units of the state."""
        if self.config.mode in ("context", "guided"):
            return synthesise(answer - self.mode.state(batch["truth"], batch), self.config)
        return synthesise(answer / low_scale(self.config, answer), self.config) - batch["truth"]

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, float]:
        """The official metrics of the one-call estimate, inside the healthy mask."""
        painted, truth = self.mean_estimate(batch)[0, 0], batch["truth"][0, 0]
        low, high = batch["window"][0].tolist()
        mask = (batch["roi"][0, 0] > 0).cpu().numpy()
        scores = inpainting_metrics(painted.cpu().numpy(), truth.cpu().numpy(), (low, high), mask)
        return {name: scores[name] for name in ("ssim", "psnr_01", "mse", "mae")} | {
            "loss": scores["mse"]
        }

    def mean_estimate(self, batch: Batch) -> Tensor:
        """E[image | known tissue]: one call from pure noise (a fixed draw)."""
        t = torch.full((len(batch["roi"]),), float(self.config.timesteps - 1)).to(
            batch["roi"].device
        )
        like = self.mode.state(batch["truth"], batch)
        draw = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
        answer = self.predict(self.mode.confine(draw, batch), t, batch)
        return self.mode.image(self.mode.answer(answer, batch), batch)

    def writer(self, describe: Mapping[str, Any]) -> Writer:
        """Return what writes a checkpoint."""
        return whole_model_writer(describe)

    @torch.no_grad()
    def preview(self, batch: Batch) -> dict[str, Volume]:
        """Void, estimate and truth of one item."""
        affine = np.diag([*[self.config.spacing_mm] * 3, 1.0])
        shown = {
            "known": batch["known"],
            "painted": self.mean_estimate(batch),
            "truth": batch["truth"],
        }
        return {k: Volume(data=v[0, :1].cpu().numpy(), affine=affine) for k, v in shown.items()}


def assemble(
    config: Config, training: Sequence[Case], held_out: Sequence[Case], *, cache: Path
) -> tuple[Recipe, Items, Items | None]:
    """Return (recipe, training items, validation items) for the loop."""
    if config.mode == "guided" or config.heads:
        return _guided(config, training, held_out, ArrayCache(cache))
    items = InpaintingData(training, config, cache=ArrayCache(cache))
    judged = _judged(held_out)
    validation = InpaintingData(judged, config, cache=ArrayCache(cache), fixed=True)
    return Recipe(config, atlas=mean_brain(items)), items, validation if judged else None


def _guided(
    config: Config, training: Sequence[Case], held_out: Sequence[Case], cache: ArrayCache
) -> tuple[Recipe, Items, Items | None]:
    if config.heads:
        known = DrawnHeads(config.heads, exclude=config.exclude)
        unseen = DrawnHeads(VALIDATION_HEADS, first=UNSEEN, exclude=config.exclude)
        guided = replace(config, mode="guided")  # other modes leave the guides unread
        items = GuidedData(known, guided, cache=cache)
        validation = GuidedData(unseen, guided, cache=cache, fixed=True)
        items.prepare()
        validation.prepare()
        return Recipe(config), items, validation
    cohort = CohortBrains(InpaintingData(training, config, cache=cache, pool=[np.ones((1, 1, 1))]))
    items = GuidedData(cohort, config, cache=cache)
    judged = InpaintingData(_judged(held_out), config, cache=cache, fixed=True)
    validation = GuidedData(CohortBrains(judged), config, cache=cache, fixed=True)
    return Recipe(config), items, validation if len(judged) else None


def _judged(held_out: Sequence[Case]) -> list[Case]:
    """Return the cases with a known hole; real masks are what counts, if there are any."""
    judged = [c for c in held_out if "healthy" in c.files]
    return [c for c in judged if not c.is_made] or judged


def mean_brain(items: InpaintingData) -> Tensor | None:
    """Average the training brains in normalised coordinates, as bands: where the atlas starts."""
    config = items.config
    if not config.has_atlas:
        return None
    total = torch.zeros(1, config.bands, *[config.atlas] * 3)
    weight = torch.zeros_like(total)
    line = torch.linspace(-1, 1, config.atlas)
    step = 2**config.wavelet_levels
    for index in range(len(items)):
        arrays = items.prepared(index)
        centre, reach = (torch.from_numpy(v).float() for v in brain_frame(arrays["brain"]))
        even = [slice(0, n // step * step) for n in arrays["image"].shape[1:]]
        image = torch.from_numpy(np.array(arrays["image"][(slice(None), *even)]))
        healthy = torch.from_numpy(~arrays["unhealthy"][tuple(even)]).float()
        size = torch.tensor(image.shape[1:])
        places = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
        voxel = places * reach + centre  # on the image; a band's voxel covers `step` of them
        grid = ((voxel + 0.5) / size * 2 - 1).flip(-1)[None].float()
        bands = analyse(torch.where(healthy > 0, image, -1.0)[None], config)
        seen = F.avg_pool3d(healthy[None, None], step)
        look_up = functools.partial(F.grid_sample, padding_mode="border", align_corners=False)
        share = (look_up(seen, grid) > 0.99).float()
        total += share * look_up(bands, grid)
        weight += share
    return total / weight.clamp(min=1)
