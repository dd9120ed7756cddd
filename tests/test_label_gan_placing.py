"""New cases obey the rule, are the same however they are made, and leak nothing.

The rule is recomputed from the written files with scipy alone; the mass effect has a closed form.
"""

import json
import multiprocessing
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from label_gan.placing.lesion_pool import LesionPool, lesions_of
from label_gan.placing.location_prior import heat_map, weights
from label_gan.placing.place_lesions import MaskOptions, make_case, measure
from label_gan.shape import Shape
from synth.cli import main
from synth.data.case import discover
from synth.data.split import Split, patient_marks, read_split, split_cases, write_split
from synth.phantom.cohort import write_cohort
from synth.phantom.mass_effect import PUSHED_SHARE, YIELD_MM, displace, trace_tissue
from tests.conftest import ball, files_of


def masks(data: Path, out: Path, *more: str) -> int:
    words = ["masks", str(data), "-o", str(out), "--only-real", "--workers", "1"]
    return main([*words, *more])


def read(folder: Path, role: str) -> np.ndarray:
    return np.asanyarray(nib.load(folder / f"{folder.name}-{role}.nii.gz").dataobj)


def records_of(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((out / "records").iterdir())]


def assert_obeys_the_rule(made: Path, data: Path) -> None:
    """Recompute everything from the files of a made case and of its source."""
    real = data / made.name.rsplit("-", 1)[0]
    t1n, voided, mask, healthy, unhealthy = (
        read(made, role) for role in ("t1n", "t1n-voided", "mask", "mask-healthy", "mask-unhealthy")
    )
    image = nib.load(made / f"{made.name}-mask.nii.gz")
    source = nib.load(real / f"{real.name}-t1n.nii.gz")
    spacing = image.header.get_zooms()
    assert np.array_equal(t1n, np.asanyarray(source.dataobj))
    assert np.allclose(image.affine, source.affine)
    assert np.array_equal(unhealthy, read(real, "mask-unhealthy"))
    assert np.array_equal(mask, healthy | unhealthy)
    assert np.array_equal(voided, np.where(mask, 0, t1n)), "the old tumour is voided, too"
    assert healthy.any()
    assert not healthy[~ndimage.binary_fill_holes(t1n != 0)].any()
    distance = ndimage.distance_transform_edt(unhealthy == 0, sampling=spacing)
    nearest = distance[healthy > 0].min()
    assert nearest >= 5
    assert not (healthy & (read(real, "seg") > 0)).any()
    # What was cut off at the brain's surface is in the record only.
    parts = json.loads((made.parent / "records" / f"{made.name}.json").read_text())["components"]
    assert all(part["in_brain"] >= 0.75 for part in parts)
    total = healthy.sum() * float(np.prod(spacing)) / 1000
    assert sum(part["volume_ml"] for part in parts) == pytest.approx(total, abs=0.002 * len(parts))
    assert min(part["distance_mm"] for part in parts) - 0.01 <= nearest


def test_every_made_case_obeys_the_rule(phantoms: Path, tmp_path: Path) -> None:
    assert masks(phantoms, tmp_path / "made", "--per-case", "3") == 0
    made = sorted((tmp_path / "made").glob("*-healthy*"))
    assert len(made) == 12
    for folder in made:
        assert_obeys_the_rule(folder, phantoms)
    case = discover(tmp_path / "made")[0]
    assert (case.origin, case.patient) == ("BraTS-GLI-00001-000", "BraTS-GLI-00001")
    assert set(case.files) == {"t1n", "voided", "mask", "healthy", "unhealthy"}


@pytest.mark.slow
def test_fifty_cases_times_five_obey_the_rule(tmp_path: Path) -> None:
    write_cohort(tmp_path / "data", cases=50, workers=2, progress=False)
    assert masks(tmp_path / "data", tmp_path / "made", "--per-case", "5") == 0
    records = records_of(tmp_path / "made")
    assert len(records) == 250
    assert sum(record["gave_up"] is not None for record in records) < 2.5
    for folder in sorted((tmp_path / "made").glob("*-healthy*")):
        assert_obeys_the_rule(folder, tmp_path / "data")
    wanted = np.bincount([record["wanted"] for record in records], minlength=4)[1:] / 250
    # three binomial deviations of 250 draws at most
    assert np.abs(wanted - [0.45, 0.45, 0.1]).max() < 3 * (0.25 / 250) ** 0.5


