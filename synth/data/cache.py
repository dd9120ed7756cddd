"""A cache of prepared arrays on disk, and random gamma and bias fields.

A training set is any object with `__len__` and `item(index, seed)`: everything random in an item
follows from its seed, so that the loop can repeat it anywhere.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
from scipy import ndimage

from synth.base.files import atomic_folder
from synth.data.case import Case

Arrays = dict[str, np.ndarray]
C = TypeVar("C")
log = logging.getLogger(__name__)


class ArrayCache:
    """Prepared arrays by name, memory-mapped from a folder, or in memory without one.

    The folder may be deleted at any time; entries appear by a rename, so that several processes
    can fill it together.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._held: dict[str, Arrays] = {}

    def get(self, name: str, recipe: str, make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of `name`, made once for each `recipe` (any text that fixes them)."""
        key = _key(name, recipe)
        if key not in self._held:
            self._held[key] = make() if self.folder is None else self._from_disk(key, make)
        return self._held[key]

    def holds(self, name: str, recipe: str) -> bool:
        """Say whether `get` would make nothing."""
        key = _key(name, recipe)
        return key in self._held or (self.folder is not None and (self.folder / key).is_dir())

    def forget(self) -> None:
        """Drop what is held in memory; the folder keeps it."""
        self._held.clear()

    def _from_disk(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        assert self.folder is not None
        place = self.folder / key
        if place.is_dir():
            try:
                return _read(place)
            except (OSError, EOFError, ValueError):
                log.warning("%s is damaged: made again", place)
                shutil.rmtree(place, ignore_errors=True)
        arrays = make()
        with atomic_folder(place, replace=False) as temporary:
            for field, array in arrays.items():
                np.save(temporary / f"{field}.npy", array)
        return _read(place)


class CaseData(Generic[C]):
    """Cases whose arrays are prepared once; a subclass makes items of them for the loop.

    Args:
        cases: each with the roles that are needed.
        config: the model's.
        cache: where prepared arrays are kept.
        fixed: for validation: nothing is varied.
    """

    roles: ClassVar[tuple[str, ...]] = ()
    """Files that every case must have: a missing one is named before an hour of work."""

    def __init__(
        self,
        cases: Sequence[Case],
        config: C,
        *,
        cache: ArrayCache | None = None,
        fixed: bool = False,
    ) -> None:
        self.cases, self.config, self.fixed = list(cases), config, fixed
        self.cache = cache or ArrayCache()
        for case in self.cases:
            for role in self.roles:
                case.path(role)

    def __len__(self) -> int:
        return len(self.cases)


def _read(folder: Path) -> Arrays:
    return {p.stem: np.load(p, mmap_mode="r") for p in sorted(folder.glob("*.npy"))}


def _key(name: str, recipe: str) -> str:
    return f"{name}-{hashlib.blake2b(recipe.encode(), digest_size=6).hexdigest()}"


def fingerprint(files: Mapping[str, Path]) -> str:
    """Describe files by name, size and time of change, as part of a cache recipe."""
    stats = [(role, str(p), p.stat().st_size, p.stat().st_mtime_ns) for role, p in files.items()]
    return repr(sorted(stats))


def gamma(image: np.ndarray, rng: np.random.Generator, spread: float = 0.15) -> np.ndarray:
    """Bend the grey scale of a [-1, 1] image: background stays -1 and white stays 1."""
    power = np.float32(np.exp(rng.normal(0, spread)))
    return 2 * np.clip((image + 1) / 2, 0, None) ** power - 1


def bias_field(image: np.ndarray, rng: np.random.Generator, spread: float = 0.1) -> np.ndarray:
    """Multiply a [-1, 1] image (C, x, y, z) by a smooth positive field; background stays -1."""
    coarse = rng.normal(0, spread, size=(4, 4, 4))
    zoom = [n / 4 for n in image.shape[1:]]
    field = np.exp(ndimage.zoom(coarse, zoom, order=1, mode="nearest", grid_mode=True))
    return ((image + 1) * field.astype(np.float32) - 1).astype(np.float32)
