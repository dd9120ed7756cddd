"""Tissue is found where it is, in any contrast; drawn brains fill their label map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synth.phantom.tissue import before_tumour, clearer, draw_tissue, tissue_of
from tests.conftest import ball

SPACING = 3.0
BRAIN = 4
WHITE = 2


def head(edge: int = 40) -> np.ndarray:
    """A class map of a round brain without a tumour."""
    return BRAIN * ball((edge,) * 3, (edge // 2,) * 3, 0.4 * edge).astype(np.uint8)


def scanned(tissue: np.ndarray, levels: list[list[float]], seed: int = 0) -> np.ndarray:
    """Scans of known tissue, one of each row of levels, brighter on the right, and noisy."""
    rng = np.random.default_rng(seed)
    drift = np.linspace(0.85, 1.15, tissue.shape[1]).reshape(-1, 1, 1)
    clean = np.einsum("ct,txyz->cxyz", np.array(levels), tissue) * drift
    return clean + 0.03 * rng.standard_normal(clean.shape)


T1, T2, FLAIR = [0.2, 0.6, 1.0], [1.0, 0.5, 0.35], [0.1, 0.9, 0.7]


@pytest.mark.parametrize("levels", [[T1, T2, FLAIR], [T1], [T2], [FLAIR, T1]])
def test_tissue_is_found_in_the_contrasts_at_hand(levels: list[list[float]]) -> None:
    classes = head()
    truth = draw_tissue(classes, SPACING, np.random.default_rng(1))
    found = tissue_of(scanned(truth, levels), classes, SPACING)
    inside = classes == BRAIN
    np.testing.assert_allclose(found.sum(0)[inside], 1, atol=1e-5)
    assert not found[:, ~inside].any()
    for own, other in zip(truth, found, strict=True):
        both = np.minimum(own, other).sum()
        assert 2 * both / (own.sum() + other.sum()) > 0.8


def test_an_empty_head_has_no_tissue() -> None:
    assert not tissue_of(np.zeros((1, 8, 8, 8)), np.zeros((8, 8, 8), np.uint8), 1.0).any()


def test_a_drawn_brain_fills_its_label_map_and_is_a_new_one() -> None:
    classes = head()
    classes[14:20, 18:24, 18:24] = 2
    one, again, other = (draw_tissue(classes, SPACING, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(one, again)
    inside = classes == BRAIN
    np.testing.assert_allclose(one.sum(0)[inside], 1, atol=1e-5)
    assert not one[:, ~inside].any()  # neither in the tumour nor outside
    csf, grey, white = one[:, inside].mean(1)
    assert 0.08 < csf < 0.35
    assert 0.3 < grey < 0.6
    assert 0.2 < white < 0.5
    assert np.abs(one - other)[:, inside].mean() > 0.05
    middle = ball(classes.shape, (20, 20, 20), 12) & inside
    rim = inside & ~ball(classes.shape, (20, 20, 20), 14)
    assert one[WHITE][middle].mean() > 2 * one[WHITE][rim].mean()


def test_the_core_of_a_tumour_pushes_tissue_away() -> None:
    classes = head()
    core, whole = (ball(classes.shape, (20, 20, 20), r) for r in (4, 6))
    classes[whole], classes[core] = 2, 3
    back = before_tumour(classes, SPACING, 0.2) - np.indices(classes.shape)
    offset = np.indices(classes.shape) - 20
    near = whole & (offset**2).sum(0).astype(bool)
    assert ((back * offset).sum(0)[near] < 0).all()  # what is here was nearer to the middle
    room = before_tumour(np.where(core, 3, head()), SPACING, 0.2) - np.indices(classes.shape)
    assert np.array_equal(back, room)  # oedema does not push beside a core
    for still in (before_tumour(head(), SPACING, 0.2), before_tumour(classes, SPACING, 0.0)):
        assert np.array_equal(still, np.indices(classes.shape))
    alone = np.where(whole, 2, head())
    assert (before_tumour(alone, SPACING, 0.2) != np.indices(classes.shape)).any()


def test_clearer_shares_are_still_shares() -> None:
    shares = torch.tensor([0.2, 0.3, 0.5]).view(3, 1, 1, 1)
    found = clearer(shares, 2.0).flatten()
    torch.testing.assert_close(found, torch.tensor([0.04, 0.09, 0.25]) / 0.38)
    assert not clearer(torch.zeros(3, 2, 2, 2), 2.0).any()
