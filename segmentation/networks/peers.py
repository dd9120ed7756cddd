"""MONAI's segmentation networks behind the same interface.

U-Net (Ronneberger et al. 2015, with residual units), DynUNet (nnU-Net, Isensee et al. 2021),
Attention U-Net (Oktay et al. 2018), SegResNet (Myronenko 2018), UNETR (Hatamizadeh et al. 2022) and
Swin UNETR (Hatamizadeh et al. 2022).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from segmentation.config import CONTRASTS, Config
from segmentation.networks.segmenter import Segmenter
from synth.base.errors import SynthError
from synth.data.labels import REGIONS

STRIDES = 4  # halvings of the U-Nets and of DynUNet
IO: dict[str, Any] = {"in_channels": CONTRASTS, "out_channels": len(REGIONS)}


def unet(config: Config) -> nn.Module:
    """With residual units; published widths: 16, 32, 64, 128, 256."""
    from monai.networks.nets import UNet

    widths = [config.width * 2**i for i in range(STRIDES + 1)]
    return UNet(spatial_dims=3, **IO, channels=widths, strides=(2,) * STRIDES, num_res_units=2)


def attention_unet(config: Config) -> nn.Module:
    """Normalise each volume by itself: statistics of one or two crops are noise."""
    from monai.networks.nets import AttentionUnet

    widths = [config.width * 2**i for i in range(STRIDES + 1)]
    network = AttentionUnet(spatial_dims=3, **IO, channels=widths, strides=(2,) * STRIDES)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(module, name, nn.GroupNorm(child.num_features, child.num_features))
    return network


def dynunet(config: Config) -> nn.Module:
    """nnU-Net's widths: doubling up to ten times the first."""
    from monai.networks.nets import DynUNet

    network = DynUNet(
        spatial_dims=3,
        **IO,
        kernel_size=[3] * (STRIDES + 1),
        strides=[1] + [2] * STRIDES,
        upsample_kernel_size=[2] * STRIDES,
        filters=[min(config.width * 2**i, config.width * 10) for i in range(STRIDES + 1)],
        deep_supervision=config.deep_supervision,
        deep_supr_num=STRIDES - 1,
        res_block=True,
    )
    del network.skip_layers  # the same blocks by other names, in another order of calls
    return network


def segresnet(config: Config) -> nn.Module:
    """Published: width 8 in MONAI, 16 or 32 for BraTS."""
    from monai.networks.nets import SegResNet

    norm = ("GROUP", {"num_groups": math.gcd(8, config.width)})
    return SegResNet(spatial_dims=3, init_filters=config.width, **IO, norm=norm)


def unetr(config: Config) -> nn.Module:
    """Published: width 16. It learns positions, so that it takes crops of one size only."""
    from monai.networks.nets import UNETR

    network = UNETR(
        **IO,
        img_size=config.patch,
        feature_size=config.width,
        hidden_size=48 * config.width,
        mlp_dim=4 * 48 * config.width,
        num_heads=12,
    )
    for block in network.vit.blocks:
        block.norm_cross_attn = nn.Identity()  # unused; a parameter without a gradient stops DDP
    return network


def swin_unetr(config: Config) -> nn.Module:
    """Published: width 48."""
    from monai.networks.nets import SwinUNETR

    block = config.checkpointing == "block"
    return SwinUNETR(**IO, feature_size=config.width, use_checkpoint=block)


BUILDERS: dict[str, Callable[[Config], nn.Module]] = {
    f.__name__: f for f in (unet, attention_unet, dynunet, segresnet, unetr, swin_unetr)
}


PARTS: dict[str, dict[str, str]] = {
    "unet": {
        "heads": r"model\.2\.1\.",
        "bottleneck": r"model\.(1\.submodule\.){4}",
        "decoder": r"model\.(1\.submodule\.)*[12]\.(?!submodule)",
    },
    "attention_unet": {
        "heads": r"model\.2\.",
        "bottleneck": r"model\.(1\.submodule\.){4}",
        "decoder": r"model\.(1\.submodule\.)*[12]\.(?!submodule)",
    },
    "dynunet": {
        "heads": "output_block|deep_supervision_heads", "bottleneck": "bottleneck",
        "decoder": "upsamples",
    },
    "segresnet": {"heads": "conv_final", "bottleneck": r"down_layers\.3\.", "decoder": "up_"},
    "unetr": {
        "heads": r"out\.", "bottleneck": r"vit\.(?!patch_embedding|blocks\.\d\.)",
        "decoder": "decoder",
    },
    "swin_unetr": {
        "heads": r"out\.", "bottleneck": r"encoder10\.|swinViT\.layers4\.", "decoder": "decoder",
    },
}  # fmt: skip
"""How the names of a part's parameters begin; the first match counts, the rest is the encoder."""


class Peer(Segmenter):
    """One of MONAI's networks."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.kind, self.min_divisor = config.network, config.divisor
        self.window = config.patch if config.network == "unetr" else None
        try:
            self.network = BUILDERS[config.network](config)
        except (ImportError, ValueError) as error:
            # MONAI raises ImportError for what it needs besides itself, ValueError for widths.
            raise SynthError(
                f"{config.network} of width {config.width}: {error}",
                hint="the width must suit its attention heads, and einops be installed",
            ) from error

    def scales(self, x: Tensor, *, deep: bool) -> list[Tensor]:
        """Return the one answer, or DynUNet's of four grids."""
        if self.kind == "dynunet":
            return self._dynunet_scales(x, deep=deep)
        return [self.network(x)]

    def _dynunet_scales(self, x: Tensor, *, deep: bool) -> list[Tensor]:
        """Call DynUNet's blocks, whose own forward would blow every scale up to full size."""
        net: Any = self.network
        skips = [net.input_block(x)]
        for block in net.downsamples:
            skips.append(block(skips[-1]))
        states = [net.bottleneck(skips[-1])]
        for block in net.upsamples:
            states.append(block(states[-1], skips.pop()))
        found = [net.output_block(states[-1])]
        if deep and net.deep_supervision:
            found += [h(states[-2 - i]) for i, h in enumerate(net.deep_supervision_heads)]
        return found

    def part_of(self, name: str) -> str:
        """Look up the beginning of the name; levels have no names of their own."""
        name = name.removeprefix("network.")
        found = (part for part, begin in PARTS[self.kind].items() if re.match(begin, name))
        return next(found, "encoder")

    def check_size(self, x: Tensor) -> None:
        """Also refuse another size than UNETR was built for, since it learns positions."""
        super().check_size(x)
        if self.window not in (None, tuple(x.shape[2:])):
            raise SynthError(
                f"unetr was built for {self.window} voxels, not {tuple(x.shape[2:])}",
                hint="cut the scan into windows of the trained patch",
            )
