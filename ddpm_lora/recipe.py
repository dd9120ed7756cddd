"""How the model is trained: one denoising loss.

The same recipe trains a whole network and, by LoRA, a few matrices beside a frozen one: what
differs is which parameters it names as its model, and how they are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ddpm_lora.conditioning import NAMES, dropped, planes_of, voxel_weights
from ddpm_lora.config import BANDS, Config
from ddpm_lora.data import SynthesisData
from ddpm_lora.network import denoiser, schedule_of
from ddpm_lora.state_space import BACKGROUND, BandStatistics, Space, space_of
from synth.base.seeding import generator
from synth.checkpoints import checkpoint
from synth.data.case import MODALITIES
from synth.data.volume import Volume
from synth.diffusion.sampling import dpmpp_2m, levels
from synth.diffusion.schedule import q_sample, target, to_x0
from synth.training.recipe import Writer

Batch = dict[str, Tensor]
JUDGED_AT = (-4.0, -2.0, 0.0, 2.0, 4.0)
"""Log-SNRs of the validation: the same for every objective, so that their errors compare."""
PREVIEW_CALLS = 12
LEAST_NOISE = 0.3  # σ; below, a clean image's error must not be the whole loss


class Recipe:
    """The one-loss recipe of `synth.training.loop`."""

    def __init__(
        self, config: Config, network: nn.Module, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.config, self.network = config, network
        self.model = network  # what is trained; LoRA trains less
        self.schedule = schedule_of(config)
        self.facts = dict(facts or {})

    @property
    def space(self) -> Space:
        """The space, with the network's statistics where they are now."""
        return space_of(self.config, self.network)

    def optimizers(self) -> dict[str, Optimizer]:
        """One AdamW."""
        c = self.config
        return {"model": AdamW(self.model.parameters(), lr=c.lr, weight_decay=c.weight_decay)}

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Denoise at a random level; labels and tissue are hidden now and then."""
        self.network.to(batch["image"].device)  # beside an adapter stands a base the loop ignores
        t = torch.rand(len(batch["image"])) * (self.config.timesteps - 1)
        if self.config.space == "pixel":
            t = t.round()  # Med-DDPM was told whole timesteps
        c = self.config
        planes = dropped(planes_in(batch), c.label_drop, c.brain_drop, c.tissue_drop)
        head = head_of(batch)
        clean, unknown = self._states(batch, head)
        noise = torch.randn(clean.shape).to(clean)  # the same draw on every device
        logsnr = self.schedule.logsnr(t.to(clean.device))
        x_t = self._noisy(clean, noise, logsnr, unknown)
        answer = self.answer(x_t, logsnr, planes, unknown)
        error = self.error(answer, clean, noise, logsnr)
        yield "model", self.loss(error, batch["classes"], unknown)

    def _states(self, batch: Batch, head: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clean state, and 1 where it is unknown."""
        space = self.space
        return space.state(batch["image"], head), space.unknown(head, batch.get("zone"))

    def _noisy(self, clean: Tensor, noise: Tensor, logsnr: Tensor, unknown: Tensor) -> Tensor:
        """The known part of the state is free of noise."""
        return torch.where(unknown > 0, q_sample(clean, noise, logsnr), clean)

    def answer(self, x_t: Tensor, logsnr: Tensor, planes: Tensor, unknown: Tensor) -> Tensor:
        """Ask the network."""
        shown = torch.cat([x_t, self.space.condition(planes, unknown)], dim=1)
        return self.network(shown, self.schedule.timestep(logsnr).float()).float()

    def error(self, answer: Tensor, clean: Tensor, noise: Tensor, logsnr: Tensor) -> Tensor:
        """Return the answer's error; of a clean image in units of the velocity, (x̂0 − x0) / σ.

        So every noise level has the weight it has for "v" (Li & He 2025), down to LEAST_NOISE.
        """
        error = answer - target(clean, noise, logsnr, self.config.objective)
        if self.config.objective == "x0":
            sigma = torch.sigmoid(-logsnr).sqrt().clamp(min=LEAST_NOISE).to(error)
            error = error / sigma.view(-1, 1, 1, 1, 1)
        return error

    def loss(self, error: Tensor, classes: Tensor, unknown: Tensor) -> Tensor:
        """The weighted error of what is drawn of the state; of wavelets also as an image.

        As an image, each band counts by its own energy. Both parts are 1 for an error of 1.
        """
        c, space = self.config, self.space
        weights = voxel_weights(classes, c.balance, background=c.space == "pixel")
        total = _mean(self._size(error), space.weights(weights) * unknown)
        if c.space == "wavelet" and c.image_weight:
            image = space.difference(error * unknown, classes[:, None] > 0) / space.unit()
            drawn = F.interpolate(unknown[:, ::BANDS], scale_factor=2)
            total = total + c.image_weight * _mean(self._size(image), weights * drawn)
        return total

    def _size(self, error: Tensor) -> Tensor:
        return error.square() if self.config.norm == "l2" else error.abs()

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, float]:
        """The loss, and the RMS error of the clean image by region, at fixed levels and noise."""
        self.network.to(batch["image"].device)
        c, space, classes, head = self.config, self.space, batch["classes"], head_of(batch)
        clean, unknown = self._states(batch, head)
        noise = torch.randn(clean.shape, generator=generator("validation")).to(clean)
        losses, squares = [], []
        for level in JUDGED_AT:
            logsnr = torch.full((len(clean),), level, device=clean.device)
            x_t = self._noisy(clean, noise, logsnr, unknown)
            answer = self.answer(x_t, logsnr, planes_in(batch), unknown)
            error = self.error(answer, clean, noise, logsnr)
            losses.append(float(self.loss(error, classes, unknown)))
            x0 = torch.where(unknown > 0, to_x0(answer, x_t, logsnr, c.objective), clean)
            made = space.image(x0, head).clamp(BACKGROUND, c.ceiling)
            squares.append((made - batch["image"]).square().mean(1))  # (B, X, Y, Z)
        mean = torch.stack(squares).mean(0)
        found = {"loss": float(np.mean(losses))}
        for number, name in enumerate(NAMES, start=1):
            if (here := classes == number).any():
                found[f"rmse_{name}"] = float(mean[here].mean().sqrt())
        return found

    @torch.no_grad()
    def preview(self, batch: Batch) -> dict[str, Volume]:
        """Four scans drawn for one item's labels, beside its own."""
        self.network.to(batch["image"].device)
        planes = planes_in(batch)
        like = self.space.state(batch["image"], head_of(batch))
        x = torch.randn(like.shape, generator=generator("preview")).to(like)
        walk = levels(self.schedule, PREVIEW_CALLS)
        *_, last = dpmpp_2m(denoiser(self.network, self.config, planes), x, walk)
        affine = np.diag([*[self.config.spacing_mm] * 3, 1.0])
        shown = {"made": self.space.image(last.x, head_of(batch)), "real": batch["image"]}
        return {
            f"{m} {kind}": Volume(data=images[0, i : i + 1].float().cpu().numpy(), affine=affine)
            for i, m in enumerate(MODALITIES)
            for kind, images in shown.items()
        }

    def writer(self, describe: Mapping[str, Any]) -> Writer:
        """Return what writes a checkpoint: the weights, and the site's intensities beside them."""

        def publish(folder: Path, model: nn.Module, facts: dict[str, Any]) -> None:
            checkpoint.write(folder, model=model, **describe, **facts, **self.facts)

        return publish


def head_of(batch: Batch) -> Tensor:
    """Return where brain and tumour are, (B, 1, X, Y, Z)."""
    return batch["classes"][:, None] > 0


def planes_in(batch: Batch) -> Tensor:
    """Return the planes that a batch shows the network."""
    return planes_of(batch["classes"], batch.get("tissue"))


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over each item, then that of the items."""
    weights = weights.expand_as(values)
    total = weights.sum((1, 2, 3, 4)).clamp(min=1e-6)
    return ((values * weights).sum((1, 2, 3, 4)) / total).mean()


def measure(network: nn.Module, items: SynthesisData) -> None:
    """Give a wavelet network the statistics of a cohort's bands."""
    statistics = BandStatistics()
    for index in range(len(items)):
        arrays = items.prepared(index)
        image = torch.from_numpy(np.float32(arrays["image"]))
        statistics.add(image, torch.from_numpy(np.array(arrays["classes"])))
    statistics.store(network)
