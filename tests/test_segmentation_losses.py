"""Every loss against MONAI's, values and gradients; the weights of deep supervision."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from segmentation.losses import LOSSES, class_logits, dice, scale_weights, supervised


def batch(*, without_et: bool = False) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 3, 8, 6, 4, generator=random)
    depth = torch.rand(2, 1, 8, 6, 4, generator=random)
    regions = torch.cat([depth > 0.6, depth > 0.75, depth > (2 if without_et else 0.9)], 1)
    return logits.requires_grad_(), regions.float()


def monai_loss(name: str):
    from monai import losses

    sigmoid = {"sigmoid": True, "batch": True}
    if name == "dice_ce":
        overlap = losses.DiceLoss(**sigmoid)
        return lambda x, t: overlap(x, t) + F.nll_loss(patterns(x).log(), t.sum(1).long())
    return {
        "dice_bce": losses.DiceFocalLoss(**sigmoid, gamma=0),
        "dice_focal": losses.DiceFocalLoss(**sigmoid, gamma=2),
        "tversky": losses.TverskyLoss(**sigmoid, alpha=0.3, beta=0.7),
        "gdl": losses.GeneralizedDiceLoss(**sigmoid),
        "focal": losses.FocalLoss(gamma=2),
    }[name]


def patterns(logits: Tensor) -> Tensor:
    """Probability of no, WT, WT+TC and WT+TC+ET by multiplying sigmoids, of these four alone."""
    p = logits.sigmoid()
    each = [
        torch.stack([p[:, r] if r < yes else 1 - p[:, r] for r in range(3)]).prod(0)
        for yes in range(4)
    ]
    return torch.stack(each, 1) / sum(each)[:, None]


@pytest.mark.parametrize("without_et", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_monai(name, without_et):
    logits, regions = batch(without_et=without_et)
    mine = LOSSES[name](logits, regions)
    (my_gradient,) = torch.autograd.grad(mine, logits)
    theirs = monai_loss(name)(logits, regions)
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    # sums of some hundred float32 numbers near 1
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(my_gradient, their_gradient, rtol=0, atol=1e-5)


def test_exclusive_classes_are_the_four_nested_patterns():
    logits, _ = batch()
    torch.testing.assert_close(class_logits(logits).softmax(1), patterns(logits))


def test_deep_supervision_weights_are_those_of_nnunet():
    assert scale_weights(5) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])
    assert scale_weights(1) == [1.0]
    assert scale_weights(2) == [1.0, 0.0]
    assert all(sum(scale_weights(n)) == pytest.approx(1) for n in range(1, 7))


def test_coarse_scales_see_the_nearest_truth_and_the_coarsest_nothing():
    logits, regions = batch()
    half = logits.detach()[..., ::2, ::2, ::2].clone().requires_grad_()
    quarter = torch.full((2, 3, 2, 1, 1), torch.nan)
    mine = supervised([logits, half, quarter], regions.bool(), dice)
    expected = 2 / 3 * dice(logits, regions) + 1 / 3 * dice(half, regions[..., ::2, ::2, ::2])
    torch.testing.assert_close(mine, expected)


def test_half_precision_answers_are_summed_in_single():
    logits, regions = batch()
    many = [x.detach().repeat(1, 1, 8, 8, 8) for x in (logits, regions)]  # 10⁵ voxels > 65504
    found = supervised([many[0].half()], many[1], dice)
    torch.testing.assert_close(found, dice(*many), rtol=0, atol=1e-3)  # 11 bits of each logit
