"""Scans of a head: four MR contrasts, and the effects of the scanner."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from synth.data.case import MODALITIES
from synth.data.labels import ED, ET, NCR
from synth.phantom.anatomy import Grid, Noise

JITTER = (0.0, 0.03, 0.08, 0.10, 0.06, 0.08)  # log-normal, per patient, tissue and modality
EDGE_BLUR_MM = {NCR: 0.8, ED: 1.3, ET: 0.7}
TEXTURE = {NCR: 0.12, ED: 0.05, ET: 0.11}
VESSEL = 1.9  # brightness of vessels in t1c
PSF_VOXELS = 0.55


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """What distinguishes one hospital's images from another's."""

    contrast: dict[str, tuple[float, ...]]
    """Per modality, relative to T1 white matter: wm, gm, csf, ncr, ed, et."""
    residual: tuple[float, ...] = (0.8, 0.6, -0.35, -0.25)
    noise: tuple[float, float]
    """Range of the Rician noise, relative to T1 white matter."""
    bias: float
    slice_voxels: tuple[float, float] | None = None
    """Range of the slice thickness where slices are thicker than the grid's."""


SITES = {
    # Calibrated on the contrasts of one BraTS 2021 case.
    "A": Scanner(
        contrast={
            "t1n": (1.00, 0.73, 0.34, 0.52, 0.68, 0.70),
            "t1c": (0.97, 0.80, 0.38, 0.50, 0.66, 1.75),
            "t2w": (0.50, 0.70, 1.45, 1.25, 1.02, 0.92),
            "t2f": (0.70, 0.84, 0.24, 0.85, 1.32, 1.12),
        },
        noise=(0.012, 0.028),
        bias=0.05,
    ),
    # An older scanner: flatter T1, less heavily weighted T2, brighter fluid in FLAIR, thick slices.
    "B": Scanner(
        contrast={
            "t1n": (1.00, 0.84, 0.48, 0.60, 0.76, 0.80),
            "t1c": (0.97, 0.86, 0.50, 0.58, 0.74, 1.45),
            "t2w": (0.58, 0.72, 1.15, 1.05, 0.95, 0.90),
            "t2f": (0.74, 0.82, 0.36, 0.80, 1.12, 1.00),
        },
        noise=(0.030, 0.050),
        bias=0.12,
        slice_voxels=(2.0, 3.0),
    ),
}


@dataclass(frozen=True)
class Subject:
    """What lies in the scanner: tissue memberships, T1 detail, and tumour labels."""

    grid: Grid
    tissue: Tensor  # (3, X, Y, Z): CSF, grey, white
    residual: Tensor  # (X, Y, Z)
    brain: np.ndarray  # (X, Y, Z) bool
    depth: Tensor  # (X, Y, Z)
    labels: np.ndarray  # (X, Y, Z)
    window: tuple[slice, slice, slice]
    """The part of the grid that holds the tumour."""


def scan(
    rng: np.random.Generator, subject: Subject, scanner: Scanner
) -> tuple[dict[str, np.ndarray], dict]:
    """Image the subject: int16 volumes as BraTS has them, and what was sampled."""
    spacing = subject.grid.spacing_mm
    noise = float(rng.uniform(*scanner.noise)) * (0.6 if spacing > 1.5 else 1.0)
    gain = 600 * math.exp(0.3 * rng.standard_normal())
    thickness = float(rng.uniform(*scanner.slice_voxels)) if scanner.slice_voxels else 1.0
    phase = float(rng.uniform(0, thickness))
    smear = thick_slices(subject.grid.shape[2], thickness, phase) if thickness > 1 else None
    shared_bias = Noise.draw(rng, 110.0).on(subject.grid)
    inside = torch.from_numpy(subject.brain)
    images = {}
    for modality, signal in _signals(rng, subject, scanner):
        signal = _blur(signal, PSF_VOXELS)
        signal = signal if smear is None else signal @ smear.T
        texture = 0.015 * Noise.draw(rng, 6.0).on(subject.grid)
        texture += 0.012 * Noise.draw(rng, max(3.0, 2 * spacing)).on(subject.grid)
        own_bias = Noise.draw(rng, 90.0).on(subject.grid)
        field = texture + scanner.bias * (shared_bias + own_bias)
        clean = (signal * field.exp())[inside]  # (voxels of the brain)
        real, imaginary = (noise * _receiver_noise(rng, inside, smear) for _ in range(2))
        rician = torch.hypot(clean + real, imaginary)
        level = gain * math.exp(0.25 * rng.standard_normal())
        image = np.zeros(subject.brain.shape, np.int16)
        image[subject.brain] = (rician * level).round().clamp(1, 32767).numpy()
        images[modality] = image
    parameters = {"noise": noise, "gain": gain, "slice_voxels": thickness}
    return images, parameters


