"""Slices stand upright, and contact sheets show what belongs to a row beside it."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from synth.base.errors import SynthError
from synth.data.volume import Volume
from synth.pictures.montage import draw_montage
from synth.pictures.slices import cut_planes, find_middle


def test_pictures_stand_upright() -> None:
    data = np.zeros((1, 8, 10, 12), np.float32)  # RAS
    data[0, 7, :, :] += 1  # right
    data[0, :, 9, :] += 2  # anterior
    data[0, :, :, 11] += 4  # superior
    axial, coronal, sagittal = cut_planes(Volume(data=data, affine=np.eye(4)), (3, 4, 5))
    assert axial.shape == (10, 8)
    assert (axial[0] >= 2).all()  # anterior up
    assert (axial[1:, 0] == 1).all()  # right on the viewer's left
    assert (coronal[0] >= 4).all()
    assert (coronal[1:, 0] == 1).all()
    assert (sagittal[0] >= 4).all()
    assert (sagittal[1:, 0] == 2).all()
    # The same head stored along other axes looks the same.
    turned = Volume(
        data=data[:, ::-1, ::-1].transpose(0, 3, 1, 2),
        affine=np.array([[0, -1.0, 0, 7], [0, 0, -1, 9], [1, 0, 0, 0], [0, 0, 0, 1]]),
    )
    for plain, other in zip((axial, coronal, sagittal), cut_planes(turned, (5, 4, 5)), strict=True):
        assert np.array_equal(plain, other)
    mask = np.zeros(data.shape[1:], bool)
    mask[3, 4, 5] = True
    assert find_middle(mask) == [3, 4, 5]


def test_montage_writes_a_picture(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).random((40, 40))
    disc = (np.hypot(*(np.indices((40, 40)) - 20)) < 9).astype(int)
    marks = {(row, 4): (disc, {1: "#ff0000"}, False) for row in range(2)}
    path = draw_montage([[grey] * 6] * 2, tmp_path / "cohort.png", marks=marks)
    picture = imread(path)[..., :3]
    assert picture.shape[1] > 2.5 * picture.shape[0]  # two rows of six
    greys = np.ptp(picture, axis=2) < 0.05
    columns = np.array_split(~greys, 6, axis=1)
    coloured = [part.mean() for part in columns]
    assert coloured[4] > 0.01 > max(coloured[:4])  # labels in their own column only
    with pytest.raises(SynthError, match="at least one"):
        draw_montage([], tmp_path / "none.png")


def test_long_row_labels_stay_beside_their_row(tmp_path: Path) -> None:
    label = "generated\nBraTS-GLI-50022-000-tumour00-synth00"
    rows, labels = [[np.zeros((9, 9))] * 2] * 3, [label, "", label]
    picture = imread(draw_montage(rows, tmp_path / "rows.png", row_labels=labels))[..., :3]
    # Black panels: what is bright is a letter. None at the edges, none beside the row between.
    bright = picture.max(axis=2) > 0.3
    third = len(picture) // 3
    assert bright[:third].any()
    assert bright[2 * third :].any()
    assert not bright[third : 2 * third].any()
    assert not bright[[0, 1, -2, -1]].any()
    assert not bright[:, :2].any()
