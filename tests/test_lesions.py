"""Lesion rules against a slow reading of them, the official evaluation at full size, its oddities.

`test_overlap.py` has the twelve built cases of both conventions on a small grid.
"""

import itertools
import json
import math
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from synth.evaluate.segmentation_scores import REGIONS, score_labels, summarise
from synth.metrics.overlap import WORST_HD95_MM, evaluate_regions, lesionwise_2023
from synth.metrics.surface import surface_distances

MM = (1.0, 1.0, 1.0)
SMALL = (26, 22, 20)
noisy_oracle = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@cache
def evaluator(name: str = "GoAT"):
    pytest.importorskip("brats_evaluation", reason="dev extra: BraTS-evaluation")
    from panoptica import Panoptica_Evaluator

    config = files("brats_evaluation").joinpath("configs", f"config_{name}.yaml")
    return Panoptica_Evaluator.load_from_config(str(config))


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    at = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return (at**2).sum(0) <= radius**2


def blobs(seed: int, shape: tuple[int, ...] = SMALL, share: float = 0.94) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.6)
    return field >= np.quantile(field, share)


def flooded(mask: np.ndarray, touching: list[tuple[int, ...]]) -> list[set[tuple[int, ...]]]:
    """Components, by walking from voxel to voxel."""
    left = set(map(tuple, np.argwhere(mask).tolist()))
    parts = []
    while left:
        front, part = [left.pop()], set()
        while front:
            voxel = front.pop()
            part.add(voxel)
            near = {tuple(a + b for a, b in zip(voxel, step, strict=True)) for step in touching}
            front += near & left
            left -= near
        parts.append(part)
    return parts


def slow_2023(
    pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], dilations: int, limit_mm3: float
) -> dict[str, float]:
    """The rules of 2023 as they are written, voxel by voxel."""
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if any(s)]
    eighteen = [s for s in steps if sum(map(abs, s)) < 3]

    def grown(voxels: set[tuple[int, ...]]) -> set[tuple[int, ...]]:
        for _ in range(dilations):
            voxels = voxels | {(x + i, y + j, z + k) for x, y, z in voxels for i, j, k in eighteen}
        return voxels

    def filled(voxels: set[tuple[int, ...]]) -> np.ndarray:
        mask = np.zeros(ref.shape, bool)
        mask[tuple(np.array(sorted(voxels)).T)] = bool(voxels)
        return mask

    found = flooded(pred, steps)
    truth = set(map(tuple, np.argwhere(ref).tolist()))
    margin = dilations + 1
    canvas = np.zeros([n + 2 * margin for n in ref.shape], bool)
    for voxel in grown(truth):
        canvas[tuple(v + margin for v in voxel)] = True
    dice, distances, used, counts = [], [], set(), {"tp": 0, "fn": 0}
    for part in flooded(canvas, steps):
        lesion = {tuple(v - margin for v in voxel) for voxel in part} & truth
        near = grown(lesion)
        own = [i for i, component in enumerate(found) if component & near]
        used.update(own)
        if len(lesion) * math.prod(spacing) <= limit_mm3:
            continue
        counts["tp" if own else "fn"] += 1
        counterpart = set().union(*(found[i] for i in own)) if own else set()
        dice.append(2 * len(lesion & counterpart) / (len(lesion) + len(counterpart)))
        far = math.inf
        if counterpart:
            pair = filled(counterpart), filled(lesion)
            far = surface_distances(*pair, spacing, "2023").hd95("2023")
        distances.append(min(far, 374.0))
    false = len(found) - len(used)
    total = len(dice) + false
    return counts | {
        "fp": false,
        "dice": sum(dice) / total if total else 1.0,
        "hd95": (sum(distances) + 374 * false) / total if total else 0.0,
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("spacing", "dilations", "limit"),
    [(MM, 3, 50), ((2.8, 2.8, 2.8), 1, 50), ((1.0, 0.5, 3.0), 1, 2)],
)
def test_2023_equals_its_rules_read_slowly(seed, spacing, dilations, limit) -> None:
    pred, ref = blobs(seed), blobs(seed + 100, share=0.97) | (blobs(seed) & blobs(seed + 50))
    table = lesionwise_2023(pred, ref, spacing, dilations=dilations, ignore_up_to_mm3=limit)
    slow = slow_2023(pred, ref, spacing, dilations, limit)
    ours = table.detection()
    assert {k: ours[k] for k in ("tp", "fp", "fn")} == {k: slow[k] for k in ("tp", "fp", "fn")}
    assert table.dice == pytest.approx(slow["dice"], abs=1e-12)  # a mean of few, summed otherwise
    assert table.hd95 == pytest.approx(slow["hd95"], rel=1e-12)