def _receiver_noise(rng: np.random.Generator, inside: Tensor, smear: Tensor | None) -> Tensor:
    """White noise of unit variance at the brain's voxels; thick slices carry theirs along z."""
    if smear is None:
        return torch.from_numpy(rng.standard_normal(int(inside.sum()), dtype=np.float32))
    white = torch.from_numpy(rng.standard_normal(tuple(inside.shape), dtype=np.float32))
    return (white @ (smear / smear.norm(dim=1, keepdim=True)).T)[inside]


def thick_slices(count: int, thickness: float, phase: float) -> Tensor:
    """Matrix that averages `count` slices into thicker ones and interpolates back linearly."""
    centres = np.arange(phase - thickness, count + thickness, thickness)
    fine = np.arange(count)
    lower = np.maximum(centres[:, None] - thickness / 2, fine[None] - 0.5)
    upper = np.minimum(centres[:, None] + thickness / 2, fine[None] + 0.5)
    average = (upper - lower).clip(min=0)  # overlap of thick and thin slices
    used = average.sum(axis=1) > 1e-6
    centres, average = centres[used], average[used]
    average /= average.sum(axis=1, keepdims=True)
    hats = 1 - np.abs(fine[:, None] - centres[None]) / thickness
    weights = hats.clip(min=0)
    weights /= weights.sum(axis=1, keepdims=True)
    return torch.from_numpy((weights @ average).astype(np.float32))  # (Z, Z)


def _signals(
    rng: np.random.Generator, subject: Subject, scanner: Scanner
) -> Iterator[tuple[str, Tensor]]:
    """Mix each modality's noiseless signal from tissues, tumour and vessels."""
    csf, grey, white = subject.tissue
    vessels = _vessels(rng, subject)
    mix = float(np.clip(rng.normal(0.72, 0.16), 0.4, 1))  # oedema lets the tissue shine through
    local = subject.grid[subject.window]
    parts = _tumour_memberships(subject.labels[subject.window], subject.grid.spacing_mm)
    lumps = Noise.draw(rng, max(5.0, 2 * subject.grid.spacing_mm)).on(local)
    for number, modality in enumerate(MODALITIES):
        jitter = np.exp(np.array(JITTER) * rng.standard_normal(len(JITTER)))
        wm, gm, fluid, ncr, ed, et = (np.array(scanner.contrast[modality]) * jitter).tolist()
        signal = wm * white + gm * grey + fluid * csf + scanner.residual[number] * subject.residual
        if modality == "t1c":
            signal = torch.lerp(signal, torch.full_like(signal, VESSEL), vessels)
        patch = signal[subject.window]
        for label, level, share in ((ED, ed, mix), (NCR, ncr, 1.0), (ET, et, 1.0)):
            lumpy = level * (1 + TEXTURE[label] * lumps)
            patch = torch.lerp(patch, lumpy, share * parts[label])
        signal[subject.window] = patch
        yield modality, signal


def _tumour_memberships(labels: np.ndarray, spacing_mm: float) -> dict[int, Tensor]:
    """Soft edges, as weights to lay oedema, core and rim over one another in this order."""
    soft = {
        label: ndimage.gaussian_filter((labels == label).astype(np.float32), blur / spacing_mm)
        for label, blur in EDGE_BLUR_MM.items()
    }
    core = (soft[NCR] + soft[ET]).clip(0, 1)
    whole = (soft[ED] + core).clip(0, 1)
    # The core is laid in as necrosis first; the rim's share of the core then covers it.
    rim = np.where(core > 1e-3, soft[ET] / np.maximum(core, 1e-3), 0).clip(0, 1)
    return {
        label: torch.from_numpy(weight.astype(np.float32))
        for label, weight in ((ED, whole), (NCR, core), (ET, rim))
    }


def _vessels(rng: np.random.Generator, subject: Subject) -> Tensor:
    """Thin curves where two smooth fields vanish together, in sulci and near the surface."""
    width = 0.12 if subject.grid.spacing_mm < 1.5 else 0.2
    first, second = (Noise.draw(rng, 16.0).on(subject.grid) for _ in range(2))
    curve = torch.exp(-(first**2 + second**2) / width**2)
    superficial = (1 - subject.depth / 12).clamp(0, 1)
    return 0.8 * curve * torch.maximum(superficial, subject.tissue[0])


def _blur(volume: Tensor, sigma: float) -> Tensor:
    """Gaussian of a fraction of a voxel: three taps along each axis."""
    side = math.exp(-0.5 / sigma**2)
    kernel = side / (1 + 2 * side), 1 / (1 + 2 * side)
    padded = functional.pad(volume[None, None], (1,) * 6, mode="replicate")[0, 0]
    for dim in range(3):
        n = padded.shape[dim] - 2
        left, middle, right = (padded.narrow(dim, k, n) for k in range(3))
        padded = kernel[0] * (left + right) + kernel[1] * middle
    return padded
