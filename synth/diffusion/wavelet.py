"""One level of the 3-D Haar transform: a volume ↔ eight bands of half its size.

Band order is lll llh lhl lhh hll hlh hhl hhh; the letters are the axes X, Y, Z; l is a sum and h a
difference, even minus odd: the order, sign and scale of pywt's aaa aad … ddd. Channels stay
together: channel c of the volume becomes channels 8c … 8c+7, so that the bands of each are
`y.unflatten(1, (C, 8))`.

Every 2×2×2 block of voxels is multiplied by one orthonormal 8×8 matrix. Energy is preserved, white
noise stays white with the same variance in all eight bands, and the gradient of one direction is
the other direction. (WDM divides lll by 3 for its networks; that is the family's affair.)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from synth.base.errors import SynthError

BANDS = ("lll", "llh", "lhl", "lhh", "hll", "hlh", "hhl", "hhh")
SLAB_BYTES = 2**19  # a block of voxels that stays in a core's second-level cache


def dwt3(x: Tensor) -> Tensor:
    """Eight bands of each channel, (B, C, X, Y, Z) to (B, 8C, X/2, Y/2, Z/2)."""
    _check_volume(x)
    return _Haar.apply(x, False)


def idwt3(y: Tensor) -> Tensor:
    """The inverse, (B, 8C, X, Y, Z) to (B, C, 2X, 2Y, 2Z)."""
    if y.ndim != 5 or y.shape[1] % 8:
        raise SynthError(
            f"idwt3 wants (B, 8C, X, Y, Z), got {tuple(y.shape)}",
            hint="eight bands of each channel, as dwt3 gives them",
        )
    return _Haar.apply(y, True)


def any_in_block(mask: Tensor) -> Tensor:
    """A mask on the grid of the bands, (B, C, X, Y, Z) to (B, C, X/2, Y/2, Z/2).

    A coefficient is inside where any of its 2×2×2 voxels is: outside, coefficients depend on
    outside voxels only, so what is known there is known exactly.
    """
    _check_volume(mask)
    return F.max_pool3d(mask.float(), 2).to(mask.dtype)


def _check_volume(x: Tensor) -> None:
    if x.ndim != 5:
        raise SynthError(f"dwt3 wants (B, C, X, Y, Z), got {tuple(x.shape)}")
    for axis, size in zip("XYZ", x.shape[2:], strict=True):
        if size % 2 or not size:
            raise SynthError(
                f"axis {axis} has size {size}; the wavelet transform needs an even one",
                hint="pad by one voxel",
            )


def _haar_matrix(like: Tensor) -> Tensor:
    """H ⊗ H ⊗ H with H = [[1, 1], [1, -1]] / √2: symmetric, its own inverse."""
    butterfly = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    matrix = torch.kron(torch.kron(butterfly, butterfly), butterfly) / math.sqrt(8)
    return matrix.to(like)  # (8, 8)


class _Haar(torch.autograd.Function):
    """Both directions, each the gradient of the other, whatever autocast would prefer.

    An explicit Function keeps nothing for the backward pass, and lets slabs be written straight
    into the answer.
    """

    @staticmethod
    def forward(ctx, x: Tensor, inverse: bool) -> Tensor:
        ctx.inverse = inverse
        with torch.autocast(x.device.type, enabled=False):
            return _from_bands(x.contiguous()) if inverse else _to_bands(x.contiguous())

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        return _Haar.apply(gradients[0], not ctx.inverse), None


def _slab(x: Tensor, planes: int, bytes_per_plane: int) -> int:
    """How many planes to take at a time: cache-sized on a CPU, all of them on a GPU."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return planes
    return max(1, min(planes, SLAB_BYTES // bytes_per_plane))


def _to_bands(x: Tensor) -> Tensor:
    b, c, nx, ny, nz = (*x.shape[:2], *(size // 2 for size in x.shape[2:]))
    matrix = _haar_matrix(x)
    blocks = x.view(b * c, nx, 2, ny, 2, nz, 2).permute(0, 2, 4, 6, 1, 3, 5)
    bands = x.new_empty(b * c, 8, nx, ny * nz)
    step = _slab(x, nx, 8 * ny * nz * x.element_size())
    buffer = x.new_empty(8 * step * ny * nz)
    for volume, answer in zip(blocks, bands, strict=True):
        for start in range(0, nx, step):
            part = answer[:, start : start + step].flatten(1)  # (8, step·Y/2·Z/2), a view
            slab = buffer[: part.numel()].view(2, 2, 2, -1, ny, nz)
            slab.copy_(volume[:, :, :, start : start + step])
            torch.mm(matrix, slab.view(8, -1), out=part)
    return bands.view(b, 8 * c, nx, ny, nz)


def _from_bands(y: Tensor) -> Tensor:
    b, c8, nx, ny, nz = y.shape
    matrix = _haar_matrix(y)
    bands = y.view(b * c8 // 8, 8, nx, ny * nz)
    volume = y.new_empty(b, c8 // 8, 2 * nx, 2 * ny, 2 * nz)
    blocks = volume.view(-1, nx, 2, ny, 2, nz, 2).permute(0, 2, 4, 6, 1, 3, 5)
    step = _slab(y, nx, 8 * ny * nz * y.element_size())
    buffer = y.new_empty(8 * step * ny * nz)
    for source, answer in zip(bands, blocks, strict=True):
        for start in range(0, nx, step):
            part = source[:, start : start + step].flatten(1)  # (8, step·Y·Z), a view
            slab = buffer[: part.numel()].view(2, 2, 2, -1, ny, nz)
            torch.mm(matrix, part, out=slab.view(8, -1))
            # One parity of Z at a time: runs along Z copy faster than pairs do.
            for parity in (0, 1):
                answer[:, :, parity, start : start + step].copy_(slab[:, :, parity])
    return volume
