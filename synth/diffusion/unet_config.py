"""The shape of a U-Net; imports no torch.

`synth.diffusion.unet.UNet` builds what is described here. Two published networks are points in this
space: the wavelet diffusion model (WDM, Friedrich et al. 2024) is `UNetConfig()` with its own
channel counts, and Med-DDPM (Dorjsembe et al. 2024) is the one with concatenated skips,
convolutional resampling, attention in the middle and a time embedding of period 1000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from synth.base.errors import SynthError


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Architecture of the one 3-D U-Net."""

    in_channels: int = 8
    """Channels that enter: what is noisy, then everything it is conditioned on."""
    out_channels: int = 8
    """Channels that leave."""
    width: int = 64
    """Channels of the first level, and length of the sinusoidal time embedding."""
    multipliers: tuple[int, ...] = (1, 2, 2, 4, 4)
    """Width of each level as a multiple of `width`; the grid halves between levels."""
    blocks_per_level: int = 2
    """Residual blocks of each encoder level; the decoder has one more."""
    skips: Literal["additive", "concat"] = "additive"
    """How the decoder meets the encoder: the mean (h + skip) / 2, or one stack of channels."""
    resample: Literal["block", "conv"] = "block"
    """Average pooling and nearest neighbour inside residual blocks, or convolutions of their own
    (strided on the way down, after trilinear interpolation on the way up)."""
    middle_attention: bool = False
    """Self-attention between the two middle blocks."""
    max_period: float = 10_000.0
    """Longest period of the sinusoidal time embedding, in timesteps."""
    groups: int = 32
    """Groups of every GroupNorm; must divide every width."""
    bypass: bool = False
    """Add to each answer its own noisy channel times a number that depends on the noise level:
    noise then need not pass through a network of few channels."""
    checkpointing: bool = False
    """Recompute blocks in the backward pass: slower by about a third, far less memory."""
    zero_init_out: bool = True
    """Residual branches and the output convolution start at zero: a new network answers 0."""

    def __post_init__(self) -> None:
        if not self.multipliers:
            raise SynthError("multipliers is empty", hint="one number per level, e.g. 1,2,4")
        if self.width % 2:
            raise SynthError(f"width must be even for the time embedding, got {self.width}")
        for multiplier in self.multipliers:
            if (self.width * multiplier) % self.groups:
                raise SynthError(
                    f"{self.groups} groups do not divide {self.width * multiplier} channels",
                    hint="choose groups that divide width × every multiplier",
                )

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.multipliers)

    @property
    def stride(self) -> int:
        """Every spatial size of the input must be a multiple of this."""
        return 2 ** (self.levels - 1)
