"""Atomic writing, typed JSON, and hashes of files.

A temporary file or folder is called .NAME.HOST-PID.part. Writing the same NAME again removes those
of dead processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from synth.base.config import coerce
from synth.base.errors import SynthError, one_line

T = TypeVar("T")
log = logging.getLogger(__name__)

MAX_JSON_BYTES = 2**28
FOREIGN_SECONDS = 86_400.0
"""A temporary file of another computer counts as left over after this time."""
CORRECT = "correct it or write it again"
LOCK = ".lock"


@contextlib.contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary neighbour of `path` that replaces it only when the block succeeds."""
    temporary = temporary_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_overs(path)
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
    temporary = temporary_of(folder)
    try:
        remove_left_overs(folder)
        temporary.mkdir(parents=True, exist_ok=True)
        yield temporary
        if replace and folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        faster = error.errno in (errno.ENOTEMPTY, errno.EEXIST) or not replace
        if not (faster and folder.is_dir()):
            raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_of(path: Path) -> Path:
    """Return the place where this process prepares a file or folder."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}.part")


def remove_left_overs(path: Path) -> None:
    """Remove what dead processes left of a file or folder that they prepared."""
    for found in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if _is_left_over(found, path):
            with contextlib.suppress(OSError):
                shutil.rmtree(found) if found.is_dir() else found.unlink()


def _is_left_over(found: Path, path: Path) -> bool:
    token = found.name.removeprefix(f".{path.name}.").removesuffix(".part")
    host, _, number = token.rpartition("-")
    if not number.isdigit():
        return False
    if host not in ("", _host()):
        with contextlib.suppress(OSError):
            return time.time() - found.stat().st_mtime > FOREIGN_SECONDS
        return False
    return int(number) == os.getpid() or not is_alive(int(number))


def is_alive(pid: int) -> bool:
    """Say whether a process of this computer runs."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _host() -> str:
    return hashlib.blake2b(platform.node().encode(), digest_size=3).hexdigest()


@contextlib.contextmanager
def lock(path: Path, *, wait: bool = False, needed: bool = True) -> Generator[TextIO | None]:
    """Yield a file, opened to append and locked; None where another process has the lock.

    The system frees the lock when the process and its children have ended, however they ended. On
    a file system without locks, `needed` decides between an error and a warning.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        free = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            free = False
        except OSError as error:
            said = f"{path} cannot be locked: {error.strerror}"
            if needed:
                raise SynthError(
                    said, hint="choose a folder on a file system with locks (flock)"
                ) from error
            log.warning("%s: make sure that only one process works there", said)
        yield file if free else None


@contextlib.contextmanager
def only_process(folder: Path) -> Generator[None]:
    """Work in a folder alone, or say who does."""
    path = folder / LOCK
    with lock(path, needed=False) as file:
        # Who opened the file before its last owner removed it holds a lock on nothing.
        if (
            file is None
            or not path.exists()
            or not os.path.samestat(os.fstat(file.fileno()), path.stat())
        ):
            who = path.read_text(encoding="utf-8").strip() if path.exists() else ""
            raise SynthError(
                f"{folder}: another process{who and f', {who},'} works here",
                hint="wait for it, or choose another --out",
            )
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()}\n")
        file.flush()
        try:
            yield
        finally:
            unlink(path)


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
    if blocking := next((p for p in path.parents if p.is_file()), None):
        return SynthError(
            f"{path}: cannot write: {blocking} is a file, not a folder", hint="choose another --out"
        )
    return SynthError(
        f"{path}: cannot write: {error.strerror or error}",
        hint="check the free space and your permission on that folder",
    )


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file as a type (`dict`, `list[str]`, a TypedDict …), or say what is wrong."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise SynthError(f"{path}: more than {MAX_JSON_BYTES:,} bytes of JSON")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SynthError(
            f"{path}: cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise SynthError(f"{path}: not valid JSON: {error}", hint=CORRECT) from error
    return parse_json(text, kind, name=str(path))


def parse_json(text: str, kind: type[T], *, name: str) -> T:
    """Parse JSON of a type; a key that occurs twice, or a number without end, is refused."""
    try:
        values = json.loads(text, object_pairs_hook=_without_duplicates)
        return coerce(values, kind, "")
    except (ValueError, OverflowError, RecursionError) as error:
        raise SynthError(f"{name}: not valid JSON: {one_line(str(error))}", hint=CORRECT) from error
    except SynthError as error:
        raise SynthError(f"{name}: {error.message}", hint=CORRECT) from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"'{next(k for k in keys if keys.count(k) > 1)}' occurs twice")
    return values


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
