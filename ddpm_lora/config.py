"""Settings of the family; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from synth.base.config import require_between
from synth.base.errors import SynthError
from synth.diffusion.unet_config import UNetConfig
from synth.training.config import TrainConfig

CONTRASTS = 4  # t1n, t1c, t2w, t2f, in this order
CLASSES = 4  # NCR, ED, ET, brain
TISSUES = 3  # CSF, grey, white
BANDS = 8  # of one wavelet level


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one model from a label map to four scans: grid, size and training."""

    space: Literal["wavelet", "pixel"] = "wavelet"
    """What is diffused: Haar bands, each of unit spread in the brain, or voxels as Med-DDPM has
    them (its axes: z, y, x of an LPS file)."""
    objective: Literal["x0", "v", "eps", "flow"] = "x0"
    """What the network answers: the clean image, velocity, noise, or the straight line from image
    to noise (rectified flow). The last three need `anatomy` in wavelet space, or many channels:
    noise in 32 bands does not pass through few. The schedule is cosine, for flow uniform in time.
    """
    anatomy: bool = False
    """Show the network tissue (CSF, grey, white) and what is known of the scans besides labels:
    it draws whole brains and paints into given ones. Wavelet only."""
    timesteps: int = 1000
    """Length of the schedule; the network is told the true noise level on it."""
    spacing_mm: float = 1.0
    """Voxel size the network works at; scans of another size are resampled and carried back."""
    crop: tuple[int, int, int] = (160, 192, 160)
    """Box about the brain in voxels (right, anterior, superior): cut or padded, never squeezed."""
    centre: Literal["brain", "grid"] = "brain"
    """What the box is centred on; Med-DDPM takes the middle of the file's grid."""
    gain: Literal["median", "percentile"] = "median"
    """What becomes +1, background being -1: twice the median of the brain outside the tumour, so
    that healthy tissue looks alike whatever the tumour does; or a percentile of all brain."""
    high_percentile: float = 99.5
    """That percentile; 100 is the maximum."""
    ceiling: float = 2.5
    """Brightest intensity that is learned and drawn, in these units."""
    width: int = 64
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    """Width of each level as a multiple of `width`."""
    blocks_per_level: int = 2
    """Residual blocks of each encoder level."""
    groups: int = 32
    """Groups of every GroupNorm."""
    max_period: float = 10_000.0
    """Longest period of the time embedding, in timesteps."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: slower, far less memory."""
    label_drop: float = 0.1
    """Share of training items without tumour labels; guidance needs some."""
    brain_drop: float = 0.05
    """Share of training items without labels and brain."""
    tissue_drop: float = 0.1
    """Share of training items without tissue, so that it stays optional (with `anatomy`)."""
    paint_share: float = 0.5
    """Share of training items in which the brain about the tumour is known, as it is where a
    tumour is painted into a brain (with `anatomy`)."""
    norm: Literal["l2", "l1"] = "l2"
    """Squared or absolute error."""
    balance: float = 0.5
    """Weight of a region of n voxels ~ n^-balance for each voxel: 0 counts voxels alike, 1 gives
    NCR, ED, ET, brain and background the same say."""
    image_weight: float = 1.0
    """Weight of the same error seen as an image, beside that of the bands (wavelet only)."""
    lr: float = 1e-4
    """Learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    augment: bool = True
    """Flip left-right and shift the box by up to two voxels."""
    lora_from: str = ""
    """Fine-tune this checkpoint by LoRA: its settings are the defaults, its weights stay."""
    lora_preset: Literal["light", "full", "last_two"] = "light"
    """Layers that LoRA adapts: time, attention and shortcuts; all; or the last embeddings and the
    output convolution, as the predecessor did."""
    lora_rank: int = 8
    """Rank of every adapted layer."""

    REMOVED: ClassVar = {"atlas": (False,), "few_patients": (False, True)}
    """Settings of earlier versions, and the values with which their checkpoints are still read."""

    def __post_init__(self) -> None:
        require_between(
            self, width=(1, 2048), multipliers=(1, 64), blocks_per_level=(1, 16), groups=(1, 512),
            crop=(1, 1024), timesteps=(2, 100_000), spacing_mm=(0.1, 20), lr=(0, 10),
            max_period=(1, 1e9), ceiling=(0.1, 100), lora_rank=(1, 1024), label_drop=(0, 0.999),
            brain_drop=(0, 0.999), tissue_drop=(0, 1), paint_share=(0, 1),
            high_percentile=(0.001, 100),
        )  # fmt: skip
        if any(n < 1 or n % self.divisor for n in self.crop):
            raise SynthError(
                f"crop = {self.crop}: an edge is not a multiple of {self.divisor}",
                hint="each level and the wavelet halve it once",
            )
        if self.anatomy and self.space != "wavelet":
            raise SynthError("anatomy in pixel space", hint="Med-DDPM has none: --no-anatomy")

    @property
    def divisor(self) -> int:
        """Every edge of a box is a multiple of this."""
        return 2 ** (len(self.multipliers) - 1 + (self.space == "wavelet"))

    @property
    def state_channels(self) -> int:
        """Channels of the diffused state."""
        return CONTRASTS * (BANDS if self.space == "wavelet" else 1)

    @property
    def condition_channels(self) -> int:
        """Channels of what the network is shown: labels, tissue, and what is known."""
        if self.anatomy:
            return (CLASSES + TISSUES) * BANDS + CONTRASTS
        return CLASSES * (BANDS if self.space == "wavelet" else 1)

    def unet(self) -> UNetConfig:
        """Return the U-Net this configuration describes: Med-DDPM's, in either space."""
        return UNetConfig(
            in_channels=self.state_channels + self.condition_channels,
            out_channels=self.state_channels,
            width=self.width,
            multipliers=self.multipliers,
            blocks_per_level=self.blocks_per_level,
            skips="concat",
            resample="conv",
            middle_attention=True,
            max_period=self.max_period,
            groups=self.groups,
            bypass=self.anatomy,
            checkpointing=self.checkpointing,
        )


