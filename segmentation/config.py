"""Settings of the segmentation networks. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from synth.errors import SynthError
from synth.training_config import TrainConfig

REGIONS = ("WT", "TC", "ET")  # the output channels, in this order
CONTRASTS = 4  # t1n, t1c, t2w, t2f, in this order

Network = Literal[
    "mednext_s", "mednext_b", "mednext_m", "mednext_l",
    "unet", "dynunet", "attention_unet", "segresnet", "unetr", "swin_unetr",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """One segmenter: its network, what it sees, and how it is trained."""

    network: Network = "mednext_s"
    """MedNeXt by its official widths, or one of MONAI's networks."""
    kernel: Literal[3, 5] = 3
    """Edge of MedNeXt's depthwise convolutions."""
    width: int = 32
    """Channels of the first level."""
    deep_supervision: bool = True
    """Train on the answers of every scale."""
    checkpointing: Literal["none", "expansion", "block"] = "none"
    """What the backward pass computes again: nothing, the widest part of blocks, or blocks."""
    patch: tuple[int, int, int] = (128, 160, 112)
    """Training crop in voxels (right, anterior, superior)."""
    spacing_mm: float = 1.0
    """Voxel size the network works at; scans of another size are resampled and carried back."""
    tumour_crops: float = 0.5
    """Share of training crops that are centred on a tumour voxel, every region in its turn."""
    augment: Literal["none", "light", "full"] = "full"
    """light: flips and intensities; full: also rotation, scale, noise, blur, bias field, gamma and
    low resolution."""
    loss: Literal["dice_bce", "dice_focal", "dice_ce", "tversky", "gdl", "focal"] = "dice_bce"
    """What is minimised, over sigmoid regions (dice_ce: over their exclusive classes)."""
    optimizer: Literal["adamw", "sgd", "rmsprop", "schedule_free"] = "adamw"
    """schedule_free: AdamW whose averaged weights are validated and saved."""
    lr: float = 1e-3
    """Learning rate."""
    weight_decay: float = 1e-5
    """Weight decay."""
    init_from: str = ""
    """Start from this segmentation checkpoint's weights."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they are: encoder, bottleneck, decoder, heads, or a level (enc0, dec3)."""
    reset: tuple[str, ...] = ()
    """Parts that begin anew after init_from."""

    def __post_init__(self) -> None:
        if any(n < 16 or n % 16 for n in self.patch):
            raise SynthError(
                f"patch = {self.patch}", hint="each edge a multiple of 16: 128,160,112"
            )
        if not 0 <= self.tumour_crops <= 1:
            raise SynthError(f"tumour_crops = {self.tumour_crops}", hint="a share from 0 to 1")


PRESETS: dict[str, Config] = {
    "brats23": Config(network="mednext_b"),
    "small": Config(),
    # a MedNeXt-S of a quarter of the widths, for cohorts on the phantom's 2.8 mm
    "tiny": Config(width=8, patch=(48, 48, 48), spacing_mm=2.8, lr=2e-3, augment="light"),
}

_LONG = TrainConfig(steps=100_000, batch_size=2, precision="bf16", ema_decay=0.999,
                    warmup_steps=500, decay="cosine", keep="dice", keep_mode="max")  # fmt: skip
TRAINING: dict[str, TrainConfig] = {
    "brats23": _LONG,
    "small": _LONG,
    "tiny": replace(_LONG, steps=1000, precision="no", ema_decay=0.99, warmup_steps=50,
                    validate_every=200, save_every=200, preview_every=500),
}  # fmt: skip
