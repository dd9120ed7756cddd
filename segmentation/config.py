"""Settings of the family; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from synth.base.config import require_between
from synth.base.errors import SynthError
from synth.training.config import TrainConfig

CONTRASTS = 4  # t1n, t1c, t2w, t2f, in this order

Network = Literal[
    "mednext_s", "mednext_b", "mednext_m", "mednext_l",
    "unet", "dynunet", "attention_unet", "segresnet", "unetr", "swin_unetr",
]  # fmt: skip

FROM_DATA = (0, 0, 0)
"""The patch that `recipe.fit_to_data` chooses."""
LARGEST = (128, 160, 112)
"""The largest that it chooses."""

_EVERY = ("none", "expansion", "block")
CHECKPOINTING = {
    **{f"mednext_{size}": _EVERY for size in "sbml"}, "swin_unetr": ("none", "block")
}  # fmt: skip
"""What each network can recompute in the backward pass; the others nothing."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one segmenter: network, input and training."""

    network: Network = "mednext_s"
    """MedNeXt by its official widths, or one of MONAI's networks."""
    kernel: int = 3
    """Edge of MedNeXt's depthwise convolutions: 3 or 5; the other networks have 3."""
    width: int = 32
    """Channels of the first level."""
    deep_supervision: bool = True
    """Train on the outputs of every scale, where the network has several: MedNeXt and DynUNet."""
    checkpointing: Literal["none", "expansion", "block"] = "none"
    """What the backward pass recomputes: nothing, the widest part of blocks, or blocks."""
    patch: tuple[int, int, int] = LARGEST
    """Training crop in voxels (right, anterior, superior), e.g. 128,160,112; 0,0,0 is chosen from
    the data: the median brain, at most 128,160,112."""
    spacing_mm: float = 1.0
    """Voxel size the network works at; scans of another size are resampled and carried back."""
    tumour_crops: float = 0.5
    """Share of training crops that are centred on a tumour voxel, each region equally often."""
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
    upkern: Literal["trilinear", "zeros"] = "trilinear"
    """How init_from's kernels of 3 become kernels of 5: stretched as published, or padded with
    zeros, which answers as before."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they are: encoder, bottleneck, decoder, heads, a level of MedNeXt (enc0,
    dec3), or a regular expression of parameters' names."""
    reset: tuple[str, ...] = ()
    """Parts that are initialised anew after init_from."""

    def __post_init__(self) -> None:
        require_between(
            self, width=(1, 2048), patch=(0, 1024), spacing_mm=(0.1, 20), tumour_crops=(0, 1),
            lr=(0, 10), weight_decay=(0, 10),
        )  # fmt: skip
        self._check_kernel()
        multiple = self.multiple
        if self.patch != FROM_DATA and any(n < multiple or n % multiple for n in self.patch):
            raise SynthError(
                f"patch = {self.patch}",
                hint=f"each edge a multiple of {multiple} for {self.network}: 128 160 "
                f"{112 // multiple * multiple}; or 0 0 0, chosen from the data",
            )
        if self.checkpointing not in CHECKPOINTING.get(self.network, ("none",)):
            raise SynthError(
                f"{self.network} cannot recompute '{self.checkpointing}'",
                hint="checkpointing = none; mednext_* know every policy, swin_unetr knows block",
            )

    def _check_kernel(self) -> None:
        if self.kernel not in (3, 5):
            raise SynthError(f"kernel = {self.kernel}", hint="3 or 5")
        if self.kernel != 3 and not self.network.startswith("mednext_"):
            raise SynthError(
                f"{self.network} has no kernel of {self.kernel}", hint="only mednext_* can have 5"
            )
        if self.upkern != "trilinear" and self.kernel == 3:
            raise SynthError(
                f"upkern = {self.upkern}, but the kernel stays 3",
                hint="it is for mednext_* with --kernel 5 that --init-from one of 3",
            )

    @property
    def multiple(self) -> int:
        """Every edge of the patch is a multiple of this."""
        return max(16, self.divisor)

    @property
    def divisor(self) -> int:
        """Every edge of what the network sees must be a multiple of this."""
        return {"segresnet": 8, "swin_unetr": 32}.get(self.network, 16)


PRESETS: dict[str, Config] = {
    "brats23": Config(network="mednext_b"),
    "small": Config(),
    # a MedNeXt-S of a quarter of the widths, for cohorts on the phantom's 2.8 mm
    "tiny": Config(width=8, patch=(48, 48, 48), spacing_mm=2.8, lr=4e-3, augment="light"),
}

_LONG = TrainConfig(steps=100_000, batch_size=2, precision="bf16", ema_decay=0.999,
                    warmup_steps=500, decay="cosine", keep="dice", keep_mode="max")  # fmt: skip
TRAINING: dict[str, TrainConfig] = {
    "brats23": _LONG,
    "small": _LONG,
    "tiny": replace(_LONG, steps=800, precision="no", ema_decay=0.98, warmup_steps=40,
                    validate_every=100, save_every=100, preview_every=400),
}  # fmt: skip


def start_from(given: Mapping[str, Any]) -> tuple[str, Config] | None:
    """Return preset and settings of the checkpoint that fine-tuning starts from, if any."""
    path = given.get("init_from")
    if not path:
        return None
    from synth.base.config import from_dict
    from synth.checkpoints.checkpoint import read_metadata

    facts = read_metadata(Path(path))
    require_segmentation(path, facts["family"])
    base = from_dict(Config, facts["config"])
    preset = facts["preset"] if facts["preset"] in TRAINING else "small"
    return preset, replace(base, freeze=(), reset=())


def require_segmentation(path: str | Path, family: str) -> None:
    """Refuse a checkpoint of another family."""
    if family != "segmentation":
        raise SynthError(f"{path} is a {family} checkpoint", hint="give a segmentation checkpoint")
