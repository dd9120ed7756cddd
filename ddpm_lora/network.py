"""The network, and the denoiser that samplers call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddpm_lora import atlas
from ddpm_lora.conditioning import unlabelled
from ddpm_lora.config import CONTRASTS, Config
from ddpm_lora.state_space import ATLAS, EDGE, KINDS, MEAN, PLACES, SPREAD, clamped, space_of
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
        if config.atlas:
            network.register_buffer(ATLAS, torch.zeros(CONTRASTS, *[atlas.EDGE] * 3))
            network.register_buffer(PLACES, torch.ones(KINDS, *[atlas.EDGE] * 3))
    return network


def schedule_of(config: Config) -> Schedule:
    """Return the noise levels a configuration is trained on."""
    if config.objective == "flow":
        return Schedule.flow(config.timesteps)
    return Schedule.cosine(config.timesteps)


def denoiser(
    network: nn.Module, config: Config, planes: Tensor, *, guidance: float = 1.0
) -> Denoiser:
    """Return the Denoiser of states under label planes (B, 4, X, Y, Z), for any sampler.

    Answers are kept within intensities at every step, as Med-DDPM does. With guidance g ≠ 1 the
    network is asked twice, with and without labels: x0 = x0_without + g (x0_with - x0_without)
    (Ho & Salimans 2022).
    """
    if guidance != 1 and not config.label_drop:
        raise SynthError(
            f"guidance {guidance:g} of a model that was never trained without labels",
            hint="guidance 1 draws from it as it is; training with label_drop > 0 allows others",
        )
    space, head = space_of(config, network), planes.sum(1, keepdim=True) > 0
    shown, hidden = space.condition(planes), space.condition(unlabelled(planes))
    plain = schedule.denoiser(network, schedule_of(config), config.objective)

    unknown = space.unknown(head)

    def denoise(x_t: Tensor, logsnr: Tensor, cond: Tensor | None = None) -> Tensor:
        del cond  # the planes are the condition
        x_t = x_t * unknown
        x0 = plain(x_t, logsnr, shown)
        if guidance != 1:
            without = plain(x_t, logsnr, hidden)
            x0 = without + guidance * (x0 - without)
        return clamped(x0, head, space, config.ceiling)

    return denoise
