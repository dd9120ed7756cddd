"""Ways to damage a NIfTI file, and the one line that a verb has to say of it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np


def resave(path: Path, change: Callable[[np.ndarray, np.ndarray], tuple]) -> None:
    image = nib.load(path)
    data, affine = change(np.asanyarray(image.dataobj), image.affine.copy())
    nib.save(nib.Nifti1Image(data, affine), path)


def remove(path: Path) -> None:
    path.unlink()


def text(path: Path) -> None:
    path.write_text("hello")


def packed_text(path: Path) -> None:
    path.write_bytes(gzip.compress(b"hi"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def crop(path: Path) -> None:
    resave(path, lambda data, affine: (data[:-1], affine))


def move(path: Path) -> None:
    """Shift the affine by 3 mm."""
    resave(path, lambda data, affine: (data, affine + 3 * np.eye(4, k=3)))


def stack(path: Path) -> None:
    """Make it 4-D."""
    resave(path, lambda data, affine: (np.stack([data, data], 3), affine))


def blank(path: Path) -> None:
    resave(path, lambda data, affine: (data * 0, affine))


def not_a_number(path: Path) -> None:
    resave(path, lambda data, affine: (np.where(data > 500, np.nan, data), affine))


def relabel(old: int, new: float) -> Callable[[Path], None]:
    return lambda path: resave(
        path, lambda data, affine: (np.where(data == old, new, data).astype(np.float32), affine)
    )


def triple(path: Path) -> None:
    """Make labels of a mask."""
    resave(path, lambda data, affine: (data * 3, affine))


def told(errors: str, message: str) -> list[str]:
    """Assert that exactly one line has a hint, and the message; return all lines."""
    lines = errors.splitlines()
    (line,) = [line for line in lines if " → " in line]
    assert message in line
    assert line.split(" → ")[1]
    return lines
