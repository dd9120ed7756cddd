"""Log lines, progress bar, metrics.jsonl and TensorBoard of a run."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
from tqdm import tqdm

from synth.base import families
from synth.base.errors import SynthError, printable
from synth.base.files import parse_json, write_text
from synth.data.volume import Volume

METRICS = "metrics.jsonl"


class MetricsLine(TypedDict):
    """A line of metrics.jsonl, which also has a number of each metric."""

    step: int


PLAIN_EVERY_SECONDS = 30.0

log = logging.getLogger(__name__)


def configure(*, verbose: bool = False) -> None:
    """Send the package's log to stderr: what happens, or every detail.

    For the command line only; a library leaves this choice to its user. Of several processes, all
    but the first speak of warnings alone.
    """
    level = logging.DEBUG if verbose else logging.INFO
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # we name damaged headers
    if os.environ.get("RANK", "0") != "0":
        level = logging.WARNING
    handler = _AboveTheBar()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("synth", *families.FAMILIES):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def counted(number: float, thing: str) -> str:
    """Say how many: 1 case, 2 cases."""
    return f"{number:g} {thing}{'s' * (number != 1)}"


def silence() -> None:
    """Undo `configure`: a program that calls a verb as a function gets its own logging back."""
    for name in ("synth", *families.FAMILIES):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


class _AboveTheBar(logging.Handler):
    """Writes log lines to stderr without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(printable(self.format(record)), file=sys.stderr)


class Progress:
    """A progress bar with ETA on a terminal; elsewhere a plain log line every half minute."""

    def __init__(
        self,
        total: int,
        *,
        label: str,
        start: int = 0,
        unit: str = "step",
        shown: bool = True,
        every_seconds: float = PLAIN_EVERY_SECONDS,
    ) -> None:
        self.total, self.label, self.done, self.start = total, label, start, start
        self.every_seconds = every_seconds
        self.shown = shown
        self.bar = tqdm(
            total=total, initial=start, desc=label, unit=unit, file=sys.stderr, dynamic_ncols=True,
            disable=not (shown and sys.stderr.isatty()),
        )  # fmt: skip
        self.began = self.spoke = time.monotonic()

    def advance(self, **values: float) -> None:
        """Count one unit as done and show the latest values."""
        self.done += 1
        if not self.bar.disable:
            self.bar.set_postfix(values, refresh=False)
            self.bar.update()
        elif self.shown and time.monotonic() - self.spoke >= self.every_seconds:
            self.spoke = time.monotonic()
            text = " ".join(f"{k} {v:.4g}" for k, v in values.items())
            log.info("%s %d/%d %s, %s", self.label, self.done, self.total, text, self._eta())

    def _eta(self) -> str:
        rate = (time.monotonic() - self.began) / max(self.done - self.start, 1)
        return f"{tqdm.format_interval(rate * (self.total - self.done))} left"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


class RunLog:
    """metrics.jsonl and TensorBoard of one run folder, each step once however often it resumed."""

    def __init__(self, folder: Path, *, resumed_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        if self.path.exists():
            # The steps past it will be taken and logged again.
            kept = [r for r in read_metrics(self.path) if r["step"] <= resumed_step]
            write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))
        self.hook, threading.excepthook = threading.excepthook, _leave_to_caller
        self.folder = folder / "tensorboard"
        _forget_host(self.folder)
        self.board = SummaryWriter(str(self.folder), purge_step=resumed_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line: {"step": …, name: value, …}; a NaN becomes null, as JSON has none."""
        record = {k: v if np.isfinite(v) else None for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"step": step, **record}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def images(self, step: int, volumes: Mapping[str, Volume]) -> None:
        """Show the three middle planes of each volume."""
        for name, volume in volumes.items():
            self.board.add_image(name, middle_planes(volume), step, dataformats="HW")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.board.close()
        finally:
            threading.excepthook = self.hook
        _forget_host(self.folder)


def _leave_to_caller(failure: threading.ExceptHookArgs) -> None:
    """Print no traceback of a failed write in TensorBoard's thread: its caller is told, too."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def _forget_host(folder: Path) -> None:
    """Take the computer's name out of the names of TensorBoard's files, once nobody writes them."""
    for path in folder.glob(f"*.{socket.gethostname()}.*"):
        path.rename(folder / path.name.replace(f".{socket.gethostname()}.", "."))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl up to the first damaged line, as a kill leaves one."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            records.append(dict(parse_json(line, MetricsLine, name=METRICS)))
        except SynthError:
            break
    return records


def middle_planes(volume: Volume) -> np.ndarray:
    """Draw the middle sagittal, coronal and axial plane side by side, a row for each channel.

    Images are windowed between their 1st and 99th percentile, masks and labels by their maximum.
    Returns uint8 (H, W); up is the high end of the last axis, or of the second in the axial plane.
    """
    return np.concatenate([_planes_of_channel(channel) for channel in volume.data])


def _planes_of_channel(channel: np.ndarray) -> np.ndarray:
    if channel.dtype.kind == "f":
        low, high = (float(v) for v in np.percentile(channel, (1, 99)))
        if low == high:  # a small bright thing in a constant background
            low, high = float(channel.min()), float(channel.max())
    else:
        low, high = 0.0, float(channel.max())
    x, y, z = (n // 2 for n in channel.shape)
    planes = [np.rot90(p) for p in (channel[x], channel[:, y], channel[:, :, z])]
    height = max(p.shape[0] for p in planes)
    grey = [np.clip((p - low) / max(high - low, 1e-12), 0, 1) * 255 for p in planes]
    rows = [np.pad(g, ((0, height - g.shape[0]), (0, 1))) for g in grey]
    return np.concatenate(rows, axis=1).round().astype(np.uint8)
