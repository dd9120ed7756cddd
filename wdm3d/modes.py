"""The ways to tell the network what is known: one small strategy object each.

A mode says what is diffused (the *state*, in wavelet bands), what the network is shown beside it,
and how an image comes back. Training and sampling use the same object, so they cannot differ.
Every map below is linear, so whatever a sampler makes of states and noise stays in their space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from synth.base.errors import SynthError
from synth.diffusion.wavelet import dwt3, idwt3
from wdm3d.config import INPUT_SCALE, Config

Batch = dict[str, Tensor]


class Mode(Protocol):
    """What a mode must answer; `batch` holds the arrays of `scene.view`, batched."""

    def state(self, image: Tensor, batch: Batch) -> Tensor:
        """Return the clean state of an image (B, C, x, y, z) → (B, 8C, x/2, y/2, z/2)."""
        ...

    def confine(self, bands: Tensor, batch: Batch) -> Tensor:
        """Project noise or a noisy state onto where states live; linear, leaves states alone."""
        ...

    def answer(self, output: Tensor, batch: Batch) -> Tensor:
        """Turn a network's output into a clean state, clamped to intensities."""
        ...

    def inputs(self, x_t: Tensor, alpha: Tensor, batch: Batch) -> Tensor:
        """Return what the network sees: the noisy state and all it is conditioned on."""
        ...

    def image(self, state: Tensor, batch: Batch) -> Tensor:
        """Return the image of a state, known tissue around it."""
        ...


def mode_of(config: Config) -> Mode:
    """Return the strategy a configuration names."""
    if config.mode == "contrast":
        raise SynthError(
            "this model draws a missing contrast from three others and fills no hole",
            hint="inpainting needs a model of another mode; `synth info` shows it",
        )
    kinds = {
        "default": Default,
        "always_known_healthy": AlwaysKnownHealthy,
        "context": Context,
        "guided": Guided,
    }
    return kinds[config.mode](config)


def analyse(image: Tensor, config: Config) -> Tensor:
    """Haar bands of an image: (B, C, x, y, z) → (B, C · 8^L, x/2^L, y/2^L, z/2^L)."""
    for _ in range(config.wavelet_levels):
        image = dwt3(image)
    return image


def synthesise(bands: Tensor, config: Config) -> Tensor:
    """Undo `analyse`."""
    for _ in range(config.wavelet_levels):
        bands = idwt3(bands)
    return bands


def low_scale(config: Config, like: Tensor) -> Tensor:
    """(C · 8^L, 1, 1, 1): 1 / low_divisor^L for each contrast's low band, 1 for the others."""
    scale = torch.ones(config.bands_each, device=like.device, dtype=like.dtype)
    scale[0] = config.low_divisor**-config.wavelet_levels
    return scale.repeat(len(config.modalities)).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Default:
    """Unconditional: the whole image is the state, tumour and all."""

    config: Config

    def state(self, image: Tensor, batch: Batch) -> Tensor:
        """Bands of the image, the low one divided."""
        del batch
        return analyse(image, self.config) * low_scale(self.config, image)

    def confine(self, bands: Tensor, batch: Batch) -> Tensor:
        """States are everywhere."""
        del batch
        return bands

    def answer(self, output: Tensor, batch: Batch) -> Tensor:
        """Clamp to [-1, 1] as an image."""
        return self.state(self.image(output, batch).clamp(-1, 1), batch)

    def inputs(self, x_t: Tensor, alpha: Tensor, batch: Batch) -> Tensor:
        """The noisy state alone."""
        del alpha, batch
        return x_t

    def image(self, state: Tensor, batch: Batch) -> Tensor:
        """Undo the bands."""
        del batch
        return synthesise(state / low_scale(self.config, state), self.config)


