"""The viewer: the right slice, the right colours, and hands on wheel and keys; and notebooks."""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backend_bases import KeyEvent, MouseEvent
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from synth.base.errors import SynthError
from synth.cli import main
from synth.data.case import Case, discover
from synth.data.volume import Volume
from synth.pictures import slices, viewer
from tests.conftest import LPS


@pytest.fixture
def case(make_case: Callable[..., Path]) -> Case:
    (found,) = discover(make_case())
    return found


def test_it_opens_where_the_tumour_is_largest(case: Case) -> None:
    seg = case.load("seg").data[0]
    for plane, axis in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
        shown = viewer.open_case(case, plane=plane)
        others = tuple(a for a in range(3) if a != axis)
        assert shown.index == (seg > 0).sum(axis=others).argmax()
        assert shown.slices == seg.shape[axis]
    assert list(shown.panes) == ["t1n", "t1c", "t2w", "t2f"]


def test_panes_are_the_slices_of_the_files_and_labels_can_go(case: Case) -> None:
    shown = viewer.open_case(case)
    shown.labels_on = False
    plain = shown.draw()
    for name, picture in plain.items():
        volume = case.load(name)
        expected = volume.data[0, ..., shown.index].T  # (Y, X): LPS is stored as it is displayed
        small = np.asarray(Image.fromarray(picture[..., 0]).resize(expected.shape[::-1]), float)
        assert np.corrcoef(small.ravel(), expected.ravel())[0, 1] > 0.98
    shown.labels_on = True
    coloured = shown.draw()["t1n"]
    labelled = (np.ptp(coloured.astype(int), axis=2) > 0).mean()
    share = (case.load("seg").data[0, ..., shown.index] > 0).mean()
    assert labelled == pytest.approx(share, rel=0.1)  # red, green, yellow: none is grey


def test_a_case_without_labels_shows_its_mask_and_one_without_scans_is_refused(case: Case) -> None:
    files = dict(case.files)
    del files["seg"]
    shown = viewer.open_case(Case(id=case.id, files=files))
    assert shown.overlay is not None
    assert shown.overlay.outline
    with pytest.raises(SynthError, match="no scan to view"):
        viewer.open_case(Case(id="x", files={"seg": case.files["seg"]}))


def test_scans_on_different_grids_are_refused(case: Case, tmp_path: Path) -> None:
    other = Volume(data=np.ones((1, 15, 15, 15), np.float32), affine=LPS).save(
        tmp_path / "x.nii.gz"
    )
    with pytest.raises(SynthError, match="differ in shape"):
        viewer.open_case(Case(id="x", files={**case.files, "t2f": other}))


def scroll(figure: Figure, step: int) -> None:
    canvas = figure.canvas
    event = MouseEvent("scroll_event", canvas, 10, 10, step=step)
    canvas.callbacks.process("scroll_event", event)


def press(figure: Figure, key: str) -> None:
    figure.canvas.callbacks.process(
        "key_press_event", KeyEvent("key_press_event", figure.canvas, key)
    )


def test_wheel_and_keys_move_turn_and_strip(case: Case) -> None:
    shown = viewer.open_case(case)
    figure = Figure()
    FigureCanvasAgg(figure)
    slider = viewer.add_controls(shown, figure)
    start = shown.index
    heading = figure._suptitle
    assert heading is not None
    scroll(figure, 2)
    assert (shown.index, slider.val) == (start + 2, start + 3)
    assert heading.get_text().endswith(f"axial {start + 3} of {shown.slices}")
    press(figure, "down")
    assert shown.index == start + 1
    scroll(figure, -100)
    assert shown.index == 0
    scroll(figure, 100)
    assert shown.index == shown.slices - 1
    press(figure, "3")
    seg = case.load("seg").data[0]
    assert (shown.plane, shown.slices) == ("sagittal", seg.shape[0])
    assert shown.index == (seg > 0).sum(axis=(1, 2)).argmax()
    images = [axes.images[0] for axes in figure.axes if axes.images]
    before = np.array(images[0].get_array())
    press(figure, " ")
    after = np.asarray(images[0].get_array())
    assert (np.ptp(before.astype(int), axis=2) > 0).any()
    assert not (np.ptp(after.astype(int), axis=2) > 0).any()
    slider.set_val(4)
    assert shown.index == 3
    # A picture of another shape fills its own pane: pixels stay square.
    rows, columns = np.asarray(images[0].get_array()).shape[:2]
    assert images[0].get_extent() == [0, columns, rows, 0]