PRESETS: dict[str, Config] = {
    # 56.1 M parameters on 32 bands, 56 of labels and tissue and 4 maps of what is known
    "brats23": Config(anatomy=True, objective="v", checkpointing=True),
    # Dorjsembe et al. 2024: 57,562,564 parameters, cosine-250, raw timesteps, L1 on the noise
    "meddpm": Config(
        space="pixel", objective="eps", timesteps=250, crop=(192, 192, 144), centre="grid",
        gain="percentile", high_percentile=100, ceiling=1.0, multipliers=(1, 1, 2, 3, 4),
        max_period=1000, label_drop=0, brain_drop=0, norm="l1", balance=0, lr=1e-5, augment=False,
        checkpointing=True,
    ),
    "tiny": Config(
        anatomy=True, objective="v", spacing_mm=2.8, crop=(56, 64, 56), width=32,
        multipliers=(1, 1, 2), groups=4, lr=1e-3,
    ),
}  # fmt: skip

_BASE = TrainConfig(steps=300_000, batch_size=2, precision="bf16", ema_decay=0.9999,
                    warmup_steps=1000, decay="cosine")  # fmt: skip
_LORA = TrainConfig(steps=600, batch_size=2, ema_decay=0.99, warmup_steps=20, decay="cosine",
                    validate_every=100, save_every=100, preview_every=300)  # fmt: skip
TRAINING: dict[str, TrainConfig] = {
    "brats23": _BASE,
    "meddpm": TrainConfig(steps=100_000, accumulate=2, clip_norm=0, ema_decay=0.9995),
    "tiny": TrainConfig(steps=4000, batch_size=2, ema_decay=0.998, warmup_steps=100,
                        decay="cosine", validate_every=250, save_every=250, preview_every=1000),
    "lora_light": _LORA,
    "lora_full": _LORA,
    "lora_last_two": _LORA,
}  # fmt: skip
LORA_RATES = {"light": 2e-3, "full": 1e-3, "last_two": 2e-3}


def start_from(given: Mapping[str, Any]) -> tuple[str, Config] | None:
    """Return preset and settings of the base that fine-tuning starts from, if any."""
    path = given.get("lora_from")
    if not path:
        return None
    from synth.base.config import from_dict
    from synth.checkpoints.checkpoint import read_metadata

    facts = read_metadata(Path(path))
    if facts["family"] != "ddpm_lora" or "base" in facts:
        what = "an adapter itself" if "base" in facts else f"a {facts['family']} checkpoint"
        raise SynthError(f"{path} is {what}", hint="--lora-from wants a whole ddpm_lora model")
    layers = given.get("lora_preset", "light")
    base = from_dict(Config, facts["config"])
    return f"lora_{layers}", replace(base, lr=LORA_RATES.get(layers, base.lr))


def adapted_layers(preset: str, blocks: int) -> tuple[str, tuple[str, ...]]:
    """Return (regex of layers with low-rank updates, layers trained in full) of a LoRA preset.

    `blocks` is the number of decoder blocks: the predecessor counted its layers from the end.
    """
    if preset == "full":
        return ".*", ()
    if preset == "light":
        return r"time_embed\.\d|.*\.(emb_layers\.1|qkv|proj_out|skip_connection)", ()
    last = "|".join(str(blocks - n) for n in (3, 2, 1))
    return rf"output_blocks\.({last})\.0\.emb_layers\.1", ("out.2",)
