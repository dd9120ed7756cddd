"""Heads that never were: drawn again to the bit, brains of every size, none like another."""

from __future__ import annotations

import numpy as np
import pytest

from synth.data import heads
from synth.data.heads import SHAPE, Anatomy, draw_head, draw_means, refold, template


@pytest.fixture(scope="module")
def mni() -> Anatomy:
    return template()


def test_the_template_is_a_brain_in_three_tissues(mni: Anatomy) -> None:
    brain = mni.tissue.sum(0) > 0.5
    assert mni.t1.shape == SHAPE
    assert 1500 < brain.sum() / 1000 < 2200  # ml; MNI152 is larger than most brains
    np.testing.assert_allclose(mni.tissue.sum(0)[brain], 1, atol=1e-5)
    white, grey = mni.tissue[2] > 0.9, mni.tissue[1] > 0.9
    assert mni.t1[white].mean() > mni.t1[grey].mean() > mni.t1[mni.tissue[0] > 0.9].mean()


def test_nilearn_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    found = heads.package_file

    def only_nilearn(package: str, path: str) -> object:
        return found(package, path) if package == "nilearn" else None

    monkeypatch.setattr(heads, "package_file", only_nilearn)
    assert [a.name for a in heads.anatomies()] == ["mni152_09a"]


def test_a_head_is_drawn_again_to_the_bit_and_no_two_are_alike(mni: Anatomy) -> None:
    first, again, other = (draw_head([mni], seed) for seed in (3, 3, 4))
    assert (first.image == again.image).all()
    both = first.brain & other.brain
    assert abs(np.corrcoef(first.image[both], other.image[both])[0, 1]) < 0.9
    for head in (first, other):
        assert 900 < head.brain.sum() / 1000 < 2600
        assert (head.image[~head.brain] == 0).all()
        assert np.percentile(head.image[head.brain], 99.5) == pytest.approx(1, abs=0.02)


def test_contrasts_differ_in_kind() -> None:
    means = np.array([draw_means(np.random.default_rng(k)) for k in range(200)])
    csf, grey, white = means.T
    assert 0.4 < ((white > grey) & (grey > csf)).mean() < 0.8, "like a T1, the most frequent"
    assert ((csf > grey) & (grey > white)).mean() > 0.05, "like a T2"
    assert (np.abs(grey - white) > 0.1).all()


def test_new_folds_keep_tissue_whole_and_leave_the_cerebellum_alone(mni: Anatomy) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")).astype(np.float32)
    places = grid + np.array(heads.ORIGIN_MM, np.float32).reshape(3, 1, 1, 1)
    brain = mni.tissue.sum(0) > 0.5
    new = refold(mni.tissue, brain, places, np.random.default_rng(0))
    np.testing.assert_allclose(new.sum(0)[brain], 1, atol=1e-4)
    middle = [round(mm - o) for mm, o in zip((22, -60, -38), heads.ORIGIN_MM, strict=True)]
    deep = (slice(None), *[slice(m - 3, m + 3) for m in middle])  # the cerebellum
    assert np.abs(new[deep] - mni.tissue[deep]).mean() < 0.05
    assert np.abs(new - mni.tissue)[1][brain].mean() > 0.05, "the cortex is another one"