def test_what_is_ignored_is_a_volume_not_a_count_of_voxels() -> None:
    """The script multiplies by the voxel's volume; on its 1 mm grid nobody can tell."""
    ref = np.zeros(SMALL, bool)
    ref[3:6, 3:6, 3:6] = True  # 27 voxels
    nothing = np.zeros(SMALL, bool)
    assert lesionwise_2023(nothing, ref, MM).count("ignored") == 1
    assert lesionwise_2023(nothing, ref, (2.0, 1.0, 1.0)).count("missed") == 1  # 54 mm³
    fifty = np.zeros(SMALL, bool)
    fifty[:5, :5, :2] = True
    rounded = (1 + 1e-7,) * 3  # what an oblique affine gives
    assert lesionwise_2023(nothing, fifty, rounded).count("ignored") == 1


# --- full size -----------------------------------------------------------------------------------

FULL = (240, 240, 155)


def full(*balls: tuple[tuple[float, float, float], float]) -> np.ndarray:
    """Nested tumours: enhancing (3) in core (1) in oedema (2)."""
    labels = np.zeros(FULL, np.uint8)
    for label, more in ((2, 8), (1, 4), (3, 0)):
        for centre, radius in balls:
            box = tuple(slice(max(int(c - radius - 9), 0), int(c + radius + 10)) for c in centre)
            local = tuple(c - s.start for c, s in zip(centre, box, strict=True))
            inside = ball(labels[box].shape, local, radius + more)
            labels[box] = np.where(inside, label, labels[box])
    return labels


BIG, OTHER = ((90, 120, 80), 12), ((160, 110, 70), 9)
NEAR = ((90, 148, 80), 12)  # 3 voxels between the enhancing parts of BIG and NEAR
FULL_CASES = {
    "perfect": ([BIG], [BIG]),
    "shifted": ([((92, 120, 80), 12)], [BIG]),
    "empty both": ([], []),
    "prediction empty": ([], [BIG]),
    "reference empty": ([BIG], []),
    "one of two found": ([BIG], [BIG, OTHER]),
    "one false": ([BIG, OTHER], [BIG]),
    "small false": ([BIG, ((160, 60, 40), 1.5)], [BIG]),
    "small missed": ([BIG], [BIG, ((160, 60, 40), 1.5)]),
    "no overlap": ([OTHER], [BIG]),
    "two near ones": ([BIG, NEAR], [BIG, NEAR]),
    "bridged": ([BIG, NEAR, ((90, 134, 80), 4)], [BIG, NEAR]),
}
NAMES = {
    "dice": "global_bin_dsc", "hd95": "global_bin_hd95", "nsd_0.5mm": "global_bin_nsd",
    "lesion_dice": "sq_dsc", "lesion_hd95": "sq_hd95", "lesion_nsd_1mm": "sq_nsd",
    "tp": "tp", "fp": "fp", "fn": "fn", "f1": "rq", "precision": "prec", "recall": "rec",
}  # fmt: skip


def assert_official(rows, theirs) -> None:
    """Every number that the evaluation defines, in every region it has."""
    ours = {row.region.lower(): row.values for row in rows}
    for region, result in theirs.items():
        found = result.to_dict(True)
        for name, official in NAMES.items():
            expected = found.get(official, np.nan)
            if np.isnan(expected):
                assert np.isnan(ours[region][name]), (region, name)
                continue
            if "hd95" in name:
                expected = min(expected, WORST_HD95_MM["2025"])
            assert ours[region][name] == pytest.approx(expected, abs=1e-12), (region, name)


@noisy_oracle
@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_CASES)
def test_full_size_cases_equal_brats_evaluation(name: str) -> None:
    pred, ref = (full(*balls) for balls in FULL_CASES[name])
    rows = score_labels(pred, ref, MM, "2025", case="BraTS-GLI-00001-000")
    assert_official(rows, evaluator().evaluate(pred, ref))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dice", "far", "counts"),
    [
        ("perfect", 1, 0, (1, 0, 0)), ("empty both", 1, 0, (0, 0, 0)),
        ("prediction empty", 0, 374, (0, 0, 1)), ("one of two found", 0.5, 187, (1, 0, 1)),
        ("one false", 0.5, 187, (1, 1, 0)), ("small false", 0.5, 187, (1, 1, 0)),
        ("small missed", 1, 0, (1, 0, 0)), ("no overlap", 0, 374, (0, 1, 1)),
        ("two near ones", 1, 0, (1, 0, 0)),
    ],
)  # fmt: skip
def test_full_size_cases_have_the_recorded_values_of_2023(name, dice, far, counts) -> None:
    pred, ref = (full(*balls) for balls in FULL_CASES[name])
    rows = score_labels(pred, ref, MM, "2023", case="BraTS-GLI-00001-000")
    found = next(row.values for row in rows if row.region == "ET")
    assert found["lesion_dice"] == pytest.approx(dice, abs=1e-12)
    assert found["lesion_hd95"] == pytest.approx(far, abs=1e-12)
    assert (found["tp"], found["fp"], found["fn"]) == counts


