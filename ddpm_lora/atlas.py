"""The mean training brain, in coordinates of a brain's box.

Brains are not registered: the box around each is stretched to one cube. Ventricles, cortex and
cerebellum then lie about where they belong, which is all that a beginning needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

EDGE = 32
BRAIN = 4  # of a class map: brain outside the tumour
LEAST = 0.5  # cases that must show healthy brain at a place, else the mean of all stands there


def placed(atlas: Tensor, head: Tensor) -> Tensor:
    """Stretch an atlas (C, G, G, G) to the box of each head (B, 1, X, Y, Z) → (B, C, X, Y, Z)."""
    return torch.cat([_read(atlas, _within(mask[0], head.shape[2:])) for mask in head])


def mean_brain(cases: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Average images (C, X, Y, Z) over healthy brain of class maps (X, Y, Z) → (C, G, G, G)."""
    total = weight = torch.zeros(())
    for image, classes in cases:
        read = gathered(image, classes == BRAIN, classes > 0)
        total, weight = total + read[:-1], weight + read[-1:]
    overall = total.sum((1, 2, 3), keepdim=True) / weight.sum().clamp(min=1)
    return torch.where(weight > LEAST, total / weight.clamp(min=LEAST), overall)


def gathered(image: Tensor, where: Tensor, head: Tensor) -> Tensor:
    """Read an image (C, X, Y, Z), 0 outside a mask, and the mask itself in a head's box.

    → (C + 1, G, G, G)
    """
    low, high = _box(head)
    line = [torch.linspace(a, b, EDGE) for a, b in zip(low, high, strict=True)]
    size = torch.tensor(head.shape)
    grid = torch.stack(torch.meshgrid(*line, indexing="ij"), -1) / (size - 1) * 2 - 1
    mask = where.float()[None]
    return _read(torch.cat([image * mask, mask]), grid)[0]


def _within(mask: Tensor, shape: Sequence[int]) -> Tensor:  # (X, Y, Z, 3) in −1 … 1 over the box
    low, high = _box(mask)
    lines = [
        (torch.arange(n, device=mask.device) - a) / max(b - a, 1) * 2 - 1
        for n, a, b in zip(shape, low, high, strict=True)
    ]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1)


def _box(mask: Tensor) -> tuple[list[int], list[int]]:
    """First and last voxel of a mask along each axis; all of the grid if it is empty."""
    low, high = [], []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        there = mask.any(others[1]).any(others[0]).nonzero()
        low.append(int(there[0]) if len(there) else 0)
        high.append(int(there[-1]) if len(there) else mask.shape[axis] - 1)
    return low, high


def _read(volume: Tensor, grid: Tensor) -> Tensor:  # (C, …), (X, Y, Z, 3) → (1, C, X, Y, Z)
    """Read trilinearly at coordinates in −1 … 1; beyond the edge as at the edge."""
    return F.grid_sample(
        volume[None].float(), grid.flip(-1)[None].float(), padding_mode="border", align_corners=True
    )
