"""Stopping early: on a signal, or when the time is used up."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from types import FrameType
from typing import Self

from synth.base import stopping

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
        self.handlers = contextlib.ExitStack()

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
        self.handlers.enter_context(stopping.handled(self._handle))
        return self

    def __exit__(self, *error: object) -> None:
        self.handlers.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        first = stopping.note(number)
        if not first and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = f"received {signal.Signals(number).name}"
