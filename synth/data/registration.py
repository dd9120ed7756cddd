"""Register one brain to another by local correlation: an affine map, then a smooth warp.

    found = register(fixed, moving, known, spacing_mm=1.0)
    found.look_up(moving[None])                      # moving, on the grid of fixed

Squared local correlation (Avants et al. 2008) does not care which contrast the images have, as long
as one is locally a linear function of the other. Unknown voxels do not count: there the warp is
carried in smoothly from around. A brain's mirror image is registered to itself in the same way
(Nachev et al. 2008).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

WORK_MM = 4.0  # the images are compared at this spacing: finer costs seconds and gains nothing
KNOTS_MM = 10.0  # distance of the warp's control points
WINDOW = 7  # edge of the correlation's window, in working voxels
STEPS = 30  # of Adam, for each of the two phases
STIFFNESS = 3.0  # weight of the warp's squared differences, in units of KNOTS_MM
FLOOR = 1e-3  # variance below which a window counts as flat; images have tissue at about 0.8


@dataclass(frozen=True, eq=False)
class Registration:
    """Where each voxel of the fixed image lies in the moving one."""

    grid: Tensor
    """(1, x, y, z, 3), as `grid_sample` wants it."""

    def look_up(self, channels: np.ndarray) -> np.ndarray:
        """Sample (C, x, y, z) data of the moving image on the fixed one's grid; 0 outside."""
        data = torch.from_numpy(np.ascontiguousarray(channels, np.float32))[None]
        with torch.no_grad():
            return F.grid_sample(data, self.grid, align_corners=True)[0].numpy()


def register(
    fixed: np.ndarray, moving: np.ndarray, known: np.ndarray, *, spacing_mm: float
) -> Registration:
    """Register two images of one shape.

    Args:
        fixed: (C, x, y, z), contrasts of one brain, tissue at about 0.8, 0 outside.
        moving: (1 or C, x, y, z), the other brain; one contrast is compared with each of fixed.
        known: (x, y, z) bool, voxels of fixed that may be looked at.
        spacing_mm: edge of a voxel.
    """
    factor = max(1, round(WORK_MM / spacing_mm))
    reach = torch.tensor(fixed.shape[1:]).float() * (spacing_mm / 2)  # mm
    moving_small = _reduced(moving, factor)
    similarity = _Similarity(_reduced(fixed, factor), _reduced(known[None], factor))
    places = _unit_grid(moving_small.shape[2:]) * reach
    affine = torch.eye(3, 4).requires_grad_()
    knots = [max(4, round(n * spacing_mm / KNOTS_MM) + 1) for n in fixed.shape[1:]]
    warp = torch.zeros(1, 3, *knots, requires_grad=True)
    for parameter, rate, stiffness in ((affine, 0.01, 0.0), (warp, 0.15, STIFFNESS)):
        optimizer = torch.optim.Adam([parameter], lr=rate)
        for _ in range(STEPS):
            moved = _sample(moving_small, _moved(places, affine, warp) / reach)
            loss = stiffness * _roughness(warp) - similarity(moved)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        fine = _unit_grid(fixed.shape[1:]) * reach
        grid = (_moved(fine, affine, warp) / reach).flip(-1)[None]
    return Registration(grid.contiguous())


class _Similarity:
    """Mean squared local correlation with a fixed image, over what is known of it."""

    def __init__(self, fixed: Tensor, weight: Tensor) -> None:
        self.fixed, self.weight = fixed, weight
        self.share = _window_mean(weight).clamp(min=1e-4)
        self.mean = self._mean(fixed)
        self.variance = self._mean(fixed * fixed) - self.mean.square()

    def __call__(self, moved: Tensor) -> Tensor:
        mean = self._mean(moved)
        variance = self._mean(moved * moved) - mean.square()
        shared = self._mean(self.fixed * moved) - self.mean * mean
        bounds = (self.variance.clamp(min=0) + FLOOR) * (variance.clamp(min=0) + FLOOR)
        found = (shared.square() / bounds).mean(dim=1, keepdim=True)
        return (found * self.weight).sum() / self.weight.sum()

    def _mean(self, image: Tensor) -> Tensor:
        return _window_mean(image * self.weight) / self.share


def _window_mean(image: Tensor) -> Tensor:
    for axis in range(3):  # three lines cost a sixteenth of a cube
        size, pad = [1, 1, 1], [0, 0, 0]
        size[axis], pad[axis] = WINDOW, WINDOW // 2
        image = F.avg_pool3d(image, size, 1, pad)
    return image


def _reduced(data: np.ndarray, factor: int) -> Tensor:
    image = torch.from_numpy(np.ascontiguousarray(data, np.float32))[None]
    if factor == 1:
        return image
    size = [-(-n // factor) for n in image.shape[2:]]
    pooled = F.avg_pool3d(image, factor)
    return F.interpolate(pooled, size=size, mode="trilinear", align_corners=True)


def _unit_grid(shape: torch.Size | tuple[int, ...]) -> Tensor:  # (x, y, z, 3) in [-1, 1]
    lines = [torch.linspace(-1, 1, n) for n in shape]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1)


def _moved(places: Tensor, affine: Tensor, warp: Tensor) -> Tensor:
    """Return places (mm) after both maps; translations are in units of 100 mm."""
    shift = F.interpolate(warp, size=places.shape[:3], mode="trilinear", align_corners=True)
    return places @ affine[:, :3].T + affine[:, 3] * 100 + shift[0].movedim(0, -1) * KNOTS_MM


def _sample(image: Tensor, places: Tensor) -> Tensor:
    return F.grid_sample(image, places.flip(-1)[None], align_corners=True)


def _roughness(warp: Tensor) -> Tensor:
    return torch.stack([warp.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).sum()
