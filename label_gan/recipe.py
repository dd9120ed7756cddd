"""How the GANs are trained: players in turn, judged by shapes of held-out lesions.

The ordered GAN pairs a drawing with a real lesion of the same size and asks which is realer
(relativistic loss, Jolicoeur-Martineau 2018), with one zero-centred penalty on the critic's
gradient at both (Mescheder et al. 2018; together: Huang et al. 2024). The alpha-GAN has Wasserstein
losses with gradient penalties for its critic and its code critic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from label_gan.config import Config
from label_gan.data import LesionData
from label_gan.distance_maps import soft_classes
from label_gan.generate import draw_one
from label_gan.lesion_size import ET_IN_TC, TC_IN_WT
from label_gan.network import players
from label_gan.shape import Shape
from label_gan.shape_model import fit_generator
from synth.base.errors import SynthError
from synth.data.cache import ArrayCache
from synth.data.case import Case
from synth.data.volume import Volume
from synth.metrics.distribution import mmd2
from synth.metrics.shape import DESCRIBED, features, matrix
from synth.training.recipe import Writer, whole_model_writer

Batch = dict[str, Tensor]
Losses = Iterator[tuple[str, Tensor]]
JUDGED = 64
"""Drawings compared with the held-out lesions at each validation."""
WORST = 2.0  # what MMD² cannot exceed: the score of a generator that draws nothing
PENALISED = 4  # a quarter of the batch bears the ordered penalty: half its cost, all its use
RIM = list(DESCRIBED).index("rim_contact")


class Recipe:
    """What both architectures share: the optimizers, the judgement, what is published."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.model = players(config)

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimizer a player; the encoder goes with the generator."""
        c = self.config
        weights = {name: list(player.parameters()) for name, player in self.model.items()}
        weights["generator"] += weights.pop("encoder", [])
        if c.architecture == "alpha":  # torch's defaults, as the predecessor
            return {name: AdamW(own, lr=c.lr) for name, own in weights.items()}
        base = list(self.model["generator"].shape.parameters())  # ty: ignore
        rest = [p for p in weights["generator"] if not any(p is q for q in base)]
        groups = [{"params": rest}, {"params": base, "lr": c.lr * c.shape_rate}]
        return {
            "generator": Adam(groups, lr=c.lr, betas=(0.0, 0.99)),
            "critic": Adam(weights["critic"], lr=c.lr * c.critic_rate, betas=(0.0, 0.99)),
        }

    def losses(self, batch: Batch) -> Losses:
        """Yield the players' losses in turn."""
        losses = ordered_losses if self.config.architecture == "ordered" else alpha_losses
        return losses(self.model, batch, self.config)

    def writer(self, describe: Mapping[str, Any]) -> Writer:
        """Return what writes a checkpoint: of all players the generator is published."""
        write = whole_model_writer(describe)
        return lambda folder, model, facts: write(folder, model["generator"], facts)  # ty: ignore

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, float]:
        """Compare drawings with all held-out lesions: MMD² of shape features, rim contact."""
        real = batch["features"][0].cpu().numpy()
        shapes = self._draw(JUDGED, float(batch["spacing_mm"]))
        empty = 1 - len(shapes) / JUDGED
        if len(shapes) < JUDGED // 2:
            return {"mmd2": WORST, "empty": empty}
        drawn = matrix(features(s.labels, s.spacing_mm) for s in shapes)
        return {
            "mmd2": mmd2(*standardise(real, drawn)),
            "rim_contact_gap": abs(_mean(real[:, RIM]) - _mean(drawn[:, RIM])),
            "empty": empty,
        }

    @torch.no_grad()
    def preview(self, batch: Batch) -> dict[str, Volume]:
        """Four drawings, side by side."""
        spacing = float(batch["spacing_mm"])
        affine = np.diag([spacing, spacing, spacing, 1.0])
        return {
            f"drawn {i}": Volume(data=shape.labels[None].astype(np.float32), affine=affine)
            for i, shape in enumerate(self._draw(4, spacing))
        }

    def _draw(self, count: int, spacing_mm: float) -> list[Shape]:
        generator, shapes = self.model["generator"], []
        for number in range(count):
            with contextlib.suppress(SynthError):  # nothing came out: counted as empty
                shape, _ = draw_one(
                    generator, self.config, 0, number, spacing_mm=spacing_mm, tries=1
                )
                shapes.append(shape)
        return shapes


