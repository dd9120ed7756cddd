"""Sliding windows against MONAI's, and what a blend of windows must be."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from segmentation.config import Config
from segmentation.predict import AIR, probabilities

CONFIG = Config(patch=(16, 32, 16))


class Toy(nn.Module):
    """Sees its surroundings, so that windows disagree, and where left is, so that flips do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv3d(4, 3, 5, padding=2)
        self.drop = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.drop(self.conv(x) + x.mean((1, 2, 3, 4), keepdim=True))


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([-2.0, 0.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, *x.shape[2:])


def image(*shape: int) -> Tensor:
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))


def monai(model: nn.Module, scan: Tensor, overlap: float, flips: bool) -> Tensor:
    from monai.inferers import SlidingWindowInferer

    subsets = [a for n in range(4) for a in itertools.combinations((2, 3, 4), n)]

    def predict(x: Tensor) -> Tensor:
        axes = subsets if flips else [()]
        return torch.stack([model(x.flip(a)).sigmoid().flip(a) for a in axes]).mean(0)

    inferer = SlidingWindowInferer(
        CONFIG.patch, sw_batch_size=1, overlap=overlap, mode="gaussian", cval=AIR
    )
    with torch.no_grad():
        return inferer(scan[None], predict)[0]


@pytest.mark.parametrize("shape", [(23, 41, 30), (16, 32, 16), (9, 50, 5), (17, 33, 31)])
@pytest.mark.parametrize(("overlap", "tta"), [(0.5, False), (0.5, True), (0.0, False), (0.7, True)])
def test_it_equals_monais_inferer(shape: tuple[int, int, int], overlap: float, tta: bool) -> None:
    model, scan = Toy().eval(), image(*shape)
    expected = monai(model, scan, overlap, tta)
    found = probabilities(model, scan, CONFIG, tta=tta, overlap=overlap)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # sums in another order


def test_a_constant_answer_stays_what_it_is() -> None:
    found = probabilities(Constant(), image(20, 40, 50), CONFIG, tta=True)
    expected = torch.tensor([-2.0, 0.0, 3.0]).sigmoid().view(3, 1, 1, 1).expand_as(found)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_mirrored_scan_gives_the_mirrored_answer_with_tta() -> None:
    """The windows of these sizes lie symmetrically."""
    model, scan = Toy(), image(24, 32, 16)
    plain = probabilities(model, scan, CONFIG, tta=True)
    mirrored = probabilities(model, scan.flip(1), CONFIG, tta=True)
    torch.testing.assert_close(mirrored.flip(1), plain, atol=1e-6, rtol=0)
    alone = probabilities(model, scan.flip(1), CONFIG).flip(1)
    assert (alone - probabilities(model, scan, CONFIG)).abs().max() > 1e-3


def test_the_model_returns_to_its_own_mode() -> None:
    model = Toy().train()
    twice = [probabilities(model, image(18, 32, 16), CONFIG) for _ in range(2)]
    assert torch.equal(*twice), "no dropout"
    assert (model.training, model.drop.training) == (True, True)
    assert not twice[0].requires_grad

    class Broken(Toy):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    broken = Broken().train()
    with pytest.raises(RuntimeError):
        probabilities(broken, image(18, 32, 16), CONFIG)
    assert broken.training


def test_one_window_at_a_time_and_as_many_as_needed() -> None:
    model = Toy()
    probabilities(model, image(16, 32, 16), CONFIG)
    assert model.calls == 1
    probabilities(model, image(24, 32, 16), CONFIG, tta=True)
    assert model.calls == 1 + 2 * 8
