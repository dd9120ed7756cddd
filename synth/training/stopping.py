"""Stopping early: on a signal, or when the time is used up."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Self

log = logging.getLogger(__name__)


class Stop:
    """Turns SIGTERM, SIGINT and a time limit into a question asked between two steps.

    A second Ctrl-C interrupts at once. Outside the main thread Python allows no handlers; the time
    limit holds there too.
    """

    def __init__(self, max_seconds: float = 0.0) -> None:
        self.began = time.monotonic()
        self.max_seconds = max_seconds
        self.reason = ""
        self.before: dict[int, object] = {}

    @property
    def seconds(self) -> float:
        """Wall time since the beginning."""
        return time.monotonic() - self.began

    def asked(self) -> bool:
        """Say whether this process has reason to stop."""
        if not self.reason and 0 < self.max_seconds <= self.seconds:
            self.reason = f"{self.max_seconds:g} seconds are over"
        return bool(self.reason)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = f"received {signal.Signals(number).name}"
