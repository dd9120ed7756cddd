"""What the data creator writes obeys the rule, is the same however it is run, and leaks nothing.

The rule is recomputed from the written files with scipy alone.
"""

import itertools
import json
import multiprocessing
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from label_gan.placing.lesion_pool import ShapeSource, lesions_of
from label_gan.placing.location_prior import heat_map, weights
from label_gan.placing.place_lesions import Plan, make, scene_of
from label_gan.rotate import turned
from label_gan.shape import Shape
from synth.cli import main
from synth.data.case import discover
from synth.data.split import Split, folds, patient_marks, read_split, write_split
from synth.phantom.cohort import write_cohort
from tests.conftest import ball


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    write_cohort(root, cases=4, workers=1, progress=False)
    return root


def masks(data: Path, out: Path, *more: str) -> int:
    words = ["masks", str(data), "-o", str(out), "--only-real", "--workers", "1"]
    return main([*words, *more])


def files(folder: Path) -> dict[str, bytes]:
    """Everything but hidden files; paths of the split are relative to a folder above."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name[0] != "."):
        content = path.read_bytes()
        if path.name == "split.json":
            content = content.replace(f"/{folder.name}/".encode(), b"/OUT/")
        found[str(path.relative_to(folder))] = content
    return found


def read(folder: Path, role: str) -> np.ndarray:
    return np.asanyarray(nib.load(folder / f"{folder.name}-{role}.nii.gz").dataobj)


def assert_obeys_the_rule(made: Path, data: Path) -> None:
    """Recompute everything from the files of a made case and of its source."""
    real = data / made.name.rsplit("-", 1)[0]
    t1n, voided, mask, healthy, unhealthy = (
        read(made, role) for role in ("t1n", "t1n-voided", "mask", "mask-healthy", "mask-unhealthy")
    )
    spacing = nib.load(made / f"{made.name}-mask.nii.gz").header.get_zooms()
    source = nib.load(real / f"{real.name}-t1n.nii.gz")
    assert np.array_equal(t1n, np.asanyarray(source.dataobj))
    assert np.allclose(nib.load(made / f"{made.name}-mask.nii.gz").affine, source.affine)
    assert np.array_equal(unhealthy, read(real, "mask-unhealthy"))
    assert np.array_equal(mask, healthy | unhealthy)
    assert np.array_equal(voided, np.where(mask, 0, t1n)), "the old tumour is voided, too"
    brain = ndimage.binary_fill_holes(t1n != 0)
    assert healthy.any()
    assert not healthy[~brain].any()
    tumour = read(real, "seg") > 0
    distance = ndimage.distance_transform_edt(unhealthy == 0, sampling=spacing)
    assert distance[healthy > 0].min() >= 5
    assert not (healthy & tumour).any()
    # What was cut off at the brain's surface is in the record only.
    record = json.loads((made.parent / "records" / f"{made.name}.json").read_text())
    voxel_ml = float(np.prod(spacing)) / 1000
    assert all(part["in_brain"] >= 0.75 for part in record["components"])
    total = sum(part["volume_ml"] for part in record["components"])
    assert total == pytest.approx(healthy.sum() * voxel_ml, abs=0.002 * len(record["components"]))
    nearest = min(part["distance_mm"] for part in record["components"])
    # The record measures before the mask is cut to the brain, so it may be nearer.
    assert nearest - 0.01 <= distance[healthy > 0].min()


def test_every_made_case_obeys_the_rule(cohort: Path, tmp_path: Path) -> None:
    assert masks(cohort, tmp_path / "made", "--per-case", "3") == 0
    folders = sorted((tmp_path / "made").glob("*-healthy*"))
    assert len(folders) == 12
    for folder in folders:
        assert_obeys_the_rule(folder, cohort)
    case = discover(tmp_path / "made")[0]
    assert (case.origin, case.patient) == ("BraTS-GLI-00001-000", "BraTS-GLI-00001")
    assert set(case.files) == {"t1n", "voided", "mask", "healthy", "unhealthy"}


@pytest.mark.slow
def test_fifty_cases_times_five_obey_the_rule(tmp_path: Path) -> None:
    write_cohort(tmp_path / "data", cases=50, workers=2, progress=False)
    assert masks(tmp_path / "data", tmp_path / "made", "--per-case", "5") == 0
    folders = sorted((tmp_path / "made").glob("*-healthy*"))
    records = [json.loads(p.read_text()) for p in (tmp_path / "made" / "records").iterdir()]
    assert len(records) == 250
    assert sum(record["gave_up"] is not None for record in records) < 2.5
    for folder in folders:
        assert_obeys_the_rule(folder, tmp_path / "data")
    wanted = np.bincount([record["wanted"] for record in records], minlength=4)[1:] / 250
    # three binomial deviations of 250 draws at most
    assert np.abs(wanted - [0.45, 0.45, 0.1]).max() < 3 * (0.25 / 250) ** 0.5


def test_files_depend_on_seed_and_case_alone(cohort: Path, tmp_path: Path) -> None:
    more = ["--per-case", "2"]
    assert masks(cohort, tmp_path / "whole", *more) == 0
    whole = files(tmp_path / "whole")
    assert len([name for name in whole if name.endswith("-mask.nii.gz")]) == 8
    for part in (["--begin", "2"], ["--end", "1"], ["--shard", "0/2"], ["--shard", "1/2"]):
        assert masks(cohort, tmp_path / "parts", *more, *part) == 0
    assert files(tmp_path / "parts") == whole
    assert masks(cohort, tmp_path / "two", *more, "--workers", "2") == 0
    assert files(tmp_path / "two") == whole
    # Fewer first: the indices that follow do not depend on it.
    assert masks(cohort, tmp_path / "fewer", "--per-case", "1") == 0
    assert masks(cohort, tmp_path / "fewer", *more) == 0
    assert files(tmp_path / "fewer") == whole
    assert masks(cohort, tmp_path / "other", *more, "--seed", "1") == 0
    other = files(tmp_path / "other")
    holes = [name for name in whole if name.endswith("-mask-healthy.nii.gz")]
    assert all(other[name] != whole[name] for name in holes)
    assert len({whole[name] for name in holes}) == len(holes)


def test_other_arguments_are_not_mixed_in(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert masks(cohort, tmp_path / "made", "--per-case", "1") == 0
    before = files(tmp_path / "made")
    assert masks(cohort, tmp_path / "made", "--per-case", "1", "--seed", "3") == 2
    assert "was made with seed = 0, not 3 → " in capsys.readouterr().err
    assert files(tmp_path / "made") == before
    assert masks(cohort, tmp_path / "made", "--per-case", "1", "--seed", "3", "--force") == 0
    assert files(tmp_path / "made") != before


def test_a_killed_run_goes_on(cohort: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    assert masks(cohort, tmp_path / "quiet", "--per-case", "3") == 0
    seconds = time.monotonic() - started
    quiet, out = files(tmp_path / "quiet"), tmp_path / "killed"
    fork, rng = multiprocessing.get_context("fork"), np.random.default_rng(0)
    killed = 0
    for _ in range(4):
        if len(list(out.glob("records/*.json"))) == 12:
            shutil.rmtree(out)  # start over: the next kill must find work to do
        process = fork.Process(target=masks, args=(cohort, out, "--per-case", "3"))
        process.start()
        process.join(rng.uniform(0.1, 0.9) * seconds)
        process.kill()
        process.join()
        killed += process.exitcode == -9
        for folder in out.glob("[!.]*-healthy*"):
            assert len(list(folder.iterdir())) == 5, "a case is there whole or not at all"
    assert killed
    assert masks(cohort, out, "--per-case", "3") == 0
    assert files(out) == quiet


def test_nothing_of_a_held_out_case_is_trained_on(cohort: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(cohort, data)
    entries = folds(discover(data)[:3], 3)
    dealt = Split(training=tuple(entries), testing=tuple(folds(discover(data)[3:], 1)))
    split = write_split(data / "folds.json", dealt, data)
    assert masks(data, data / "made", "--split", str(split), "--per-case", "2") == 0
    made = read_split(data / "made" / "split.json", data)
    assert len(made.training) == 3 + 6
    assert made.testing[0].case.id == "BraTS-GLI-00004-000"
    assert not list((data / "made").glob("BraTS-GLI-00004*")), "test cases make none"
    by_fold = {e.case.id: e.fold for e in entries}
    for held_out in range(3):
        train, judged = made.fold(held_out)
        assert [c.is_made for c in judged] == [False]
        assert len([c for c in train if c.is_made]) == 4
        for case in (c for c in train if c.is_made):
            path = data / "made" / "records" / f"{case.id}.json"
            record = json.loads(path.read_text())
            donors = {part["shape"].split()[0] for part in record["components"]}
            assert {by_fold[d] for d in donors} == {by_fold[case.origin]} != {held_out}
            assert case.patient not in {c.patient for c in judged}
    # What lies below the data because it was made from it is not made from again.
    assert masks(data, data / "again", "--per-case", "1") == 0
    assert len(list((data / "again").glob("*-healthy*"))) == 4


@pytest.mark.parametrize("prior", [False, True])
def test_the_record_says_who_is_behind_a_tumour(cohort: Path, tmp_path: Path, prior: bool) -> None:
    words = ["--kind", "tumour", "--per-case", "3", *["--prior"] * prior]
    assert masks(cohort, tmp_path / "made", *words) == 0
    records = [json.loads(p.read_text()) for p in (tmp_path / "made" / "records").iterdir()]
    found = [record for record in records if not record["gave_up"]]
    assert len(found) > 6
    for record in found:
        given = {part["shape"].split()[0] for part in record["components"]}
        assert record["donors"] == sorted(given)
        # The prior is made of everybody's tumours; without it and without a model, no more are met.
        assert record["patients"] == (patient_marks(discover(cohort)) if prior else [])
        assert record["unmarked"] == []
    assert any(record["donors"] != [record["source"]] for record in found)


def test_tumours_come_with_labels_in_the_cases_scheme(cohort: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number, folder in enumerate(sorted(cohort.glob("BraTS*"))[:2]):
        name = f"BraTS2021_0000{number}"
        for role, old in (("t1", "t1n"), ("seg", "seg")):
            image = nib.load(folder / f"{folder.name}-{old}.nii.gz")
            values = np.asanyarray(image.dataobj)
            values = np.where(values == 3, 4, values) if role == "seg" else values
            (data / name).mkdir(parents=True, exist_ok=True)
            path = data / name / f"{name}_{role}.nii.gz"
            nib.save(nib.Nifti1Image(values, image.affine), path)
    assert masks(data, tmp_path / "made", "--kind", "tumour", "--per-case", "4") == 0
    folders = sorted((tmp_path / "made").glob("*-tumour*"))
    assert len(folders) == 8
    seen = set()
    for folder in folders:
        real = data / folder.name.rsplit("-", 1)[0]
        seg, old = read(folder, "seg"), np.asanyarray(nib.load(
            real / f"{real.name}_seg.nii.gz").dataobj)  # fmt: skip
        seen |= set(np.unique(seg).tolist())
        assert not (seg[old > 0]).any(), "the old tumour is gone, and the new one lies elsewhere"
        brain = read(folder, "brain")
        assert seg.any()
        assert not seg[brain == 0].any()
        spacing = nib.load(folder / f"{folder.name}-seg.nii.gz").header.get_zooms()
        kept = ndimage.distance_transform_edt(old == 0, sampling=spacing)
        assert kept[seg > 0].min() >= 5
    assert seen == {0, 1, 2, 4}
    assert {c.scheme for c in discover(tmp_path / "made")} == {"brats2021"}
    assert not (tmp_path / "made" / "split.json").exists(), "label maps alone train nothing"


def test_lesions_are_components_with_their_labels(cohort: Path) -> None:
    for case in discover(cohort):
        labels = case.load("seg").data[0]
        shapes, problem = lesions_of(case, holes=False)
        assert not problem
        assert sum((s.labels > 0).sum() for s in shapes) <= (labels > 0).sum()
        largest = max(shapes, key=Shape.volume_ml)
        numbers, _ = ndimage.label(labels > 0, np.ones((3, 3, 3)))
        sizes = np.bincount(numbers.ravel())[1:]
        own = labels[numbers == 1 + sizes.argmax()]
        assert np.array_equal(np.bincount(largest.labels.ravel())[1:], np.bincount(own)[1:])
        with_holes, _ = lesions_of(case, holes=True)
        assert len(with_holes) > len(shapes)


def test_turning_keeps_volumes_nesting_and_the_rim() -> None:
    centre = (18, 18, 18)
    labels = ball((37, 37, 37), centre, 16) * np.uint8(2)
    labels[ball((37, 37, 37), centre, 10)] = 3
    labels[ball((37, 37, 37), centre, 8.5)] = 1  # a rim of one or two voxels
    shape = Shape(labels=labels, spacing_mm=1.0)
    for seed, spacing in itertools.product(range(4), [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0)]):
        made = turned(shape, spacing, np.random.default_rng(seed))
        voxel = float(np.prod(spacing))
        for number in (1, 2, 3):
            # Voxels of the surface decide: a shell of radius r turns by up to 1.5 / r of it.
            expected = (labels == number).sum()
            assert (made == number).sum() * voxel == pytest.approx(expected, rel=0.12), number
        core = (made == 1) | (made == 3)
        if spacing[2] == 1:  # slices of 2 mm are thicker than the rim
            assert np.array_equal(ndimage.binary_fill_holes(made == 3), core), "the rim has no gap"
        extent = np.array(made.shape) * spacing
        assert np.abs(extent - 33).max() <= 3


def test_mirrors_and_turns_are_drawn() -> None:
    labels = np.zeros((9, 7, 5), np.uint8)
    labels[1:8, 1:3, 1:4], labels[1:3, 1:6, 1:3] = 2, 2  # chiral
    shape = Shape(labels=labels, spacing_mm=1.0)
    made = {turned(shape, (1, 1, 1), np.random.default_rng(s)).tobytes() for s in range(20)}
    assert len(made) == 20


def test_sizes_are_kept_to(cohort: Path) -> None:
    shapes = [s.volume_ml() for c in discover(cohort) for s in lesions_of(c, holes=True)[0]]
    low, high = np.percentile(shapes, [20, 60])
    source = ShapeSource(donors=discover(cohort), holes=True, volume_ml=(low, high))
    rng = np.random.default_rng(0)
    drawn = {source.draw(rng, 2.8)[0].volume_ml() for _ in range(60)}
    assert drawn == {v for v in shapes if low <= v <= high}


def test_a_thin_brain_gives_up_with_the_reason(cohort: Path) -> None:
    case = discover(cohort)[0]
    source = ShapeSource(donors=[case], holes=True)
    scene = scene_of(case, "healthy", None)
    scene.site.state[:] = 2
    made = make(scene, 0, source, Plan())
    assert not made.volumes
    assert made.record["gave_up"].startswith("no place for component 1 of ")
    assert "20 shapes of" in made.record["gave_up"]


def test_the_prior_is_warm_where_the_tumours_are(cohort: Path) -> None:
    cases = discover(cohort)
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