@noisy_oracle
@pytest.mark.parametrize(
    ("scheme", "config", "renamed"),
    [("brats2024", "gli", {}), ("ped2024", "ped", {"netc": "net"})],  # label tables write NET
)
def test_regions_of_other_schemes_equal_brats_evaluation(scheme, config, renamed) -> None:
    rng = np.random.default_rng(5)
    ref = np.digitize(ndimage.gaussian_filter(rng.normal(size=SMALL), 1.5), [0.1, 0.2, 0.3, 0.35])
    pred = np.where(blobs(3, share=0.7), 0, ref)
    pred, ref = pred.astype(np.uint8), ref.astype(np.uint8)
    theirs = evaluator(config).evaluate(pred, ref)
    theirs = {renamed.get(region, region): result for region, result in theirs.items()}
    rows = score_labels(pred, ref, MM, "2025", case="x", scheme=scheme)
    assert {r.region.lower() for r in rows} == {*theirs, "mean"}
    assert_official(rows, theirs)


# --- where the official evaluation is odd --------------------------------------------------------


@noisy_oracle
def test_theirs_counts_whole_regions_in_voxels_whatever_the_spacing_and_ours_in_mm() -> None:
    ref = ball(SMALL, (13, 11, 10), 6).astype(np.uint8) * 3
    pred = np.roll(ref, 2, axis=0)
    theirs = evaluator().evaluate(pred, ref, voxelspacing=(2.0, 2.0, 2.0))["et"].to_dict(True)
    ours = evaluate_regions(pred, ref, {"et": (3,)}, (2.0, 2.0, 2.0), "2025")["et"]
    assert theirs["global_bin_hd95"] == 2  # voxels
    assert ours["hd95"] == theirs["sq_hd95"] == 4  # mm: of lesions theirs knows the spacing


@noisy_oracle
def test_theirs_skips_a_case_of_another_coding_and_averages_over_the_rest(tmp_path: Path) -> None:
    from brats_evaluation.evaluation import evaluate_single_exam

    from synth.base.errors import SynthError
    from synth.data.volume import Volume

    ref = ball(SMALL, (13, 11, 10), 6).astype(np.uint8) * 3
    for name, labels in (("ref", ref), ("odd", ref // 3 * 4)):
        Volume(data=labels[None], affine=np.eye(4)).save(tmp_path / f"{name}.nii.gz")
    paths = [str(tmp_path / f"{name}.nii.gz") for name in ("odd", "ref")]
    assert "error" in evaluate_single_exam(*paths, "x", evaluator())
    with pytest.raises(SynthError, match=r"labels \[4\]"):
        score_labels(ref // 3 * 4, ref, MM, "2025", case="x")


@noisy_oracle
def test_means_are_those_of_their_parser_where_every_number_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("brats_evaluation", reason="dev extra: BraTS-evaluation")
    import pandas as pd
    from brats_evaluation.metrics_parser import parse_seg_results

    from synth.evaluate.segmentation_scores import OFFICIAL

    rows, subjects = [], []
    for k in range(3):
        field = ndimage.gaussian_filter(np.random.default_rng(k).normal(size=SMALL), 2)
        ref = np.digitize(field, np.quantile(field, [0.9, 0.93, 0.96])).astype(np.uint8)
        pred = np.where(blobs(k + 20), 0, ref)
        rows += score_labels(pred, ref, MM, "2025", case=f"c{k}", scheme="brats2023")
        theirs = {n: r.to_dict(True) for n, r in evaluator().evaluate(pred, ref).items()}
        subjects.append(theirs | {"subject_name": f"c{k}"})
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"metrics": subjects}, default=float))
    parse_seg_results(str(path), str(tmp_path / "out.csv"))
    capsys.readouterr()
    table = pd.read_csv(tmp_path / "out.csv").set_index("subject_id")
    ours = summarise(rows)["2025"]
    for region in REGIONS:
        for name, official in OFFICIAL["2025"].items():
            if name in ("tp", "fp", "fn"):
                assert ours[region][name] == table[f"{official}_{region.lower()}"][:3].sum()
                continue
            mean, sd = (table[f"{official}_{region.lower()}"][k] for k in ("mean", "std"))
            assert ours[region][name]["mean"] == pytest.approx(mean, abs=1e-10)  # the CSV's digits
            assert ours[region][name]["sd"] == pytest.approx(sd, abs=1e-10)
