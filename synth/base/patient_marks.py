"""Marks of patients, by which weights and records tell leaks and nobody learns names.

A mark is an HMAC of the patient's id under a secret key of the user or the team, written as
KEY-MARK. The key is made at the first need and stays on this computer; SYNTH_PATIENT_KEY names
another file, for a team to share. Earlier versions wrote a plain hash, which is still understood.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from synth.base.errors import SynthError

KEY_FILE = "SYNTH_PATIENT_KEY"
KEY_BYTES = 32

log = logging.getLogger(__name__)


def mark(patient: str) -> str:
    """Return the mark of a patient under our key."""
    key = _key()
    digest = hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:16]
    return f"{_name_of(key)}-{digest}"


def marks_of(patient: str) -> set[str]:
    """Return all marks that stand for a patient: ours, and that of earlier versions."""
    return {mark(patient), hashlib.blake2b(patient.encode(), digest_size=6).hexdigest()}


def are_foreign(marks: Iterable[str]) -> bool:
    """Say whether some marks were made with another key: they tell us nothing."""
    own = _name_of(_key())
    return any("-" in each and not each.startswith(f"{own}-") for each in marks)


def key_path() -> Path:
    """Return where the key is, or will be."""
    if named := os.environ.get(KEY_FILE):
        return Path(named)
    settings = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(settings) / "synth" / "patient.key"


def _key() -> bytes:
    return _read_or_make(key_path())


@functools.cache
def _read_or_make(path: Path) -> bytes:
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(made, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(KEY_BYTES))
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        log.warning("%s: %s: marks of patients will not be known again", path, error.strerror)
        return secrets.token_bytes(KEY_BYTES)
    except UnicodeDecodeError:
        text = ""
    if len(text) != 2 * KEY_BYTES or not all(c in "0123456789abcdef" for c in text):
        raise SynthError(
            f"{path} is not a key: {2 * KEY_BYTES} hexadecimal digits",
            hint="restore it, or remove it: then earlier weights tell no leaks",
        )
    return bytes.fromhex(text)


def _name_of(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:8]
