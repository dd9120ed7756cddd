"""Settings of the family; imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from synth.base.config import require_between
from synth.base.errors import SynthError
from synth.training.config import TrainConfig

SEED_EDGE = 4  # every network starts or ends on a grid of 4³


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one generator of tumour labels: what it draws, size and training."""

    architecture: Literal["ordered", "alpha"] = "ordered"
    """ordered draws nested distance maps on a box that grows with the lesion; alpha is the
    predecessor's alpha-GAN: soft regions in a fixed box, an encoder and a code critic beside."""
    grid: int = 32
    """Edge of the network's grid in voxels."""
    latent: int = 256
    """Length of the code."""
    width: int = 32
    """Channels of the generator's finest level."""
    critic_width: int = 32
    """Channels of the critic's (and the encoder's) finest level."""
    lr: float = 5e-4
    """Learning rate of every player. ordered: twice as much let the critic win on one of two
    cohorts."""
    shape_rate: float = 0.01
    """ordered: learning rate of the shape model that the training begins with, over `lr`."""
    critic_rate: float = 0.2
    """ordered: the critic's learning rate over `lr`."""
    smallest_ml: float = 0.5
    """Lesions below this volume are left out of the training."""
    box: float = 2.2
    """ordered: edge of the box over the cube root of the lesion's volume."""
    reach: float = 6.0
    """ordered: distances are cut at this many grid voxels, and divided by it."""
    elastic: float = 0.015
    """ordered: size of the smooth random deformation, as a share of the box; 0 for none."""
    stretch: float = 0.03
    """ordered: standard deviation of the random stretch of each axis (logarithm)."""
    spread: float = 1.2
    """ordered: shape codes are drawn this much wider than those of the lesions learned from: a
    small cohort shows less than there is."""
    sizes: int = 256
    """ordered: rows of the smoothed table of sizes that drawings follow."""
    obedience: float = 1.0
    """ordered: weight of the error in the sub-regions' shares of the lesion."""
    penalty: float = 1.0
    """Weight of the gradient penalty: zero-centred on real and drawn (ordered), one-centred on
    their interpolates (alpha)."""
    crop_mm: float = 96.0
    """alpha: edge of the box; lesions that are larger are left out, as the predecessor does."""
    channels: int = 3
    """alpha: 1 (WT), 3 (TC, WT, ET) or 4 (and RC)."""
    code_width: int = 4096
    """alpha: hidden units of the code critic."""
    reconstruction: float = 100.0
    """alpha: weight of the squared error of encoded and drawn again."""
    gradient: float = 0.01
    """alpha: weight of the difference of spatial gradients, summed over the box."""

    def __post_init__(self) -> None:
        require_between(
            self, grid=(1, 256), latent=(1, 65_536), width=(1, 2048), critic_width=(1, 2048),
            lr=(0, 10), sizes=(1, 65_536), code_width=(1, 65_536), box=(0.1, 100),
            reach=(0.1, 1000), crop_mm=(1, 1000), spread=(0, 100),
        )  # fmt: skip
        least = 2 * SEED_EDGE if self.architecture == "alpha" else 4 * SEED_EDGE
        if self.grid < least or self.grid & (self.grid - 1):
            raise SynthError(f"grid = {self.grid}", hint=f"a power of two from {least}: 32 or 64")
        if self.channels not in (1, 3, 4):
            raise SynthError(f"channels = {self.channels}", hint="1, 3 or 4")

    @property
    def levels(self) -> int:
        """Doublings from the first level to the grid."""
        return int(math.log2(self.grid // SEED_EDGE))


ALPHA = Config(
    architecture="alpha",
    grid=64,
    latent=100,
    width=64,
    critic_width=64,
    lr=2e-4,
    penalty=100.0,
)
PRESETS: dict[str, Config] = {
    "tiny": Config(),
    "brats23": Config(grid=64, width=64, critic_width=64, sizes=1024, spread=1.05),
    # 7.9 M parameters draw, 50.5 M train; 23 s a step of four on one CPU core
    "alpha": ALPHA,
    # the same at an eighth of the voxels and a quarter of the widths
    "alpha_light": replace(ALPHA, grid=32, width=32, critic_width=32, code_width=512),
}

_GAN = TrainConfig(batch_size=8, clip_norm=2, ema_decay=0.995, validate_every=200, save_every=200,
                   preview_every=1000, keep="mmd2")  # fmt: skip
TRAINING: dict[str, TrainConfig] = {
    "tiny": replace(_GAN, steps=1200, warmup_steps=20, decay="cosine"),
    "brats23": replace(_GAN, steps=100_000, batch_size=32, precision="bf16", ema_decay=0.999,
                       warmup_steps=200, decay="cosine", validate_every=2000, save_every=2000),
    "alpha": replace(_GAN, steps=200_000, batch_size=4, clip_norm=0, validate_every=2000,
                     save_every=2000),
    "alpha_light": replace(_GAN, steps=2000, batch_size=4, clip_norm=0),
}  # fmt: skip
