"""A stand-in for `synth.cli`: main(words) writes, fails, waits or is killed, as the words say.

Every call adds a line to a file, which is what the tests count.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main(words: list[str]) -> int:
    verb, file, *rest = words
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(f"{verb} {os.getpid()}\n")
    count = len(path.read_text(encoding="utf-8").splitlines())
    print(f"call {count} of {verb}")
    if verb == "fail":  # so many times
        return 1 if count <= int(rest[0]) else 0
    if verb == "mend":
        print("give another folder", file=sys.stderr)
        return 2
    if verb == "die" and count == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if verb == "raise" and count == 1:
        raise RuntimeError("a bug")
    if verb == "save":  # takes its time, and when asked to stop says so, as `synth train` does
        asked: list[int] = []
        before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        end = time.monotonic() + float(rest[0])
        while time.monotonic() < end and not asked:
            time.sleep(0.02)
        signal.signal(signal.SIGTERM, before)
        return 130 if asked else 0
    return 0
