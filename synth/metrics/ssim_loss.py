"""Structural similarity as a loss with gradients.

Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from synth.metrics.image import SSIM_K1, SSIM_K2, SSIM_RADIUS, SSIM_SIGMA


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of every voxel from its (y, z) neighbourhood, eq. 13, for a data range of one.

    Args:
        a: (B, C, X, Y, Z), y and z longer than the window's radius.
        b: likewise.
    """
    moments = torch.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = _blurred(moments.flatten(0, 2)).view_as(moments)
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    var_a, var_b = mean_aa - mean_a * mean_a, mean_bb - mean_b * mean_b
    above = (2 * mean_a * mean_b + c1) * (2 * (mean_ab - mean_a * mean_b) + c2)
    below = (mean_a * mean_a + mean_b * mean_b + c1) * (var_a + var_b + c2)
    return above / below  # (B, C, X, Y, Z)


def _blurred(planes: Tensor) -> Tensor:  # (N, X, Y, Z)
    """Gaussian means over y and z, reflected at the border."""
    r = SSIM_RADIUS
    line = torch.arange(-r, r + 1, device=planes.device, dtype=planes.dtype)
    weights = torch.softmax(-0.5 * (line / SSIM_SIGMA).square(), 0)
    padded = F.pad(planes, (r, r, r, r), mode="reflect").flatten(0, 1)[:, None]
    along_y = F.conv2d(padded, weights.view(1, 1, -1, 1))
    return F.conv2d(along_y, weights.view(1, 1, 1, -1)).view_as(planes)
