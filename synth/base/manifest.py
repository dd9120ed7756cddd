"""The record written beside each output: versions, arguments, seeds, hashes of inputs."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from synth.base.files import file_hash
from synth.base.version import __version__

LIBRARIES = ("torch", "numpy", "scipy", "nibabel", "monai")


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    libraries = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"synth": __version__, "python": platform.python_version(), **libraries}


@functools.cache
def git_commit() -> str | None:
    """Return the commit of the source tree this package runs from, if it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    answer = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def short_path(path: str | Path) -> str:
    """Return a path as records hold it: not where it lies on this computer, which names users."""
    path = Path(path)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return str(Path("…", *path.parts[-2:])) if path.is_absolute() else str(path)


def manifest(
    verb: str, arguments: Mapping[str, Any], inputs: Iterable[Path], **facts: Any
) -> dict[str, Any]:
    """Assemble the record of one output; `facts` are measured (seconds, network calls …)."""
    plain = {k: short_path(v) if isinstance(v, Path) else v for k, v in arguments.items()}
    return {
        "verb": verb,
        "arguments": plain,
        "inputs": {path.name: file_hash(path) for path in inputs},
        "versions": versions(),
        "git_commit": git_commit(),
        **facts,
    }


def gpu_names() -> list[str]:
    """Return the names of NVIDIA's GPUs, from their driver: importing torch takes seconds."""
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    if not shutil.which(words[0]):
        return []
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    return answer.stdout.splitlines() if answer.returncode == 0 else []
