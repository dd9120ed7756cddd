"""The 3-D U-Net of the diffusion families, built from a `UNetConfig`.

Module names follow OpenAI's guided-diffusion (`input_blocks.i.j.in_layers.0` …), which WDM, cWDM,
fastWDM3D and Med-DDPM inherited: their state dicts load as they are, with `strict=True`.

Memory format: every layer keeps `torch.channels_last_3d`. Convert both sides once,
`network.to(memory_format=torch.channels_last_3d)` and the same on the input, to spare a GPU under
autocast the transposes; on a CPU in float32 the default format is as fast.
Precision: float32, `torch.autocast`, and `network.bfloat16()` all work; normalisation, the time
embedding's angles and the softmax stay in float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from synth.base.errors import SynthError
from synth.diffusion.unet_config import UNetConfig


def timestep_embedding(t: Tensor, width: int, max_period: float) -> Tensor:
    """Cosines, then sines, of t · max_period^(-i / half): float32 whatever t is.

    t may be fractional: a sampler that lands between two training timesteps says so.
    """
    half = width // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponents)  # (B, width/2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, width)


class GroupNorm32(nn.GroupNorm):
    """GroupNorm computed in float32, answered in the input's own precision."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise; bfloat16 keeps too few digits for a mean over millions of voxels."""
        weight, bias = self.weight.float(), self.bias.float()
        normal = F.group_norm(input.float(), self.num_groups, weight, bias, self.eps)
        return normal.to(input.dtype)


def _conv(inputs: int, outputs: int, *, zero: bool = False) -> nn.Conv3d:
    conv = nn.Conv3d(inputs, outputs, kernel_size=3, padding=1)
    if zero:
        _zero(conv)
    return conv


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class _Halve(nn.Module):
    """Average pooling: the in-block down-sampling."""

    def forward(self, x: Tensor) -> Tensor:
        # A mean of eight in float32: torch has no bfloat16 pooling on a CPU.
        return F.avg_pool3d(x.float(), 2).to(x.dtype)  # (B, C, X/2, Y/2, Z/2)


