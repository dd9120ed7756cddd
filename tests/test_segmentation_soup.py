"""Soups: what is averaged, what is kept, and what is never claimed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from segmentation.soup.averaging import average
from segmentation.soup.selection import content_hash
from synth.base.errors import SynthError

TARGET = torch.tensor([1.0, -2.0, 0.5])


def weights(*values: float, steps: int = 7) -> dict[str, Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float32), "steps": torch.tensor(steps)}


class Scorer:
    """Scores by the distance to the right weights, and counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, given: dict[str, Tensor]) -> float:
        self.calls.append(content_hash(given))
        return 1 - float((given["w"] - TARGET).norm())


def members(**named: dict[str, Tensor]) -> dict[str, Callable[[], dict[str, Tensor]]]:
    return {name: lambda w=w: w for name, w in named.items()}


GOOD = weights(1.1, -2.0, 0.5)
OTHER_SIDE = weights(0.8, -2.0, 0.5)  # the mean with GOOD is better than both
BAD = weights(9.0, 9.0, 9.0)


@pytest.mark.parametrize("order", [("good", "bad"), ("bad", "good")])
def test_a_greedy_soup_of_good_and_bad_keeps_good(order: tuple[str, ...]) -> None:
    named = {"good": GOOD, "bad": BAD}
    judge = Scorer()
    soup = average("greedy", members(**{k: named[k] for k in order}), judge)
    assert soup.kept == (soup.best,) == ("good",)
    assert torch.equal(soup.weights["w"], GOOD["w"])
    assert soup.gain == 0
    assert [(r.name, r.kept) for r in soup.rows] == [("good", True), ("bad", False)]


def test_a_greedy_soup_takes_what_helps() -> None:
    named = members(bad=BAD, side=OTHER_SIDE, good=GOOD)
    judge = Scorer()
    soup = average("greedy", named, judge)
    assert soup.kept == ("good", "side")
    torch.testing.assert_close(soup.weights["w"], torch.tensor([0.95, -2.0, 0.5]))
    assert soup.score == pytest.approx(0.95, abs=1e-6)  # float32
    assert soup.gain == pytest.approx(0.05, abs=1e-6)  # float32
    assert soup.weights["steps"] == 7
    # three alone, two soups: nothing twice
    assert len(judge.calls) == len(set(judge.calls)) == 5


def test_a_uniform_soup_is_the_mean_or_the_best_alone() -> None:
    judge = Scorer()
    soup = average("uniform", members(side=OTHER_SIDE, good=GOOD), judge)
    assert soup.kept == ("good", "side")
    assert soup.gain == pytest.approx(0.05, abs=1e-6)  # float32
    lost = average("uniform", members(bad=BAD, good=GOOD), judge)
    assert lost.kept == ("good",)
    assert lost.gain == 0
    assert torch.equal(lost.weights["w"], GOOD["w"])
    assert [r.soup for r in lost.rows] == [lost.rows[0].soup] * 2
    alone = average("uniform", members(good=GOOD), judge)
    assert (alone.gain, alone.kept) == (0, ("good",))


@pytest.mark.parametrize("kind", ["greedy", "uniform"])
def test_an_equal_score_is_no_gain(kind: str) -> None:
    soup = average(kind, members(a=GOOD, b=OTHER_SIDE), lambda _: 0.5)
    assert (soup.kept, soup.gain) == (("a",), 0)


def test_the_mean_is_in_double_and_changes_no_input() -> None:
    many = {str(k): weights(1e8, 1.0, 0.1 * k) for k in range(10)}
    before = [content_hash(w) for w in many.values()]
    rising = iter(range(100))
    soup = average("uniform", members(**many), lambda _: next(rising))
    expected = torch.stack([w["w"].double() for w in many.values()]).mean(0).float()
    assert torch.equal(soup.weights["w"], expected)
    soup.weights["w"].zero_()
    average("greedy", members(good=many["0"]), Scorer()).weights["w"].zero_()
    assert [content_hash(w) for w in many.values()] == before


def test_the_hash_sees_names_types_shapes_and_values() -> None:
    w = torch.arange(6.0)
    variants = [
        {"a": w}, {"b": w}, {"a": w.double()}, {"a": w.view(2, 3)}, {"a": w + 1e-6},
        {"a": w.half()}, {"a": w.bfloat16()}, {"a": w[:3], "b": w[3:]}, {"a": torch.tensor(0.0)},
    ]  # fmt: skip
    assert len({content_hash(v) for v in variants}) == len(variants)
    assert content_hash({"a": w.view(2, 3).t().contiguous().t()}) == content_hash(
        {"a": w.view(2, 3)}
    )


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": torch.zeros(3)}, "'steps' is not in all"),
        (weights(1, 2), "'w' is (2,)"),
        (weights(1, 2, 3, steps=8), "'steps' differs"),
        ({"w": torch.zeros(3).double(), "steps": torch.tensor(7)}, "float64"),
    ],
)
def test_other_networks_are_refused(other: dict[str, Tensor], message: str) -> None:
    with pytest.raises(SynthError) as caught:
        average("greedy", members(good=GOOD, other=other), Scorer())
    assert message in str(caught.value)
