"""Texture of what was painted: fine detail from the other hemisphere, and noise like the scan's.

The mean of all plausible tissues is smooth. Both functions here leave its coarse structure alone.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from synth.data.prepare import background_of, brain_mask
from synth.data.volume import Volume
from synth.diffusion.wavelet import dwt3
from wdm3d.background import AIR

SCALES_MM = (0.75, 1.5, 3.0)
"""Gaussian widths between which detail lies; what is coarser comes from the mean."""
RING_MM = 15.0  # tissue around a hole whose detail is the measure
GAINS = (0.6, 1.7)  # of a band of detail


def borrow_detail(
    mean: np.ndarray, mirror: np.ndarray, hole: np.ndarray, spacing_mm: float
) -> np.ndarray:
    """Return the mean with the other hemisphere's detail in the hole, as strong as that around.

    Args:
        mean: (x, y, z), the hole filled smoothly; air is -1.
        mirror: (x, y, z), the hole filled with the other hemisphere; elsewhere as `mean`.
        hole: (x, y, z) bool.
        spacing_mm: edge of a voxel.
    """
    reach = int(np.ceil((RING_MM + 4 * SCALES_MM[-1]) / spacing_mm))
    (inner,) = ndimage.find_objects(hole.astype(np.uint8))
    box = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in inner)
    inside = hole[box]
    ring = ndimage.distance_transform_edt(~inside) * spacing_mm < RING_MM
    tissue = ndimage.binary_erosion(mirror[box] > AIR, iterations=2)
    widths = [s / spacing_mm for s in SCALES_MM]
    result = ndimage.gaussian_filter(mean[box], widths[-1])
    finer = mirror[box]
    for width in widths:
        coarser = ndimage.gaussian_filter(mirror[box], width)
        band = finer - coarser
        result += band * _gain(band, tissue & inside, tissue & ring & ~inside)
        finer = coarser
    filled = mean.copy()
    filled[box] = np.where(inside, result, mean[box])
    return filled


def _gain(band: np.ndarray, inside: np.ndarray, around: np.ndarray) -> float:
    """Return what makes a band as strong inside as around, within limits; 1 if there is none."""
    found = float(np.square(band[inside]).mean()) if inside.any() else 0.0
    wanted = float(np.square(band[around]).mean()) if around.any() else 0.0
    return float(np.clip(np.sqrt(wanted / found), *GAINS)) if found and wanted else 1.0


def add_grain(image: Volume, hole: np.ndarray, source: torch.Generator) -> Volume:
    """Add noise to the hole until its finest detail has as much of it as the tissue around.

    Noise is what the differences of neighbours along all three axes are, of which smooth tissue
    has next to none (Donoho 1995: the median of their size, over 0.6745).
    """
    inside, outside = _whole_blocks(hole), _whole_blocks(~hole & brain_mask(image))
    channels = []
    for channel in image.data:
        even = channel[tuple(slice(0, n // 2 * 2) for n in channel.shape)]
        finest = dwt3(torch.from_numpy(even[None, None]))[0, 7].abs().numpy()
        sizes = [
            float(np.median(finest[m])) / 0.6745 if m.any() else 0.0 for m in (inside, outside)
        ]
        missing = np.sqrt(max(sizes[1] ** 2 - sizes[0] ** 2, 0))
        noise = torch.randn(channel.shape, generator=source).numpy()
        air = channel == background_of(channel)
        channels.append(channel + missing * noise * (hole & ~air))
    return image.with_data(np.stack(channels).astype(np.float32))


def _whole_blocks(mask: np.ndarray) -> np.ndarray:
    """Return the 2×2×2 blocks that lie in a mask altogether."""
    even = mask[tuple(slice(0, n // 2 * 2) for n in mask.shape)]
    x, y, z = (n // 2 for n in even.shape)
    return np.asarray(even.reshape(x, 2, y, 2, z, 2).all(axis=(1, 3, 5)))