class _Double(nn.Module):
    """Nearest neighbour: the in-block up-sampling."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")  # (B, C, 2X, 2Y, 2Z)


class Downsample(nn.Module):
    """Strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv3d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the grid."""
        return self.op(x)  # (B, C, X/2, Y/2, Z/2)


class Upsample(nn.Module):
    """Trilinear interpolation, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Double the grid."""
        x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        return self.conv(x)  # (B, C, 2X, 2Y, 2Z)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, with the time embedding between and a shortcut around.

    `resample` acts after the first activation and on the shortcut alike.
    """

    def __init__(
        self, config: UNetConfig, inputs: int, outputs: int, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.resample = resample or nn.Identity()
        self.in_layers = nn.Sequential(
            GroupNorm32(config.groups, inputs), nn.SiLU(), _conv(inputs, outputs)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.width, outputs))
        self.out_layers = nn.Sequential(
            GroupNorm32(config.groups, outputs),
            nn.SiLU(),
            nn.Identity(),  # a dropout in the public networks, whose names count it
            _conv(outputs, outputs, zero=config.zero_init_out),
        )
        same = inputs == outputs
        self.skip_connection = nn.Identity() if same else nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, …) and the time embedding (B, 4·width) to (B, C', …)."""
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        shift = self.emb_layers(emb).to(h.dtype)[:, :, None, None, None]  # (B, C', 1, 1, 1)
        return self.skip_connection(self.resample(x)) + self.out_layers(h + shift)


class Attention(nn.Module):
    """Self-attention over every voxel by one head, with a shortcut."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm32(config.groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        if config.zero_init_out:
            _zero(self.proj_out)

    def forward(self, x: Tensor) -> Tensor:
        """Softmax(q·k / √d) v; with T = X·Y·Z tokens."""
        tokens = x.flatten(2)  # (B, C, T)
        qkv = self.qkv(self.norm(tokens))
        q, k, v = qkv.unflatten(1, (1, 3, -1)).mT.unbind(2)  # (B, 1, T, C)
        attended = F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2)  # (B, C, T)
        return x + self.proj_out(attended).view_as(x)


class Layers(nn.ModuleList):
    """Layers in a row; those that want the time embedding get it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(layers)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Apply each layer in turn."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class UNet(nn.Module):
    """`network(x, t)`: x_t with its conditions on channels, and real-valued timesteps (B,)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        embedding = 4 * config.width
        self.time_embed = nn.Sequential(
            nn.Linear(config.width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.input_blocks, skips = _encoder(config)
        deepest = skips[-1]
        self.middle_block = Layers(
            ResidualBlock(config, deepest, deepest),
            *([Attention(config, deepest)] if config.middle_attention else []),
            ResidualBlock(config, deepest, deepest),
        )
        self.output_blocks, channels = _decoder(config, skips)
        self.out = nn.Sequential(
            GroupNorm32(config.groups, channels),
            nn.SiLU(),
            _conv(channels, config.out_channels, zero=config.zero_init_out),
        )
        if config.bypass:
            self.bypass = nn.Linear(embedding, config.out_channels)
            _zero(self.bypass)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, in, X, Y, Z), t (B,) integer or fractional, to (B, out, X, Y, Z).

        `cond`, where given, is put behind x on the channel axis; `in_channels` counts both.
        """
        if cond is not None:
            x = torch.cat([x, cond], dim=1)
        self._check(x)
        angles = timestep_embedding(t, self.config.width, self.config.max_period)
        precision = next(self.time_embed.parameters()).dtype
        emb = self.time_embed(angles.to(precision))  # (B, 4·width)
        h, skips = x, []
        for stage in self.input_blocks:
            h = self._run(stage, h, emb)
            skips.append(h)
        h = self._run(self.middle_block, h, emb)
        for stage in self.output_blocks:
            h = self._run(stage, self._join(h, skips.pop()), emb)
        h = self.out(h)
        if self.config.bypass:
            h = h + self.bypass(F.silu(emb))[..., None, None, None] * x[:, : h.shape[1]]
        return h

    def _join(self, h: Tensor, skip: Tensor) -> Tensor:
        if self.config.skips == "additive":
            return (h + skip) / 2
        return torch.cat([h, skip], dim=1)

    def _run(self, stage: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        if self.config.checkpointing and torch.is_grad_enabled():
            # Non-reentrant: frozen weights (LoRA) and inputs without gradient still train.
            return checkpoint(stage, h, emb, use_reentrant=False)
        return stage(h, emb)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != self.config.in_channels:
            raise SynthError(
                f"the network wants (B, {self.config.in_channels}, X, Y, Z), got {tuple(x.shape)}",
                hint="in_channels counts the noisy image and its conditions together",
            )
        for axis, size in zip("XYZ", x.shape[2:], strict=True):
            if size % self.config.stride:
                raise SynthError(
                    f"axis {axis} has size {size}, not a multiple of {self.config.stride}",
                    hint=f"a U-Net of {self.config.levels} levels halves each axis that often; pad",
                )


def _encoder(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The encoder, and the channels of every skip it leaves, in order."""
    channels = config.width
    stages = [Layers(_conv(config.in_channels, channels))]
    skips = [channels]
    for level, multiplier in enumerate(config.multipliers):
        if level:
            blockwise = config.resample == "block"
            down = ResidualBlock(config, channels, channels, _Halve()) if blockwise else None
            stages.append(Layers(down or Downsample(channels)))
            skips.append(channels)
        for _ in range(config.blocks_per_level):
            stages.append(Layers(ResidualBlock(config, channels, multiplier * config.width)))
            channels = multiplier * config.width
            skips.append(channels)
    return nn.ModuleList(stages), skips


def _decoder(config: UNetConfig, skips: list[int]) -> tuple[nn.ModuleList, int]:
    """The decoder, and the channels it ends with.

    A mean needs equal widths: with additive skips each block already produces the width of the
    skip that comes next, one block before the level boundary.
    """
    additive = config.skips == "additive"
    waiting = list(skips)
    channels = waiting[-1]
    stages = []
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
        for block in range(config.blocks_per_level + 1):
            skip = waiting.pop()
            following = waiting[-1] if waiting else config.width
            outputs = following if additive else multiplier * config.width
            inputs = channels if additive else channels + skip
            layers: list[nn.Module] = [ResidualBlock(config, inputs, outputs)]
            channels = outputs
            if level and block == config.blocks_per_level:
                blockwise = config.resample == "block"
                up = ResidualBlock(config, channels, channels, _Double()) if blockwise else None
                layers.append(up or Upsample(channels))
            stages.append(Layers(*layers))
    return nn.ModuleList(stages), channels
