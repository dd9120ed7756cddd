"""Settings of the inpainting family. Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from synth.base.config import require_between
from synth.base.errors import SynthError
from synth.diffusion.unet_config import UNetConfig
from synth.training.config import TrainConfig

BANDS = 8  # of one wavelet level
AXES = 3
INPUT_SCALE = 0.35  # of the bands of what is shown (guided mode): about unit size then
GATES = 4 * 3  # weights of four fills, each for three scales of detail (guided mode)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one wavelet diffusion model: inputs, size and training."""

    mode: Literal["default", "always_known_healthy", "context", "guided", "contrast"] = "context"
    """What the network is told of the known tissue: nothing but what is noised (default), the
    tissue itself around a noisy hole (always_known_healthy), all of it as inputs (context), or
    these and what a registered template and the mirror image say of the hole (guided).
    contrast is a converted cWDM, which draws a missing contrast from three others: it is read and
    can be called, but fills no hole."""
    modalities: tuple[str, ...] = ("t1n",)
    """Contrasts that are painted together."""
    spacing_mm: float = 1.0
    """Voxel size the network works at; scans of another size are resampled and carried back."""
    crop: int = 128
    """Edge of the box around a hole, in voxels, in training and in inference."""
    wavelet_levels: int = 1
    """Haar levels before the network: 1 halves the grid (8 bands), 2 quarters it (64 bands) and
    spares the network its costliest level."""
    width: int = 64
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 2, 4, 4, 4)
    """Width of each level as a multiple of `width`."""
    blocks_per_level: int = 2
    """Residual blocks of each encoder level."""
    groups: int = 32
    """Groups of every GroupNorm."""
    skips: Literal["additive", "concat"] = "additive"
    """How encoder features enter the decoder; cWDM concatenates."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: slower, far less memory."""
    atlas: int = 0
    """Edge of the learned atlas in normalised brain coordinates (context mode); 0 for none."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Noise schedule the timesteps refer to."""
    timesteps: int = 1000
    """Length of that schedule; the network is always told the true noise level on it."""
    low_divisor: float = 3.0
    """The low band is divided by this before noise is added; the others are left as they are."""
    known: Literal["clean", "scaled"] = "clean"
    """Known tissue beside the noisy hole (always_known_healthy): as it is, or times sqrt(ᾱ) as
    the predecessor trained it."""
    residual_scale: float = 0.2
    """Standard deviation of the hole's residual on the classical fill (context mode)."""
    terminal_share: float = 0.3
    """Share of training items with pure noise as input, as in the one-call estimate."""
    l1: float = 1.0
    """Weight of the absolute error inside the hole."""
    mse: float = 1.0
    """Weight of the squared error inside the hole."""
    ssim: float = 0.0
    """Weight of 1 - SSIM inside the hole, the challenge's windows."""
    everywhere: float = 0.0
    """Weight of the squared error over the whole box."""
    lr: float = 1e-4
    """Learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    shape_scale: tuple[float, float] = (0.8, 1.25)
    """Factor range by which mask shapes are resized."""
    given_masks: Literal["made", "all"] = "made"
    """Cases whose own mask-healthy is the hole in training: those that `synth masks` made, or all
    that have one; in the others a mask is placed anew each time."""
    augment: bool = True
    """Flip, vary intensities and (not in guided mode) the bias field."""
    heads: int = 0
    """Number of drawn heads to train on, instead of a cohort; 0: use the cohort."""
    exclude: tuple[str, ...] = ()
    """Anatomies to leave out of the drawn heads, e.g. colin27, to test on them."""
    holes: int = 12
    """Holes in each drawn head (guided mode: in each brain), made once and kept."""

    def __post_init__(self) -> None:
        require_between(
            self, width=(1, 2048), multipliers=(1, 64), blocks_per_level=(1, 16), groups=(1, 512),
            crop=(1, 1024), atlas=(0, 256), timesteps=(2, 100_000), spacing_mm=(0.1, 20),
            low_divisor=(1e-3, 1e3), residual_scale=(1e-4, 1e3), heads=(0, 10**6),
            holes=(1, 1000), lr=(0, 10),
        )  # fmt: skip
        if not self.modalities:
            raise SynthError("modalities is empty", hint="name one contrast or more, such as t1n")
        if self.wavelet_levels not in (1, 2):
            raise SynthError(f"wavelet_levels = {self.wavelet_levels}", hint="1 or 2")
        if self.crop % self.divisor:
            raise SynthError(
                f"crop = {self.crop} is not a multiple of {self.divisor}",
                hint="each level and the wavelet halve it once",
            )

    @property
    def divisor(self) -> int:
        """Every edge of a box is a multiple of this."""
        return 2 ** (len(self.multipliers) - 1 + self.wavelet_levels)

    @property
    def bands(self) -> int:
        """Wavelet channels of all contrasts."""
        return self.bands_each * len(self.modalities)

    @property
    def bands_each(self) -> int:
        """Wavelet channels of one contrast."""
        return BANDS**self.wavelet_levels

    @property
    def has_atlas(self) -> bool:
        """Whether the network has a learned atlas (context mode only)."""
        return self.atlas > 0 and self.mode == "context"

    @property
    def condition_channels(self) -> int:
        """Channels beside x_t, as the mode's inputs count them (modes.py)."""
        count = len(self.modalities)
        return {
            "default": 0,
            "always_known_healthy": self.bands_each,
            # known image, two fills, the mirror image: each contrast; three masks; coordinates
            "context": self.bands_each * (4 * count + 3) + 3,
            # known image and four fills: each contrast; two masks, two shares
            "guided": self.bands_each * (5 * count + 4),
            "contrast": self.bands_each * 3,
        }[self.mode]

    def unet(self) -> UNetConfig:
        """Return the U-Net this configuration describes."""
        atlas = self.bands if self.has_atlas else 0
        gates = GATES * len(self.modalities) if self.mode == "guided" else 0
        return UNetConfig(
            in_channels=self.bands + self.condition_channels + atlas,
            out_channels=self.bands + gates,
            width=self.width,
            multipliers=self.multipliers,
            blocks_per_level=self.blocks_per_level,
            groups=self.groups,
            skips=self.skips,
            checkpointing=self.checkpointing,
        )