def test_verb_writes_a_png_and_a_gif_of_every_slice_with_tissue(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(case.files["t1n"].parent)
    png, gif = tmp_path / "a.png", tmp_path / "a.gif"
    assert main(["view", folder, "--save", str(png), "--slice", "3"]) == 0
    assert main(["view", folder, "--save", str(gif), "--plane", "coronal", "--no-labels"]) == 0
    assert capsys.readouterr().out.split() == [str(png), str(gif)]
    with Image.open(png) as still:
        assert still.size == (round(2 * 3.4 * 110), round((2 * 3.4 + 0.8) * 110))
    filled = (case.load("t1n").data[0] > 0).any(axis=(0, 2)).sum()
    with Image.open(gif) as moving:
        assert getattr(moving, "n_frames", 1) == filled
        frames = []
        for k in range(filled):
            moving.seek(k)
            frames.append(np.asarray(moving.convert("L"), float))
    assert all(np.abs(a - b).max() > 20 for a, b in itertools.pairwise(frames))
    assert main(["view", folder, "--save", str(png)]) == 2
    assert "--force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slice", "99", "--save", "x.png"], "1 to 18"),
        (["--save", "x.jpeg"], "end its name in .png or .gif"),
        (["--id", "BraTS-GLI-00001-001", "--save", "x.png"], "did you mean BraTS-GLI-00001-000?"),
        ([], "no display"),
    ],
)
def test_mistakes_are_one_line(
    case: Case,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from matplotlib import pyplot as plt

    monkeypatch.setattr(plt, "get_backend", lambda: "agg")
    assert main(["view", str(case.files["t1n"].parent), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_many_asks_which(
    make_case: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_case().parent
    make_case("BraTS-GLI-00002-000", seed=1)
    assert main(["view", str(root), "--save", str(tmp_path / "x.png")]) == 2
    assert "--id says which, e.g. --id BraTS-GLI-00001-000" in capsys.readouterr().err
    words = ["view", str(root), "--id", "BraTS-GLI-00002-000", "--save", str(tmp_path / "x.png")]
    assert main(words) == 0


def pictures(html: str) -> list[np.ndarray]:
    blobs = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(b))).convert("L")) for b in blobs]


def test_a_notebook_shows_a_volume_in_three_planes_with_its_facts(case: Case) -> None:
    scan, mask, seg = case.load("t1n"), case.load("mask"), case.load("seg")
    html = scan._repr_html_()
    low, high = scan.data.min(), scan.data.max()
    assert f"image: 20×24×18 voxels of 1×1×1 mm, float32 from {low:.4g} to {high:.4g}" in html
    (picture,) = pictures(html)
    widths = [slices.draw_slice(scan, p, 9, side=140).shape[1] for p in slices.PLANES]
    assert picture.shape == (140, sum(widths) + 2 * 2)
    assert len(html) < 40_000
    count = int(mask.data.sum())
    assert f"{count} voxels set, {count / 1000:.4g} ml" in mask._repr_html_()
    assert "labels 0 1 2 3" in seg._repr_html_()
    empty = Volume(data=np.zeros((1, 0, 3, 3), np.float32), affine=np.eye(4))
    assert "empty" in empty._repr_html_()


def test_a_notebook_shows_every_file_of_a_case(case: Case, tmp_path: Path) -> None:
    html = case._repr_html_()
    assert html.count("<tr>") == len(case.files) == len(pictures(html))
    for role, path in case.files.items():
        assert f">{role}</td>" in html
        assert str(path) in html
    assert len(html) < 60_000
    bad = tmp_path / "a<b-t2f.nii.gz"
    bad.write_bytes(b"no image")
    html = Case(id="x<y", files={"t1n": case.files["t1n"], "t2f": bad})._repr_html_()
    assert "x&lt;y" in html
    assert "a&lt;b-t2f" in html
    assert "cannot be read as NIfTI" in html
    assert len(pictures(html)) == 1
