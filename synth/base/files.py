"""Atomic writing, JSON, and hashes of files."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

from synth.base.errors import SynthError


@contextlib.contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary neighbour of `path` that replaces it only when the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be what is missing
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(folder: Path, *, replace: bool = True) -> Generator[Path]:
    """Yield a temporary neighbour of `folder` that takes its place when the block succeeds.

    With `replace` False a folder that is there by then stays: another process was faster.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        if replace:  # what killed processes left
            for left_over in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):
                shutil.rmtree(left_over)
        temporary.mkdir(parents=True, exist_ok=True)
        yield temporary
        if replace and folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        if replace or not folder.is_dir():
            raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder, in order; what a killed process left is hidden."""
    found = (p for p in folder.rglob(pattern) if p.is_file())
    return sorted(
        p for p in found if not any(n.startswith(".") for n in p.relative_to(folder).parts)
    )


def unlink(path: Path) -> None:
    """Delete a file, if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> SynthError:
    """Return the error to raise where a path cannot be written."""
    return SynthError(
        f"{path}: cannot write: {error.strerror or error}",
        hint="check the free space and your permission on that folder",
    )


def read_json(path: Path) -> Any:
    """Read a JSON file, or say what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SynthError(
            f"{path}: cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SynthError(
            f"{path}: not valid JSON: {error}", hint="correct it or write it again"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
