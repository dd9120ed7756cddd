"""Logging, progress without a terminal, metrics.jsonl, TensorBoard."""

import io
import json
import logging

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from synth.data.volume import Volume
from synth.training import log
from synth.training.log import METRICS, Progress, RunLog, middle_planes, read_metrics


def volume(data: np.ndarray) -> Volume:
    return Volume(data=data, affine=np.eye(4) * [2, 2, 2, 1])


def test_scalars_after_resuming_name_each_step_once(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n{"step": 2}\n')  # killed before its first save
    with RunLog(tmp_path) as first:
        for step in range(1, 8):
            first.scalars(step, {"loss": 1 / step})
    with (tmp_path / METRICS).open("a") as handle:
        handle.write('{"step": 8, "lo')  # torn by a kill
    with RunLog(tmp_path, resumed_step=4) as second:
        for step in range(5, 11):
            second.scalars(step, {"loss": -1.0})
        second.scalars(11, {"loss": float("nan")})
    *records, last = read_metrics(tmp_path / METRICS)
    assert [r["step"] for r in records] == list(range(1, 11))
    assert [r["loss"] for r in records] == [1, 1 / 2, 1 / 3, 1 / 4] + [-1.0] * 6
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = [(e.step, round(e.value, 4)) for e in board.Scalars("loss")]
    assert scalars[:-1] == [(r["step"], round(r["loss"], 4)) for r in records]
    text = (tmp_path / METRICS).read_text().splitlines()[-1]
    assert last == json.loads(text, parse_constant=pytest.fail) == {"step": 11, "loss": None}


def test_middle_planes_show_the_middle_of_each_axis(tmp_path):
    data = np.zeros((1, 4, 6, 8), np.int16)
    data[0, 2, 1, 6] = 10  # on the sagittal plane only (x is the middle)
    image = middle_planes(volume(data))
    assert image.shape == (8, (6 + 1) + (4 + 1) + (4 + 1))
    assert np.argwhere(image == 255).tolist() == [[8 - 1 - 6, 1]]
    assert image.sum() == 255
    two = np.concatenate([data, data]).astype(bool)
    assert np.array_equal(middle_planes(volume(two)), np.concatenate([image, image]))
    with RunLog(tmp_path) as run:
        run.images(3, {"mask": volume(two)})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.height, e.width) for e in board.Images("mask")] == [(3, 16, 17)]
    ramp = np.linspace(-1, 1, 1000, dtype=np.float32).reshape(1, 10, 10, 10)
    low, high = np.percentile(ramp, (1, 99))
    shown = 255 * (ramp[0, 5, 0, 5] - low) / (high - low)
    assert middle_planes(volume(ramp))[10 - 1 - 5, 0] == round(float(shown))
    assert middle_planes(volume(np.full((1, 3, 3, 3), 7, np.float32))).max() == 0


def test_progress_without_a_terminal_speaks_in_lines(caplog, capsys):
    caplog.set_level(logging.INFO)
    with Progress(10, label="train", start=4, every_seconds=0) as progress:
        for _ in range(6):
            progress.advance(loss=0.25)
    assert capsys.readouterr().err == ""
    assert len(caplog.messages) == 6
    assert caplog.messages[0].startswith("train 5/10 loss 0.25, ")
    assert caplog.messages[-1] == "train 10/10 loss 0.25, 00:00 left"
    caplog.clear()
    for options in ({"every_seconds": 3600}, {"shown": False, "every_seconds": 0}):
        with Progress(10, label="train", **options) as progress:
            progress.advance(loss=1)
    assert caplog.messages == []


def test_progress_on_a_terminal_is_a_bar(monkeypatch, caplog):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    caplog.set_level(logging.INFO)
    with Progress(3, label="train", every_seconds=0) as progress:
        for _ in range(3):
            progress.advance(loss=0.5)
    assert "train: 100%" in terminal.getvalue()
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("verbose", "rank", "heard"), [(False, "0", "iw"), (True, "0", "diw"), (True, "3", "w")]
)
def test_configure_sets_what_is_heard(monkeypatch, capsys, verbose, rank, heard):
    monkeypatch.setenv("RANK", rank)
    log.configure(verbose=verbose)
    log.configure(verbose=verbose)  # twice configured is not twice said
    for name in ("synth.training.loop", "wdm3d.recipe"):
        logger = logging.getLogger(name)
        logger.debug("d"), logger.info("i"), logger.warning("w")
        said = capsys.readouterr().err.splitlines()
        assert [line[-1] for line in said] == list(heard)
