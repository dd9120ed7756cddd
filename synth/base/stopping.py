"""Ctrl-C and SIGTERM end a verb with one sentence, at any instant, even twice.

Signals belong to the process, and so does what is kept here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType

SENTENCE = "synth: stopped; the same command goes on"
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a verb that was stopped: 130 and 143."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_received: list[int] = []


def note(number: int) -> bool:
    """Remember a signal; return whether it is the first."""
    _received.append(number)
    return len(_received) == 1


def was_asked() -> bool:
    """Say whether a signal came."""
    return bool(_received)


def exit_code() -> int:
    """Return 130, or 143 where SIGTERM came first."""
    return 128 + (_received[0] if _received else signal.SIGINT)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Generator[bool]:
    """Answer both signals by a function, and yield whether that is possible here.

    Outside the main thread Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = [signal.signal(number, handler) for number in SIGNALS]
    try:
        yield True
    finally:
        for number, old in zip(SIGNALS, before, strict=True):
            signal.signal(number, old)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt the first time; leave at once the second."""
    if not note(number):
        leave(number, frame)
    raise KeyboardInterrupt


def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """End the process with the sentence, without tidying up."""
    note(number)
    os.write(2, f"{SENTENCE}\n".encode())
    os._exit(exit_code())


def ignore() -> None:
    """Leave both signals to the parent; for worker processes, which it ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def forget() -> None:
    """Start afresh: an earlier verb of this process was stopped, this one is not."""
    _received.clear()
