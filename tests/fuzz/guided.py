"""Coverage-guided fuzzing of the readers, where atheris is installed (it is not a dependency).

    python -m tests.fuzz.guided scan -max_total_time=600      # or split

What breaks a reader is written into the current folder; any word of libFuzzer may follow.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(words: list[str]) -> None:
    """Feed a reader with what libFuzzer invents, until it is told to stop."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["synth", "nibabel"]):
        from synth.base.errors import SynthError
        from synth.data.split import read_split
        from synth.data.volume import Volume
    folder = Path(tempfile.mkdtemp())
    readers: dict[str, tuple[str, Callable[[Path], object]]] = {
        "scan": ("scan.nii", Volume.load),
        "split": ("split.json", read_split),
    }
    kind, *more = words or ["scan"]
    name, read = readers[kind]

    def once(data: bytes) -> None:
        (folder / name).write_bytes(data)
        try:
            read(folder / name)
        except SynthError:
            return

    atheris.Setup([sys.argv[0], *more], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
