"""Mass effect: a closed form, nothing lost, nothing moved where nothing can move."""

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from label_gan.placing.mass_effect import PUSHED_SHARE, YIELD_MM, came_from, displaced
from synth.cli import main
from synth.data.case import discover
from synth.data.volume import Volume
from synth.phantom.cohort import write_cohort
from tests.conftest import ball

SHAPE, CENTRE, RADIUS = (81, 81, 81), (40, 40, 40), 12
BRAIN = ball(SHAPE, CENTRE, 40)
TUMOUR = ball(SHAPE, CENTRE, RADIUS)
RADII = np.linalg.norm(np.indices(SHAPE) - np.reshape(CENTRE, (3, 1, 1, 1)), axis=0)


def test_room_is_made_for_a_share_of_the_tumour_and_tissue_goes_outwards() -> None:
    where = came_from(TUMOUR, BRAIN, (1, 1, 1))
    was = np.linalg.norm(where - np.reshape(CENTRE, (3, 1, 1, 1)), axis=0)
    deep = ndimage.distance_transform_edt(BRAIN) > YIELD_MM + 1
    assert (was[deep] <= RADII[deep] + 1e-4).all()
    # Tissue that was a point is spread over a ball of nearly the share of the tumour's volume: the
    # exponential has fallen to 0.96 at its edge, and a voxel of its surface is 8 % of it.
    assert (was < 0.5).sum() == pytest.approx(PUSHED_SHARE * TUMOUR.sum(), rel=0.15)
    line = was[40, 40, 40:]
    assert (np.diff(line) > -1e-4).all(), "one to one: no tissue folds over"


def test_tissue_far_away_keeps_its_volume_and_the_outline_its_place() -> None:
    where = came_from(TUMOUR, BRAIN, (1, 1, 1))
    still = (where == np.indices(SHAPE)).all(0)
    assert still[~BRAIN].all(), "the skull does not yield"
    edge = BRAIN & ~ndimage.binary_erosion(BRAIN)
    shift = np.linalg.norm(where - np.indices(SHAPE), axis=0)
    assert shift[edge].max() < 0.1
    # The Jacobian is how much tissue a voxel holds: over the brain it must average one.
    gradient = np.stack([np.stack(np.gradient(component)) for component in where.astype(float)])
    held = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)))
    assert held[BRAIN].mean() == pytest.approx(1, abs=2e-3)
    # No tissue is more than halved or doubled outside of the room that was made.
    outside = BRAIN & (RADII > 0.8 * RADIUS)
    assert held[outside].min() > 0.5
    assert held[outside].max() < 2


def test_spacing_is_in_millimetres() -> None:
    coarse = came_from(TUMOUR[::2], BRAIN[::2], (2, 1, 1))
    fine = came_from(TUMOUR, BRAIN, (1, 1, 1))
    # The two see the tumour's size a little differently.
    assert np.abs(coarse[0] * 2 - fine[0][::2]).max() < 0.1
    assert np.abs(coarse[1:] - fine[1:, ::2]).max() < 0.1


def test_intensities_go_along_and_the_rest_stays_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    image = (rng.normal(500, 50, (1, *SHAPE)) * BRAIN).astype(np.float32)
    where = came_from(TUMOUR, BRAIN, (1, 1, 1))
    moved = displaced(image, where)
    assert np.array_equal(moved[0][~BRAIN], image[0][~BRAIN])
    marked = np.zeros_like(image)
    marked[0, 40, 40, 52] = 1  # at 12 mm: r_was³ = r³ − κ³ exp(−(r / s)²)
    at = ndimage.center_of_mass(displaced(marked, where)[0])
    ball_radius = (3 * TUMOUR.sum() / (4 * np.pi)) ** (1 / 3)
    r = at[2] - 40
    was = np.cbrt(r**3 - PUSHED_SHARE * ball_radius**3 * np.exp(-((r / (2.6 * ball_radius)) ** 2)))
    assert was == pytest.approx(12, abs=0.1)  # a voxel's centre of mass is known to a tenth


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    write_cohort(root, cases=1, workers=1, progress=False)
    return root


def test_the_verb_writes_displaced_scans_beside_the_labels(cohort: Path, tmp_path: Path) -> None:
    words = ["masks", str(cohort), "-o", str(tmp_path / "made"), "--kind", "tumour", "--only-real"]
    assert main([*words, "--per-case", "1", "--mass-effect", "--end", "1", "--workers", "1"]) == 0
    (case,) = discover(tmp_path / "made")
    assert set(case.files) == {"seg"}, "no displaced scan is taken for one of this tumour"
    folder = case.path("seg").parent
    real = cohort / "BraTS-GLI-00001-000"
    tumour = case.load("seg").data[0] > 0
    for name in ("t1n", "t1c", "t2w", "t2f"):
        moved = Volume.load(folder / f"{folder.name}-{name}-displaced.nii.gz")
        before = Volume.load(real / f"{real.name}-{name}.nii.gz")
        assert np.allclose(moved.affine, before.affine)
        change = np.abs(moved.data - before.data)[0]
        distance = ndimage.distance_transform_edt(~tumour, sampling=moved.spacing_mm)
        far, tissue = distance > 40, before.data[0] > 0
        assert change[(distance < 10) & tissue].mean() > 10 * change[far & tissue].mean()
        assert (change[far] == 0).mean() > 0.9
        assert ((moved.data > 0) == (before.data > 0)).mean() > 0.995