@dataclass(frozen=True)
class AlwaysKnownHealthy:
    """Noise in the hole only, clean healthy tissue around it, the mask beside it.

    The network answers with the whole image; the state is its part inside the hole.
    """

    config: Config

    def state(self, image: Tensor, batch: Batch) -> Tensor:
        """Bands of what is inside the hole."""
        return analyse(image * batch["roi"], self.config) * low_scale(self.config, image)

    def confine(self, bands: Tensor, batch: Batch) -> Tensor:
        """Cut the hole out, as an image; blocks wholly inside keep unit noise in every band."""
        return self.state(synthesise(bands / low_scale(self.config, bands), self.config), batch)

    def answer(self, output: Tensor, batch: Batch) -> Tensor:
        """Clamp the answered image to [-1, 1] and cut the hole out of it."""
        whole = synthesise(output / low_scale(self.config, output), self.config)
        return self.state(whole.clamp(-1, 1), batch)

    def inputs(self, x_t: Tensor, alpha: Tensor, batch: Batch) -> Tensor:
        """The noisy hole in known tissue, and the mask's bands."""
        scale = low_scale(self.config, x_t)
        known = analyse(batch["known"] * (1 - batch["roi"]), self.config) * scale
        if self.config.known == "scaled":
            known = known * alpha
        mask = analyse(batch["roi"], self.config) * scale[: self.config.bands_each]
        return torch.cat([x_t + known, mask], dim=1)

    def image(self, state: Tensor, batch: Batch) -> Tensor:
        """Paste the hole into the known tissue."""
        painted = synthesise(state / low_scale(self.config, state), self.config) * batch["roi"]
        return painted + batch["known"] * (1 - batch["roi"])


@dataclass(frozen=True)
class Context:
    """Everything known as explicit inputs; the state is the residual on the best classical fill."""

    config: Config

    def state(self, image: Tensor, batch: Batch) -> Tensor:
        """Bands of the residual inside the hole, about unit variance."""
        residual = (image - self.base(batch)) * batch["roi"]
        return analyse(residual / self.config.residual_scale, self.config)

    def confine(self, bands: Tensor, batch: Batch) -> Tensor:
        """Cut the hole out."""
        return analyse(synthesise(bands, self.config) * batch["roi"], self.config)

    def answer(self, output: Tensor, batch: Batch) -> Tensor:
        """Keep the inside of the hole, no darker than background."""
        return self.state(self.image(output, batch).clamp(min=-1), batch)

    def inputs(self, x_t: Tensor, alpha: Tensor, batch: Batch) -> Tensor:
        """Noisy residual; known image, fills and mirror image; masks; coordinates."""
        del alpha
        names = ("known", "fills", "roi", "hole", "reflected")
        shown = torch.cat([batch[n] for n in names], dim=1)
        return torch.cat([x_t, analyse(shown, self.config), batch["places"]], dim=1)

    def image(self, state: Tensor, batch: Batch) -> Tensor:
        """Add the residual to the fill, inside the hole."""
        painted = self.base(batch) + self.config.residual_scale * synthesise(state, self.config)
        return torch.where(batch["roi"] > 0, painted, batch["known"])

    def base(self, batch: Batch) -> Tensor:
        """The fill the residual stands on: the mirror image bent onto the rim."""
        return batch["fills"][:, : len(self.config.modalities)]


@dataclass(frozen=True)
class Guided(Context):
    """As context, with a registered template among the fills and their mean as the base."""

    def inputs(self, x_t: Tensor, alpha: Tensor, batch: Batch) -> Tensor:
        """Noisy residual; known image and fills; where each may be trusted, and the holes."""
        del alpha
        masks = [2 * batch[n] - 1 for n in ("reflected", "template_brain", "roi", "hole")]
        shown = torch.cat([batch["known"], batch["fills"], *masks], dim=1)
        return torch.cat([x_t, INPUT_SCALE * analyse(shown, self.config)], dim=1)

    def base(self, batch: Batch) -> Tensor:
        """The mean of template, mirror image and biharmonic fill."""
        count = len(self.config.modalities)
        return batch["fills"][:, : 3 * count].unflatten(1, (3, count)).mean(dim=1)
