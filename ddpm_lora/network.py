"""The network, and the denoiser that samplers call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddpm_lora.conditioning import head_in, unlabelled
from ddpm_lora.config import Config
from ddpm_lora.state_space import EDGE, MEAN, SPREAD, clamped, space_of
from synth.base.errors import SynthError
from synth.diffusion import schedule
from synth.diffusion.schedule import Denoiser, Schedule
from synth.diffusion.unet import UNet


def build(config: Config) -> nn.Module:
    """Build the shared U-Net: (x, t) → what the objective asks for; x = cat(state, condition).

    In wavelet space the statistics of the bands travel with the weights, as buffers.
    """
    network = UNet(config.unet())
    if config.space == "wavelet":
        network.register_buffer(MEAN, torch.zeros(config.state_channels))
        for name in (SPREAD, EDGE):
            network.register_buffer(name, torch.ones(config.state_channels))
    return network


def schedule_of(config: Config) -> Schedule:
    """Return the noise levels a configuration is trained on."""
    if config.objective == "flow":
        return Schedule.flow(config.timesteps)
    return Schedule.cosine(config.timesteps)


def denoiser(
    network: nn.Module,
    config: Config,
    planes: Tensor,
    *,
    guidance: float = 1.0,
    known: tuple[Tensor, Tensor] | None = None,
) -> Denoiser:
    """Return the Denoiser of states under planes (B, 4 or 7, X, Y, Z), for any sampler.

    `known` is an image (B, 4, X, Y, Z) and the zone of it that is to be drawn: the rest is shown
    free of noise at every step, as in training, and comes back as it is.
    Answers are kept within intensities at every step, as Med-DDPM does. With guidance g ≠ 1 the
    network is asked twice, with and without labels: x0 = x0_without + g (x0_with - x0_without)
    (Ho & Salimans 2022).
    """
    if guidance != 1 and not config.label_drop:
        raise SynthError(
            f"guidance {guidance:g} of a model that was never trained without labels",
            hint="guidance 1 draws from it as it is; training with label_drop > 0 allows others",
        )
    space, head = space_of(config, network), head_in(planes)
    unknown = space.unknown(head, known[1] if known else None)
    given = space.state(known[0], head) * (1 - unknown) if known else 0.0
    shown, hidden = (space.condition(p, unknown) for p in (planes, unlabelled(planes)))
    plain = schedule.denoiser(network, schedule_of(config), config.objective)

    def denoise(x_t: Tensor, logsnr: Tensor, cond: Tensor | None = None) -> Tensor:
        del cond  # the planes are the condition
        x_t = x_t * unknown + given
        x0 = plain(x_t, logsnr, shown)
        if guidance != 1:
            without = plain(x_t, logsnr, hidden)
            x0 = without + guidance * (x0 - without)
        return clamped(x0, head, space, config.ceiling) * unknown + given

    return denoise
