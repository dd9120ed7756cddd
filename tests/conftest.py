"""Small hand-made brains, so that tests of the ground need no phantom."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from synth.data.labels import ED, ET, NCR
from synth.data.placement import Site
from synth.data.volume import Volume
from synth.phantom.cohort import write_cohort
from synth.training import log

torch.set_num_threads(1)  # small tensors: a second thread only waits (and xdist has the other core)
LPS = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 23], [0, 0, 1, 0], [0, 0, 0, 1]])
FIXTURES = Path(__file__).parent / "golden" / "public"


def golden(name: str) -> dict:
    """What a public network answered, and the shapes of its weights."""
    return json.loads((FIXTURES / f"{name}.json").read_text())


@pytest.fixture(autouse=True)
def quiet_after_each_test():
    """A verb that a test cut off leaves its log handlers to nobody."""
    yield
    log.silence()


def brain(shape: tuple[int, int, int] = (20, 24, 18), seed: int = 0) -> np.ndarray:
    """An ellipsoid of smooth tissue in whole numbers on a background of zero."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    tissue = 500 + 120 * texture / texture.std()
    return np.where((grid**2).sum(0) < 0.7, np.clip(tissue, 1, None).round(), 0).astype(np.float32)


def ball(shape: tuple[int, ...], centre: tuple[int, ...], radius: float) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    return ((index - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0) <= radius**2


def write_case(folder: Path, case_id: str = "BraTS-GLI-00001-000", *, seed: int = 0) -> Path:
    """A complete challenge case of 20×24×18 voxels; returns its folder."""
    image = brain(seed=seed)
    tumour = ball(image.shape, (7, 12, 9), 3) & (image > 0)
    seg = tumour * 2 + ball(image.shape, (7, 12, 9), 2) - 2 * ball(image.shape, (7, 12, 9), 1)
    unhealthy = ball(image.shape, (7, 12, 9), 4)
    healthy = ball(image.shape, (14, 12, 9), 2.5) & (image > 0)
    where = folder / case_id

    def save(data: np.ndarray, role: str) -> None:
        volume = Volume(data=data[None], affine=LPS)
        volume.save(where / f"{case_id}-{role}.nii.gz")

    for gain, role in ((1.0, "t1n"), (1.2, "t1c"), (0.8, "t2w"), (0.6, "t2f")):
        save((image * gain).round().astype(np.int16), role)
    save(seg.astype(np.uint8), "seg")
    mask = healthy | unhealthy
    for data, role in ((mask, "mask"), (healthy, "mask-healthy"), (unhealthy, "mask-unhealthy")):
        save(data, role)
    save(np.where(mask, 0, image).astype(np.int16), "t1n-voided")
    return where


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of four made-up patients, to be read only."""
    root = tmp_path_factory.mktemp("phantoms")
    write_cohort(root, cases=4, workers=1, progress=False)
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything but hidden files; paths of the split are relative to a folder above."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name[0] != "."):
        content = path.read_bytes()
        if path.name == "split.json":
            content = content.replace(f"/{folder.name}/".encode(), b"/OUT/")
        files[str(path.relative_to(folder))] = content
    return files


@pytest.fixture
def make_case(tmp_path: Path) -> Callable[..., Path]:
    return lambda *words, **options: write_case(tmp_path / "data", *words, **options)


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """A rotation matrix from three Euler angles."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = [a for a in range(3) if a != axis]
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def onion(radii: tuple[float, float, float] = (9, 6, 4), edge: int = 24) -> np.ndarray:
    """Labels of oedema around a rim around necrosis."""
    labels = np.zeros((edge,) * 3, np.uint8)
    for radius, label in zip(radii, (ED, ET, NCR), strict=True):
        labels[ball(labels.shape, (edge // 2,) * 3, radius)] = label
    return labels


def obeys_rule(mask: np.ndarray, where: Site) -> bool:
    """Whether a mask obeys the challenge's rule: mostly in the brain, 5 mm from the tumour."""
    return (mask & where.brain).sum() >= 0.75 * mask.sum() and where.distance_mm[mask].min() >= 5
