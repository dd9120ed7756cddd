"""WDM's U-Net written plainly in torch.nn modules: what ours is timed against.

For the wavelet diffusion model of Friedrich et al. (2024): two residual blocks a level, mean
pooling down, nearest neighbour up, skips averaged in, no attention. It takes no precautions: no
float32 islands, no checks, no checkpointing.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from synth.diffusion.unet import UNet, timestep_embedding
from synth.diffusion.unet_config import UNetConfig


class PlainBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice; time is added between; resampled before the first."""

    def __init__(
        self, inputs: int, outputs: int, times: int, groups: int, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm_a = nn.GroupNorm(groups, inputs)
        self.conv_a = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(times, outputs)
        self.norm_b = nn.GroupNorm(groups, outputs)
        self.conv_b = nn.Conv3d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv3d(inputs, outputs, 1)
        self.resample = resample or nn.Identity()

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        h = self.conv_a(self.resample(F.silu(self.norm_a(x))))
        h = h + self.time(F.silu(times))[:, :, None, None, None]
        return self.shortcut(self.resample(x)) + self.conv_b(F.silu(self.norm_b(h)))


class PlainUNet(nn.Module):
    """Levels of two blocks, mean pooling down, nearest neighbour up, skips averaged in."""

    def __init__(self, shape: UNetConfig) -> None:
        super().__init__()
        width, groups, times = shape.width, shape.groups, 4 * shape.width
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, times), nn.SiLU(), nn.Linear(times, times))
        self.stem = nn.Conv3d(shape.in_channels, width, 3, padding=1)
        self.down, skips = nn.ModuleList(), [width]
        for level, multiplier in enumerate(shape.multipliers):
            if level:
                pool = nn.AvgPool3d(2)
                self.down.append(PlainBlock(skips[-1], skips[-1], times, groups, pool))
                skips.append(skips[-1])
            for _ in range(2):
                self.down.append(PlainBlock(skips[-1], multiplier * width, times, groups))
                skips.append(multiplier * width)
        deepest = skips[-1]
        self.middle = nn.ModuleList(PlainBlock(deepest, deepest, times, groups) for _ in range(2))
        self.up, self.doubling = nn.ModuleList(), nn.ModuleDict()
        # Skips are averaged in, so each block already answers in the width of the skip after its.
        after = [*skips[-2::-1], width]
        for index, (inputs, outputs) in enumerate(zip(skips[::-1], after, strict=True)):
            self.up.append(PlainBlock(inputs, outputs, times, groups))
            if index % 3 == 2 and index + 1 < len(skips):
                double = nn.Upsample(scale_factor=2, mode="nearest")
                block = PlainBlock(outputs, outputs, times, groups, double)
                self.doubling[str(index)] = block
        self.head = nn.Sequential(
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv3d(width, shape.out_channels, 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        times = self.time(timestep_embedding(t, self.width, 10_000.0))
        h = self.stem(x)
        skips = [h]
        for block in self.down:
            h = block(h, times)
            skips.append(h)
        for block in self.middle:
            h = block(h, times)
        for index, block in enumerate(self.up):
            h = block((h + skips.pop()) / 2, times)
            if str(index) in self.doubling:
                h = self.doubling[str(index)](h, times)
        return self.head(h)


PLAIN_NAMES = (
    (r"^time_embed\.", "time."),
    (r"^input_blocks\.0\.0\.", "stem."),
    (r"^input_blocks\.(\d+)\.0\.", lambda found: f"down.{int(found[1]) - 1}."),
    (r"^middle_block\.", "middle."),
    (r"^output_blocks\.(\d+)\.0\.", r"up.\1."),
    (r"^output_blocks\.(\d+)\.1\.", r"doubling.\1."),
    (r"^out\.", "head."),
    (r"\bin_layers\.0\b", "norm_a"),
    (r"\bin_layers\.2\b", "conv_a"),
    (r"\bemb_layers\.1\b", "time"),
    (r"\bout_layers\.0\b", "norm_b"),
    (r"\bout_layers\.3\b", "conv_b"),
    (r"\bskip_connection\b", "shortcut"),
)


def plain_name(name: str) -> str:
    """Rename a tensor of the public state dicts to its name in the transcription."""
    for pattern, replacement in PLAIN_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def pair(config: UNetConfig) -> dict[str, nn.Module]:
    """Both networks with the same random weights; new ones are zero at the end and would agree."""
    torch.manual_seed(0)
    ours, plain = UNet(replace(config, zero_init_out=False)), PlainUNet(config)
    plain.load_state_dict({plain_name(name): v for name, v in ours.state_dict().items()})
    return {"synth": ours, "plain": plain}