def draws_its_data(config: Config) -> bool:
    """Return whether training draws its own heads and needs no cases."""
    return config.heads > 0


Sampler = Literal["dpmpp_2m", "ddim", "ddpm"]


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """How an estimate is made: one call or a draw, how many of them, and by which solver."""

    estimate: Literal["mean", "sharp", "sample"] | None = None
    """mean: the posterior mean, one call from pure noise; sharp: the mean with the fine detail of
    the other hemisphere (guided); sample: a draw by the sampler. None is mean for a model that is
    shown what is known (context, guided), sample for the others."""
    samples: int = 1
    """mean: calls that are averaged. sample: draws, whose spread is written; the first is kept."""
    steps: int = 20
    """Network calls of a draw."""
    sampler: Sampler = "dpmpp_2m"
    """Solver of a draw."""
    spacing: Literal["logsnr", "karras", "uniform"] = "logsnr"
    """Spacing of a draw's noise levels."""
    flips: int | None = None
    """Average the mean over the scan flipped along so many axes. None is all three for a guided
    model, the only kind that can."""
    grain: bool = False
    """Add noise like the scan's to the painted tissue, which is smoother than any scan."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.steps < 1:
            raise SynthError("samples and steps are at least 1")

    def suited_to(self, config: Config) -> SamplerOptions:
        """Return the options with the model's defaults filled in."""
        guided = config.mode == "guided"
        estimate = self.estimate or ("mean" if guided or config.mode == "context" else "sample")
        if estimate == "sharp" and not guided:
            raise SynthError(
                "this model registers no mirror image to take detail from",
                hint="--estimate sharp needs a guided model, such as weights/wdm3d",
            )
        can_flip = guided and estimate != "sample"
        if self.flips and not can_flip:
            raise SynthError("only the mean of a guided model is averaged over flips")
        flips = self.flips if self.flips is not None else AXES * can_flip
        return replace(self, estimate=estimate, flips=flips)


PUBLISHED = Config(mode="always_known_healthy", crop=256)
PRESETS: dict[str, Config] = {
    # 83.2 M parameters, 8.46 TFLOP a call at 256³; 0.842 SSIM, 22.61 dB (BraTS 2024 validation)
    "brats23": replace(PUBLISHED, mode="context", crop=128, lr=1e-4, checkpointing=True),
    # a second wavelet level instead of the network's first: the same field of view, a third of
    # the arithmetic (2.7 TFLOP a call at 256³, brats23 8.8)
    "fast": replace(
        PUBLISHED,
        mode="context",
        crop=128,
        lr=1e-4,
        wavelet_levels=2,
        width=96,
        multipliers=(1, 1, 2, 2, 3),
    ),
    # for heads that `--heads` draws, and for any scan: 1 mm, any contrast
    "heads": Config(
        mode="guided",
        crop=64,
        wavelet_levels=2,
        width=64,
        multipliers=(1, 1, 2),
        groups=8,
        lr=6e-4,
        weight_decay=0.01,
        ssim=0.3,
        terminal_share=0.65,
        schedule="linear",
    ),
    "tiny": Config(
        spacing_mm=2.8, crop=32, width=32, multipliers=(1, 2, 3), groups=8, atlas=32, lr=1e-3
    ),
}

TRAINING: dict[str, TrainConfig] = {
    "brats23": TrainConfig(steps=300_000, batch_size=2, precision="bf16", ema_decay=0.9999,
                           warmup_steps=1000, decay="cosine"),
    "fast": TrainConfig(steps=200_000, batch_size=4, precision="bf16", ema_decay=0.9999,
                        warmup_steps=1000, decay="cosine"),
    "heads": TrainConfig(steps=3000, batch_size=4, precision="bf16", ema_decay=0.998,
                         warmup_steps=60, decay="cosine", validate_every=250, save_every=100,
                         preview_every=500),
    "tiny": TrainConfig(steps=4000, batch_size=8, ema_decay=0.998, warmup_steps=100,
                        decay="cosine", validate_every=250, save_every=250, preview_every=1000),
}  # fmt: skip
