"""MedNeXt (Roy et al., MICCAI 2023).

A U-Net of ConvNeXt blocks: a depthwise convolution looks around, two pointwise ones widen and
narrow. MONAI's module of the same name differs from the paper's in the widths of its down blocks
(B, M and L), so the network is written here; `compat` reads the weights of both where they fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segmentation.config import CONTRASTS, Config
from segmentation.networks.cpu_convolutions import (
    depthwise,
    feed_forward,
    laid_out,
    pointwise,
    quick,
)
from segmentation.networks.segmenter import Segmenter
from synth.data.labels import REGIONS

LEVELS = 4  # resolutions of the encoder above the bottleneck; the decoder has as many


@dataclass(frozen=True)
class Size:
    """Table 1 of the paper: encoder, bottleneck and decoder, from the input to the output."""

    expansion: tuple[int, ...]
    """How much wider blocks are inside."""
    blocks: tuple[int, ...]


_EXPANSION = (2, 3, 4, 4, 4, 4, 4, 3, 2)
SIZES = {
    "mednext_s": Size(expansion=(2,) * 9, blocks=(2,) * 9),
    "mednext_b": Size(expansion=_EXPANSION, blocks=(2,) * 9),
    "mednext_m": Size(expansion=_EXPANSION, blocks=(3, 4, 4, 4, 4, 4, 4, 4, 3)),
    "mednext_l": Size(expansion=(3, 4, 8, 8, 8, 8, 8, 4, 3), blocks=(3, 4, 8, 8, 8, 8, 8, 4, 3)),
}


class Block(nn.Module):
    """x + compress(GELU(expand(norm(depthwise(x)))))."""

    def __init__(self, c: int, expansion: int, kernel: int, checkpointing: str, out: int = 0):
        super().__init__()
        self.checkpointing = checkpointing
        self.depthwise = self._depthwise(c, kernel)
        self.norm = nn.GroupNorm(c, c)
        self.expand = nn.Conv3d(c, expansion * c, 1)
        self.compress = nn.Conv3d(expansion * c, out or c, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep for the backward pass what the policy says."""
        return self._recomputed("block", self._whole, x)

    def _whole(self, x: Tensor) -> Tensor:
        y = depthwise(x, self.depthwise)
        return self._joined(self._recomputed("expansion", self._widened, y), x)

    def _widened(self, y: Tensor) -> Tensor:
        return feed_forward(y, self.norm, self.expand, self.compress)

    def _recomputed(self, policy: str, work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        again = policy == self.checkpointing and torch.is_grad_enabled()
        if not again or (policy == "expansion" and quick(x)):  # which does so anyway
            return work(x)
        return checkpoint(work, x, use_reentrant=False, preserve_rng_state=False)

    def _depthwise(self, c: int, kernel: int) -> nn.Conv3d | nn.ConvTranspose3d:
        return nn.Conv3d(c, c, kernel, padding=kernel // 2, groups=c)

    def _joined(self, y: Tensor, x: Tensor) -> Tensor:
        return y + x


class DownBlock(Block):
    """Halves the grid and changes the channels."""

    def __init__(self, c: int, expansion: int, kernel: int, checkpointing: str, out: int) -> None:
        super().__init__(c, expansion, kernel, checkpointing, out)
        self.shortcut = nn.Conv3d(c, out, 1, stride=2)

    def _depthwise(self, c: int, kernel: int) -> nn.Conv3d:
        return nn.Conv3d(c, c, kernel, stride=2, padding=kernel // 2, groups=c)

    def _joined(self, y: Tensor, x: Tensor) -> Tensor:
        return y + pointwise(x[:, :, ::2, ::2, ::2], self.shortcut)


class UpBlock(Block):
    """Doubles the grid and changes the channels.

    Of n voxels a transposed convolution makes 2n - 1; the first plane along each axis is zero.
    """

    def __init__(self, c: int, expansion: int, kernel: int, checkpointing: str, out: int) -> None:
        super().__init__(c, expansion, kernel, checkpointing, out)
        self.shortcut = nn.ConvTranspose3d(c, out, 1, stride=2)

    def _depthwise(self, c: int, kernel: int) -> nn.ConvTranspose3d:
        return nn.ConvTranspose3d(c, c, kernel, stride=2, padding=kernel // 2, groups=c)

    def _joined(self, y: Tensor, x: Tensor) -> Tensor:
        assert self.shortcut.bias is not None
        y = F.pad(y + self.shortcut.bias[:, None, None, None], (1, 0, 1, 0, 1, 0))
        y[:, :, 1::2, 1::2, 1::2] += pointwise(x, self.shortcut, bias=False)
        return y


class MedNeXt(Segmenter):
    """The network of any size; kernel 3 or 5. Lists run from the input to the output."""

    min_divisor = 2**LEVELS

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, out = SIZES[config.network], len(REGIONS)
        widths = [config.width * 2**i for i in range(LEVELS + 1)]
        options = (config.kernel, config.checkpointing)

        def stage(place: int, width: int) -> nn.Sequential:
            each = (
                Block(width, size.expansion[place], *options) for _ in range(size.blocks[place])
            )
            return nn.Sequential(*each)

        self.stem = nn.Conv3d(CONTRASTS, widths[0], 1)
        self.encoder = nn.ModuleList(stage(i, widths[i]) for i in range(LEVELS))
        self.down = nn.ModuleList(
            DownBlock(widths[i], size.expansion[i + 1], *options, out=widths[i + 1])
            for i in range(LEVELS)
        )
        self.bottleneck = stage(LEVELS, widths[LEVELS])
        places = [(LEVELS + 1 + i, LEVELS - 1 - i) for i in range(LEVELS)]  # in the table, in depth
        self.up = nn.ModuleList(
            UpBlock(widths[level + 1], size.expansion[place], *options, out=widths[level])
            for place, level in places
        )
        self.decoder = nn.ModuleList(stage(place, widths[level]) for place, level in places)
        supervised = widths if config.deep_supervision else widths[:1]
        self.heads = nn.ModuleList(nn.Conv3d(width, out, 1) for width in supervised)

    def scales(self, x: Tensor, *, deep: bool) -> list[Tensor]:  # (B, 4, X, Y, Z)
        """Return [(B, 3, X, Y, Z), (B, 3, X/2, Y/2, Z/2), …] down to a sixteenth."""
        x, skips = pointwise(laid_out(x), self.stem), []
        for stage, down in zip(self.encoder, self.down, strict=True):
            skips.append(stage(x))
            x = down(skips[-1])
        states = [self.bottleneck(x)]  # (B, 16 w, X/16, Y/16, Z/16)
        for up, stage in zip(self.up, self.decoder, strict=True):
            states.append(stage(up(states[-1]) + skips.pop()))
        wanted = len(self.heads) if deep else 1
        return [pointwise(states[-1 - i], self.heads[i]) for i in range(wanted)]  # ty: ignore

    def part_of(self, name: str) -> str:
        """A level's blocks and the change of grid next to them are one part."""
        module, index = name.split(".")[:2]
        if module == "stem":
            return "enc0"
        prefix = {"encoder": "enc", "down": "enc", "up": "dec", "decoder": "dec"}.get(module)
        return f"{prefix}{index}" if prefix else module