def ordered_losses(model: nn.ModuleDict, batch: Batch, config: Config) -> Losses:
    """Generator and critic, each on one pairing of real and drawn lesions of equal sizes."""
    generator, critic = model["generator"], model["critic"]
    real, size = batch["maps"], batch["size"]
    fake = generator(draw_codes(generator, len(real), real.device), size)
    with frozen(critic):
        loss = relativistic_loss(critic(real, size), critic(fake, size))
        loss = loss + config.obedience * composition_error(fake, size, config)
    yield "generator", loss
    fake = fake.detach()
    loss = relativistic_loss(critic(fake, size), critic(real, size))
    few = slice(0, max(len(real) // PENALISED, 1))
    for maps in (real[few], fake[few]):
        loss = loss + config.penalty / 2 * zero_centred_penalty(critic, maps, size[few])
    yield "critic", loss


def alpha_losses(model: nn.ModuleDict, batch: Batch, config: Config) -> Losses:
    """Generator with encoder, critic, code critic (Kwon et al. 2019, section 3)."""
    generator, encoder = model["generator"], model["encoder"]
    critic, code_critic = model["critic"], model["code_critic"]
    real = batch["maps"]
    code = draw_codes(generator, len(real), real.device)
    with frozen(critic, code_critic):
        encoded = encoder(real)
        again, fake = generator(encoded), generator(code)
        loss = -code_critic(encoded).mean() - critic(again).mean() - critic(fake).mean()
        loss = loss + config.reconstruction * F.mse_loss(again, real)
        loss = loss + config.gradient * gradient_difference(again, real)
    yield "generator", loss
    again, fake, encoded = again.detach(), fake.detach(), encoded.detach()
    loss = critic(again).mean() + critic(fake).mean() - 2 * critic(real).mean()
    for drawing in (fake, again):
        loss = loss + config.penalty * one_centred_penalty(critic, real, drawing)
    yield "critic", loss
    code = draw_codes(generator, len(real), real.device)
    loss = code_critic(encoded).mean() - code_critic(code).mean()
    yield "code_critic", loss + config.penalty * one_centred_penalty(code_critic, code, encoded)


def draw_codes(generator: nn.Module, count: int, device: torch.device) -> Tensor:
    """Draw codes from the seeded default stream, the same on every device."""
    return torch.randn(count, generator.code_length).to(device)  # ty: ignore


def relativistic_loss(others: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
    """Softplus of how much realer the others look; the whole and the places weigh the same."""
    return torch.stack([F.softplus(a - b).mean() for a, b in zip(others, own, strict=True)]).sum()


def zero_centred_penalty(critic: nn.Module, maps: Tensor, size: Tensor) -> Tensor:
    """‖∇ D(x)‖² of the whole, plus its mean over the places, averaged over the items.

    Places see little of each other's input: the squared gradient of their sum is the sum.
    """
    maps = maps.detach().requires_grad_()
    whole, places = critic(maps, size)
    answer = whole.sum() + places.sum() / places.shape[1] ** 0.5
    (slope,) = torch.autograd.grad(answer, maps, create_graph=True)
    return slope.square().flatten(1).sum(1).mean()


def one_centred_penalty(critic: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """(‖∇ₓ D(x)‖ - 1)² at random points between a and b (Gulrajani et al. 2017)."""
    share = torch.rand(len(a), *[1] * (a.ndim - 1)).to(a)
    between = (share * a + (1 - share) * b).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norm = (slope.square().flatten(1).sum(1) + 1e-15).sqrt()
    return (norm - 1).square().mean()


def gradient_difference(a: Tensor, b: Tensor) -> Tensor:
    """Sum of squared differences of absolute finite differences along the three axes."""
    total = a.new_zeros(())
    for axis in (2, 3, 4):
        total = total + (a.diff(dim=axis).abs() - b.diff(dim=axis).abs()).square().sum()
    return total


def composition_error(maps: Tensor, size: Tensor, config: Config) -> Tensor:
    """Squared error of TC's share of WT and of ET's share of TC."""
    ed, et, ncr = soft_classes(maps, config.reach).flatten(2).sum(2).unbind(1)
    core = et + ncr
    shares = torch.stack([core / (ed + core + 1), et / (core + 1)], dim=1)
    return (shares - size[:, [TC_IN_WT, ET_IN_TC]]).square().sum(1).mean()


@contextlib.contextmanager
def frozen(*networks: nn.Module) -> Generator[None]:
    """Let gradients through networks, not into their weights."""
    own = [p for network in networks for p in network.parameters()]
    for p in own:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in own:
            p.requires_grad_(True)


class HeldOut:
    """All held-out lesions as the one item of the validation."""

    def __init__(self, lesions: LesionData) -> None:
        table = matrix(features(s.labels, s.spacing_mm) for s in lesions.shapes())
        self.features = torch.from_numpy(table)
        self.spacing_mm = torch.tensor(lesions.spacing_mm())

    def __len__(self) -> int:
        return 1

    def item(self, index: int, seed: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the features of every lesion."""
        return {"features": self.features, "spacing_mm": self.spacing_mm}


def standardise(real: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale features by the real ones' mean and spread; what does not exist counts as the mean."""
    mean = np.array([_mean(column) for column in real.T])
    spread = np.array([np.std(c[np.isfinite(c)]) if np.isfinite(c).any() else 0 for c in real.T])
    spread = np.maximum(spread, list(DESCRIBED.values()))
    return np.nan_to_num((real - mean) / spread), np.nan_to_num((drawn - mean) / spread)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0


def assemble(
    config: Config, training: Sequence[Case], held_out: Sequence[Case], *, cache: Path
) -> tuple[Recipe, LesionData, HeldOut | None]:
    """Return (recipe, training items, validation) for the loop."""
    items = LesionData(training, config, cache=ArrayCache(cache))
    recipe = Recipe(config)
    if config.architecture == "ordered":
        fit_generator(recipe.model["generator"], items, config)  # ty: ignore
    judged = LesionData(held_out, config, cache=ArrayCache(cache)) if held_out else None
    return recipe, items, HeldOut(judged) if judged and len(judged) > 1 else None
