"""Soups: what is averaged, what is kept, and what is never claimed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from segmentation.soup.averaging import Mean, Scores, Soup, content_hash, greedy, uniform
from synth.base.errors import SynthError

TARGET = torch.tensor([1.0, -2.0, 0.5])


def weights(*values: float, steps: int = 7) -> dict[str, Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float32), "steps": torch.tensor(steps)}


class Judge:
    """Scores by the distance to the right weights, and counts."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, given: dict[str, Tensor]) -> float:
        self.calls.append(content_hash(given))
        return 1 - float((given["w"] - TARGET).norm())


def members(**named: dict[str, Tensor]) -> list[tuple[str, Callable[[], dict[str, Tensor]]]]:
    return [(name, lambda w=w: w) for name, w in named.items()]


GOOD = weights(1.1, -2.0, 0.5)
OTHER_SIDE = weights(0.8, -2.0, 0.5)  # the mean with GOOD is better than both
BAD = weights(9.0, 9.0, 9.0)


@pytest.mark.parametrize("order", [("good", "bad"), ("bad", "good")])
def test_a_greedy_soup_of_good_and_bad_keeps_good(order: tuple[str, ...]) -> None:
    named = {"good": GOOD, "bad": BAD}
    judge = Judge()
    soup = greedy(members(**{k: named[k] for k in order}), Scores(judge, "data"))
    assert soup.kept == (soup.best,) == ("good",)
    assert torch.equal(soup.weights["w"], GOOD["w"])
    assert soup.gain == 0
    assert [(r.name, r.kept) for r in soup.rows] == [("good", True), ("bad", False)]


def test_a_greedy_soup_takes_what_helps() -> None:
    named = members(bad=BAD, side=OTHER_SIDE, good=GOOD)
    judge = Judge()
    soup = greedy(named, Scores(judge, "data"))
    assert soup.kept == ("good", "side")
    torch.testing.assert_close(soup.weights["w"], torch.tensor([0.95, -2.0, 0.5]))
    assert soup.score == pytest.approx(0.95, abs=1e-6)  # float32
    assert soup.gain == pytest.approx(0.05, abs=1e-6)  # float32
    assert soup.weights["steps"] == 7
    # three alone, two soups: nothing twice
    assert len(judge.calls) == len(set(judge.calls)) == 5


def test_a_uniform_soup_is_the_mean_or_the_best_alone() -> None:
    judge = Judge()
    soup = uniform(members(side=OTHER_SIDE, good=GOOD), Scores(judge, "data"))
    assert soup.kept == ("good", "side")
    assert soup.gain == pytest.approx(0.05, abs=1e-6)  # float32
    lost = uniform(members(bad=BAD, good=GOOD), Scores(judge, "data"))
    assert lost.kept == ("good",)
    assert lost.gain == 0
    assert torch.equal(lost.weights["w"], GOOD["w"])
    assert [r.soup for r in lost.rows] == [lost.rows[0].soup] * 2
    alone = uniform(members(good=GOOD), Scores(judge, "data"))
    assert (alone.gain, alone.kept) == (0, ("good",))


def test_an_equal_score_is_no_gain() -> None:
    for soup in (greedy, uniform):
        found: Soup = soup(members(a=GOOD, b=OTHER_SIDE), Scores(lambda _: 0.5, "data"))
        assert (found.kept, found.gain) == (("a",), 0)


def test_the_mean_is_in_double_and_changes_no_input() -> None:
    many = [weights(1e8, 1.0, 0.1 * k) for k in range(10)]
    before = [content_hash(w) for w in many]
    mean = Mean.of(many[0])
    for k, one in enumerate(many[1:], start=1):
        mean = mean.with_one_more(one, str(k))
    expected = torch.stack([w["w"].double() for w in many]).mean(0).float()
    assert torch.equal(mean.weights()["w"], expected)
    mean.weights()["w"].zero_()
    soup = uniform([(str(k), lambda w=w: w) for k, w in enumerate(many)], Scores(Judge(), "d"))
    soup.weights["w"].zero_()
    best = greedy(members(good=many[0]), Scores(Judge(), "d"))
    best.weights["w"].zero_()
    assert [content_hash(w) for w in many] == before


def test_scores_are_remembered_by_content(tmp_path: Path) -> None:
    file, judge = tmp_path / "scores.json", Judge()
    named = members(good=GOOD, side=OTHER_SIDE)
    greedy(named, Scores(judge, "data", file))
    assert len(judge.calls) == 3
    renamed = members(a={k: v.clone() for k, v in GOOD.items()}, b=OTHER_SIDE)
    greedy(renamed, Scores(judge, "data", file))
    uniform(renamed, Scores(judge, "data", file))
    assert len(judge.calls) == 3
    greedy(named, Scores(judge, "other data", file))
    assert len(judge.calls) == 6
    file.write_text("[1, 2]")
    with pytest.raises(SynthError, match="not a file of scores"):
        Scores(judge, "data", file)


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
        greedy(members(good=GOOD, other=other), Scores(Judge(), "data"))
    assert message in str(caught.value)
