"""Lesions: found, boxed in millimetres, rotated without changing what they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from label_gan.config import PRESETS, Config
from label_gan.data import LesionData, cut_lesions
from label_gan.distance_maps import from_output, read_labels
from label_gan.lesion_size import size_of, volume_ml
from synth.data.case import Case
from synth.data.labels import ED, ET, NCR
from synth.data.volume import Volume
from tests.conftest import ball, onion


def write(folder: Path, labels: np.ndarray, spacing: tuple[float, float, float]) -> Case:
    path = folder / "BraTS-GLI-00001-000-seg.nii.gz"
    Volume(data=labels[None], affine=np.diag([*spacing, 1.0])).save(path)
    return Case(id="BraTS-GLI-00001-000", files={"seg": path})


def test_neighbours_belong_together_and_specks_are_left_out() -> None:
    labels = np.zeros((60, 24, 24), np.uint8)
    small, large = ball(labels.shape, (10, 12, 12), 6), ball(labels.shape, (40, 12, 12), 8)
    labels[small | large] = ED
    labels[19, 12, 12] = ET  # 3 mm from the small one
    labels[58, 2, 2] = ED  # a speck
    lesions = cut_lesions(labels, (1.0, 1.0, 1.0), 0.5)
    assert [np.count_nonzero(lesion) for lesion in lesions] == [large.sum(), small.sum() + 1]
    assert (lesions[1] == ET).sum() == 1
    assert cut_lesions(np.zeros((4, 4, 4), np.uint8), (1.0, 1.0, 1.0), 0.5) == []


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (1.5, 1.0, 2.0)])
def test_items_keep_millilitres_and_shares(
    tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    labels = onion((16, 12, 9), edge=48)
    data = LesionData([write(tmp_path, labels, spacing)], Config(elastic=0.0, stretch=0.0))
    truth = np.bincount(labels.ravel(), minlength=4) * np.prod(spacing) / 1000
    step = float(data.lesions[0]["step_mm"])
    for seed in range(3):
        item = data.item(0, seed)
        assert volume_ml(item["size"]) == pytest.approx(truth[1:].sum(), rel=1e-5)
        maps = from_output(item["maps"], data.config)
        found = read_labels(maps, data.config, step_mm=step, spacing_mm=step)
        volumes = np.bincount(found.ravel(), minlength=4) * step**3 / 1000
        # a surface between voxels of the source is known to part of a voxel
        assert volumes[1:].sum() == pytest.approx(truth[1:].sum(), rel=0.06)
        assert volumes[NCR] == pytest.approx(truth[NCR], rel=0.12)
    assert data.spacing_mm() == pytest.approx(np.prod(spacing) ** (1 / 3), rel=1e-5)


def test_items_are_rotated_by_their_seed(tmp_path: Path) -> None:
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[5:25, 12:18, 12:18] = ED
    data = LesionData([write(tmp_path, labels, (2.0, 2.0, 2.0))], Config(elastic=0.0, stretch=0.0))
    axes = []
    for seed in range(4):
        places = np.argwhere(data.item(0, seed)["maps"][0].numpy() < 0)
        values, vectors = np.linalg.eigh(np.cov(places.T))
        axes.append(vectors[:, -1])
        assert np.sqrt(values[-1] / values[0]) == pytest.approx(20 / 6, rel=0.15)
    assert min(abs(axes[0] @ a) for a in axes[1:]) < 0.9, "pointing elsewhere"
    assert torch.equal(data.item(0, 1)["maps"], data.item(0, 1)["maps"])


def test_large_and_long_lesions_fit_their_box(tmp_path: Path) -> None:
    labels = np.zeros((120, 40, 40), np.uint8)
    labels[4:116, 15:25, 15:25] = ED  # 112 mm: the predecessor leaves it out
    case = write(tmp_path, labels, (1.0, 1.0, 1.0))
    data = LesionData([case], Config())
    for seed in range(3):
        inside = data.item(0, seed)["maps"][0] < 0
        assert inside.any()
        assert inside[1:-1, 1:-1, 1:-1].sum() == inside.sum()
    with pytest.raises(Exception, match="beyond 96"):
        LesionData([case], PRESETS["alpha_light"])


def test_the_size_of_a_lesion() -> None:
    size = size_of(np.array([0, ED, ED, ED, NCR, ET, ET, ET], np.uint8), 1000.0)
    assert volume_ml(size) == pytest.approx(7)
    np.testing.assert_allclose(size[1:], [4 / 7, 3 / 4, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(size_of(np.array([ED], np.uint8), 1.0)[1:], 0)


def test_alpha_items_are_shares_of_voxels(tmp_path: Path) -> None:
    """Area interpolation of a 96 mm cube: a voxel of the grid is the mean of what it covers."""
    labels = onion((9, 6, 4))
    data = LesionData([write(tmp_path, labels, (1.0, 1.0, 1.0))], PRESETS["alpha_light"])
    maps = data.item(0, 0)["maps"].numpy()
    cut = labels[ndimage.find_objects((labels > 0).astype(int))[0]]
    before = [(96 - n) // 2 for n in cut.shape]
    whole = np.zeros((96, 96, 96), np.uint8)
    whole[tuple(slice(b, b + n) for b, n in zip(before, cut.shape, strict=True))] = cut
    for channel, numbers in enumerate(((NCR, ET), (NCR, ED, ET), (ET,))):
        cells = np.isin(whole, numbers).reshape(32, 3, 32, 3, 32, 3).mean((1, 3, 5))
        np.testing.assert_allclose(maps[channel], cells, atol=1e-6)