def test_files_depend_on_seed_and_case_alone(phantoms: Path, tmp_path: Path) -> None:
    two = ["--per-case", "2"]
    runs = {
        "whole": [two],
        "parts": [[*two, "--begin", "2"], [*two, "--shard", "0/2"], [*two, "--shard", "1/2"]],
        "workers": [[*two, "--workers", "2"]],
        "fewer": [["--per-case", "1"], two],  # the indices that follow do not depend on it
        "other": [[*two, "--seed", "1"]],
    }
    for name, calls in runs.items():
        for more in calls:
            assert masks(phantoms, tmp_path / name, *more) == 0
    found = {name: files_of(tmp_path / name) for name in runs}
    other = found.pop("other")
    assert all(files == found["whole"] for files in found.values())
    holes = {k: v for k, v in found["whole"].items() if k.endswith("-mask-healthy.nii.gz")}
    assert len(holes) == len(set(holes.values())) == 8
    assert all(other[name] != hole for name, hole in holes.items())


def test_other_arguments_are_not_mixed_in(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("--per-case", "1", "--end", "2")
    assert masks(phantoms, tmp_path / "made", *one) == 0
    before = files_of(tmp_path / "made")
    assert masks(phantoms, tmp_path / "made", *one, "--seed", "3") == 2
    assert "was made with seed = 0, not 3 → " in capsys.readouterr().err
    assert files_of(tmp_path / "made") == before
    assert masks(phantoms, tmp_path / "made", *one, "--seed", "3", "--force") == 0
    assert files_of(tmp_path / "made") != before


def test_a_killed_run_goes_on(phantoms: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    assert masks(phantoms, tmp_path / "quiet", "--per-case", "3") == 0
    seconds, out = time.monotonic() - started, tmp_path / "killed"
    fork, rng = multiprocessing.get_context("fork"), np.random.default_rng(0)
    killed = 0
    for _ in range(4):
        if len(list(out.glob("records/*.json"))) == 12:
            shutil.rmtree(out)  # start over: the next kill must find work to do
        process = fork.Process(target=masks, args=(phantoms, out, "--per-case", "3"))
        process.start()
        process.join(rng.uniform(0.1, 0.9) * seconds)
        process.kill()
        process.join()
        killed += process.exitcode == -9
        for folder in out.glob("[!.]*-healthy*"):
            assert len(list(folder.iterdir())) == 5, "a case is there whole or not at all"
    assert killed
    assert masks(phantoms, out, "--per-case", "3") == 0
    assert files_of(out) == files_of(tmp_path / "quiet")


def test_nothing_of_a_held_out_case_is_trained_on(phantoms: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    entries = split_cases(discover(data)[:3], count=3).training
    dealt = Split(training=entries, testing=split_cases(discover(data)[3:], count=1).training)
    split = write_split(data / "folds.json", dealt, data)
    assert masks(data, data / "made", "--split", str(split), "--per-case", "2") == 0
    made = read_split(data / "made" / "split.json", data)
    assert len(made.training) == 3 + 6
    assert [e.case.id for e in made.testing] == ["BraTS-GLI-00004-000"]
    assert not list((data / "made").glob("BraTS-GLI-00004*")), "test cases make none"
    fold_of = {e.case.id: e.fold for e in entries}
    for held_out in range(3):
        train, judged = made.fold(held_out)
        assert [c.is_made for c in judged] == [False]
        new = [c for c in train if c.is_made]
        assert len(new) == 4
        for case in new:
            record = json.loads((data / "made" / "records" / f"{case.id}.json").read_text())
            donors = {part["shape"].split()[0] for part in record["components"]}
            assert {fold_of[d] for d in donors} == {fold_of[case.origin]} != {held_out}
            assert case.patient not in {c.patient for c in judged}
    # What lies below the data because it was made from it is not made from again.
    assert masks(data, data / "again", "--per-case", "1") == 0
    assert len(list((data / "again").glob("*-healthy*"))) == 4


@pytest.mark.parametrize("prior", [False, True])
def test_the_record_says_who_is_behind_a_tumour(
    phantoms: Path, tmp_path: Path, prior: bool
) -> None:
    words = ["--kind", "tumour", "--per-case", "3", *["--prior"] * prior]
    assert masks(phantoms, tmp_path / "made", *words) == 0
    found = [record for record in records_of(tmp_path / "made") if not record["gave_up"]]
    assert len(found) > 6
    for record in found:
        assert record["donors"] == sorted({p["shape"].split()[0] for p in record["components"]})
        # The prior is made of everybody's tumours; without it and without a model, no more are met.
        assert record["patients"] == (patient_marks(discover(phantoms)) if prior else [])
        assert record["unmarked"] == []
    assert any(record["donors"] != [record["source"]] for record in found)


def test_tumours_come_with_labels_in_the_cases_scheme(phantoms: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number, folder in enumerate(sorted(phantoms.glob("BraTS*"))[:2]):
        name = f"BraTS2021_0000{number}"
        (data / name).mkdir(parents=True)
        for role, old in (("t1", "t1n"), ("seg", "seg")):
            image = nib.load(folder / f"{folder.name}-{old}.nii.gz")
            values = np.asanyarray(image.dataobj)
            values = np.where(values == 3, 4, values) if role == "seg" else values
            new = nib.Nifti1Image(values, image.affine)
            nib.save(new, data / name / f"{name}_{role}.nii.gz")
    assert masks(data, tmp_path / "made", "--kind", "tumour", "--per-case", "4") == 0
    folders = sorted((tmp_path / "made").glob("*-tumour*"))
    assert len(folders) == 8
    seen = set()
    for folder in folders:
        name = folder.name.rsplit("-", 1)[0]
        old = np.asanyarray(nib.load(data / name / f"{name}_seg.nii.gz").dataobj)
        seg = read(folder, "seg")
        seen |= set(np.unique(seg).tolist())
        assert seg.any()
        assert not seg[read(folder, "brain") == 0].any()
        spacing = nib.load(folder / f"{folder.name}-seg.nii.gz").header.get_zooms()
        kept = ndimage.distance_transform_edt(old == 0, sampling=spacing)
        assert kept[seg > 0].min() >= 5, "the old tumour is gone, and the new one lies elsewhere"
    assert seen == {0, 1, 2, 4}
    assert {c.scheme for c in discover(tmp_path / "made")} == {"brats2021"}
    assert not (tmp_path / "made" / "split.json").exists(), "label maps alone train nothing"


def test_lesions_are_components_with_their_labels_and_of_the_size_asked_for(
    phantoms: Path,
) -> None:
    cases = discover(phantoms)
    for case in cases:
        labels = case.load("seg").data[0]
        shapes, problem = lesions_of(case, holes=False)
        assert not problem
        largest = max(shapes, key=Shape.volume_ml)
        numbers, _ = ndimage.label(labels > 0, np.ones((3, 3, 3)))
        own = labels[numbers == 1 + np.bincount(numbers.ravel())[1:].argmax()]
        assert np.array_equal(np.bincount(largest.labels.ravel())[1:], np.bincount(own)[1:])
        assert len(lesions_of(case, holes=True)[0]) > len(shapes)
    sizes = [s.volume_ml() for c in cases for s in lesions_of(c, holes=True)[0]]
    low, high = np.percentile(sizes, [20, 60])
    pool = LesionPool(donors=cases, holes=True, volume_ml=(low, high))
    rng = np.random.default_rng(0)
    drawn = {pool.draw(rng, 2.8)[0].volume_ml() for _ in range(60)}
    assert drawn == {v for v in sizes if low <= v <= high}


def test_a_brain_without_room_gives_up_with_the_reason(phantoms: Path) -> None:
    case = discover(phantoms)[0]
    brain = measure(case, "healthy", None)
    brain.site.state[:] = 2
    made = make_case(brain, 0, LesionPool(donors=[case], holes=True), MaskOptions())
    assert not made.volumes
    assert made.record["gave_up"].startswith("no place for component 1 of ")
    assert "20 shapes of" in made.record["gave_up"]


def test_the_prior_is_warm_where_the_tumours_are(phantoms: Path) -> None:
    cases = discover(phantoms)
    heat = heat_map(cases)
    assert heat.mean() == pytest.approx(1)
    assert np.allclose(heat, heat[::-1]), "both sides are alike"
    assert heat.min() >= 0.05 * 0.99
    inside, outside = [], []
    for case in cases:
        brain = case.load("t1n").data[0] > 0
        warm = weights(heat, brain, case.load("t1n").affine)
        assert not warm[~brain].any()
        tumour = case.load("seg").data[0] > 0
        inside.append(warm[tumour].mean())
        outside.append(warm[brain & ~tumour].mean())
    assert np.mean(inside) > 1.5 * np.mean(outside)


# --- Mass effect --------------------------------------------------------------------------------

SHAPE, CENTRE, RADIUS = (81, 81, 81), (40, 40, 40), 12
BRAIN, TUMOUR = ball(SHAPE, CENTRE, 40), ball(SHAPE, CENTRE, RADIUS)
OFFSETS = np.indices(SHAPE) - np.reshape(CENTRE, (3, 1, 1, 1))
RADII = np.linalg.norm(OFFSETS, axis=0)


def test_room_is_made_for_a_share_of_the_tumour_and_tissue_goes_outwards() -> None:
    where = trace_tissue(TUMOUR, BRAIN, (1, 1, 1))
    was = np.linalg.norm(where - np.reshape(CENTRE, (3, 1, 1, 1)), axis=0)
    deep = ndimage.distance_transform_edt(BRAIN) > YIELD_MM + 1
    assert (was[deep] <= RADII[deep] + 1e-4).all()
    # Tissue that was a point is spread over a ball of nearly the share of the tumour's volume: the
    # exponential has fallen to 0.96 at its edge, and a voxel of its surface is 8 % of it.
    assert (was < 0.5).sum() == pytest.approx(PUSHED_SHARE * TUMOUR.sum(), rel=0.15)
    assert (np.diff(was[40, 40, 40:]) > -1e-4).all(), "one to one: no tissue folds over"


def test_tissue_far_away_keeps_its_volume_and_the_outline_its_place() -> None:
    where = trace_tissue(TUMOUR, BRAIN, (1, 1, 1))
    still = (where == np.indices(SHAPE)).all(0)
    assert still[~BRAIN].all(), "the skull does not yield"
    edge = BRAIN & ~ndimage.binary_erosion(BRAIN)
    assert np.linalg.norm(where - np.indices(SHAPE), axis=0)[edge].max() < 0.1
    # The Jacobian is how much tissue a voxel holds: over the brain it must average one.
    gradient = np.stack([np.stack(np.gradient(component)) for component in where.astype(float)])
    held = np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)))
    assert held[BRAIN].mean() == pytest.approx(1, abs=2e-3)
    # No tissue is more than halved or doubled outside of the room that was made.
    outside = held[BRAIN & (RADII > 0.8 * RADIUS)]
    assert 0.5 < outside.min() <= outside.max() < 2


def test_spacing_is_in_millimetres() -> None:
    coarse = trace_tissue(TUMOUR[::2], BRAIN[::2], (2, 1, 1))
    fine = trace_tissue(TUMOUR, BRAIN, (1, 1, 1))[:, ::2]
    # The two see the tumour's size a little differently.
    assert np.abs(coarse * np.reshape((2, 1, 1), (3, 1, 1, 1)) - fine).max() < 0.1


def test_intensities_go_along_and_the_rest_stays_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    image = (rng.normal(500, 50, (1, *SHAPE)) * BRAIN).astype(np.float32)
    where = trace_tissue(TUMOUR, BRAIN, (1, 1, 1))
    assert np.array_equal(displace(image, where)[0][~BRAIN], image[0][~BRAIN])
    marked = np.zeros_like(image)
    marked[0, 40, 40, 52] = 1  # at 12 mm: r_was³ = r³ − κ³ exp(−(r / s)²)
    r = ndimage.center_of_mass(displace(marked, where)[0])[2] - 40
    ball_radius = (3 * TUMOUR.sum() / (4 * np.pi)) ** (1 / 3)
    was = np.cbrt(r**3 - PUSHED_SHARE * ball_radius**3 * np.exp(-((r / (2.6 * ball_radius)) ** 2)))
    assert was == pytest.approx(12, abs=0.1)  # a voxel's centre of mass is known to a tenth


def test_the_verb_writes_displaced_scans_beside_the_labels(phantoms: Path, tmp_path: Path) -> None:
    words = ["--kind", "tumour", "--per-case", "1", "--mass-effect", "--end", "1"]
    assert masks(phantoms, tmp_path / "made", *words) == 0
    (case,) = discover(tmp_path / "made")
    assert set(case.files) == {"seg"}, "no displaced scan is taken for one of this tumour"
    folder, real = case.path("seg").parent, phantoms / "BraTS-GLI-00001-000"
    seg = case.load("seg")
    distance = ndimage.distance_transform_edt(seg.data[0] == 0, sampling=seg.spacing_mm)
    for name in ("t1n", "t1c", "t2w", "t2f"):
        moved, before = read(folder, f"{name}-displaced"), read(real, name)
        change = np.abs(moved.astype(float) - before)
        far, tissue = distance > 40, before > 0
        assert change[(distance < 10) & tissue].mean() > 10 * change[far & tissue].mean()
        assert (change[far] == 0).mean() > 0.9
        assert ((moved > 0) == tissue).mean() > 0.995
