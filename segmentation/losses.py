"""Losses over the logits of the overlapping regions WT, TC and ET.

Overlaps are taken over the whole batch, not image by image: a patch without a region would answer
1 - ε / (P + ε), a plateau that hides what the other patches say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

SMOOTH = 1e-5  # in numerator and denominator, as MONAI and nnU-Net
FOCUS = 2.0  # γ of the focal loss (Lin et al. 2017)
FALSE_POSITIVE, FALSE_NEGATIVE = (
    0.3,
    0.7,
)  # α, β of Tversky (Salehi et al. 2017): recall counts more

Loss = Callable[[Tensor, Tensor], Tensor]


def dice(logits: Tensor, regions: Tensor) -> Tensor:  # (B, R, x, y, z) both
    """1 - 2 |P ∩ T| / (|P| + |T|), the mean over regions (Milletari et al. 2016, unsquared)."""
    p = logits.sigmoid()
    both, either = _sums(p * regions), _sums(p) + _sums(regions)
    return (1 - (2 * both + SMOOTH) / (either + SMOOTH)).mean()


def tversky(logits: Tensor, regions: Tensor) -> Tensor:
    """1 - TP / (TP + α FP + β FN), the mean over regions (Salehi et al. 2017)."""
    p = logits.sigmoid()
    hit, false, missed = _sums(p * regions), _sums(p * (1 - regions)), _sums((1 - p) * regions)
    total = hit + FALSE_POSITIVE * false + FALSE_NEGATIVE * missed
    return (1 - (hit + SMOOTH) / (total + SMOOTH)).mean()


def generalised_dice(logits: Tensor, regions: Tensor) -> Tensor:
    """One Dice of all regions, each weighted by 1 / its volume² (Sudre et al. 2017).

    A region that is nowhere in the batch takes the largest weight of the others.
    """
    p = logits.sigmoid()
    volume = _sums(regions)  # (R,)
    weight = torch.where(volume > 0, volume, torch.inf).pow(-2)
    weight = torch.where(volume > 0, weight, weight.max())
    both, either = weight * _sums(p * regions), weight * (_sums(p) + volume)
    return 1 - (2 * both.sum() + SMOOTH) / (either.sum() + SMOOTH)


def bce(logits: Tensor, regions: Tensor) -> Tensor:
    """Binary cross-entropy of every region at every voxel."""
    return F.binary_cross_entropy_with_logits(logits, regions)


def focal(logits: Tensor, regions: Tensor) -> Tensor:
    """Cross-entropy × (1 - p of the truth)^γ: what is easy hardly counts (Lin et al. 2017)."""
    each = F.binary_cross_entropy_with_logits(logits, regions, reduction="none")
    wrong = torch.sigmoid(logits * (1 - 2 * regions))  # 1 - p of the truth
    return (wrong**FOCUS * each).mean()


def class_logits(logits: Tensor) -> Tensor:  # (B, R, …) → (B, 1 + R, …)
    """Return the logits of the exclusive classes: outside, WT only, TC only, ET.

    Nested regions allow four patterns of yes and no. Under independent sigmoids, log p of a
    pattern is, up to a constant, the sum of the logits it says yes to; a softmax over these sums
    is that distribution, given that one of the four is true.
    """
    return torch.cat([torch.zeros_like(logits[:, :1]), logits.cumsum(1)], dim=1)


def cross_entropy(logits: Tensor, regions: Tensor) -> Tensor:
    """Cross-entropy of the exclusive classes."""
    return F.cross_entropy(class_logits(logits), regions.sum(1).long())


LOSSES: dict[str, Loss] = {
    "dice_bce": lambda x, t: dice(x, t) + bce(x, t),
    "dice_focal": lambda x, t: dice(x, t) + focal(x, t),
    "dice_ce": lambda x, t: dice(x, t) + cross_entropy(x, t),
    "tversky": tversky,
    "gdl": generalised_dice,
    "focal": focal,
}


def scale_weights(count: int) -> list[float]:
    """Return the weights of `count` scales, finest first: 2^-i, the coarsest 0, of sum 1.

    nnU-Net drops the coarsest as it does; a sixteenth of a patch holds no shapes to learn from.
    """
    raw = [2.0**-i for i in range(count)]
    if count > 1:
        raw[-1] = 0.0
    return [w / sum(raw) for w in raw]


def supervised(answers: Sequence[Tensor], regions: Tensor, loss: Loss) -> Tensor:
    """Return the weighted loss of all scales; coarse truth takes the nearest voxel.

    Args:
        answers: logits, finest first.
        regions: (B, R, x, y, z) of the finest scale, bool or numbers.
        loss: of one scale.
    """
    truth = regions.float()
    total = torch.zeros((), device=truth.device)
    for answer, weight in zip(answers, scale_weights(len(answers)), strict=True):
        if weight:
            seen = truth
            if answer.shape[2:] != truth.shape[2:]:
                seen = F.interpolate(truth, answer.shape[2:], mode="nearest")
            total = total + weight * loss(answer.float(), seen)  # half precision would overflow
    return total


def _sums(values: Tensor) -> Tensor:  # (B, R, …) → (R,)
    return values.transpose(0, 1).flatten(1).sum(1)
