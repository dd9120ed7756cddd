"""Judging label maps: the numbers of the files, bad input case by case, the page."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from synth.base.errors import SynthError
from synth.cli import main
from synth.data.volume import Volume
from synth.evaluate.segmentation import ERRORS, evaluate_segmentation, worst_and_median
from synth.evaluate.segmentation_scores import CONVENTIONS, POLICY, read_scores, score_labels
from synth.pictures.slices import LABEL_COLOURS
from tests.conftest import write_case

IDS = [f"BraTS-GLI-{n:05d}-000" for n in range(1, 5)]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("truth")
    for seed, case_id in enumerate(IDS):
        write_case(root, case_id, seed=seed)
    return root


def seg(truth: Path, case_id: str) -> Volume:
    return Volume.load_labels(truth / case_id / f"{case_id}-seg.nii.gz")


def predict(truth: Path, folder: Path, ids=IDS, *, roll: int = 1) -> Path:
    for k, case_id in enumerate(ids):
        made = seg(truth, case_id)
        made.with_data(np.roll(made.data, roll * k, axis=1)).save(folder / f"{case_id}-seg.nii.gz")
    return folder


def words(pred: Path, truth: Path, out: Path, *more: str) -> list[str]:
    return ["evaluate", "segmentation", str(pred), str(truth), "-o", str(out), *more]


def test_numbers_are_those_of_the_files_and_all_files_say_the_same(truth: Path, tmp_path: Path):
    pred = predict(truth, tmp_path / "pred")
    out = tmp_path / "out"
    found = evaluate_segmentation(pred, truth, out, pictures=False)
    assert found.problems == ()
    rows = read_scores(out / "per_case.csv")
    assert len(rows) == len(IDS) * 2 * 4
    expected = [
        row
        for case_id in IDS
        for convention in CONVENTIONS
        for row in score_labels(
            Volume.load_labels(pred / f"{case_id}-seg.nii.gz").data[0],
            seg(truth, case_id).data[0],
            (1, 1, 1),
            convention,
            case=case_id,
        )
    ]
    for a, b in zip(rows, expected, strict=True):
        assert (a.case, a.region, a.convention) == (b.case, b.region, b.convention)
        np.testing.assert_equal(dict(a.values), dict(b.values))
    assert {r.patient for r in rows} == {case_id.removesuffix("-000") for case_id in IDS}
    text = (out / "summary.json").read_text()
    summary = json.loads(text, parse_constant=pytest.fail)
    assert summary == json.loads(json.dumps(found.summary))
    own = [r.values["dice"] for r in rows if (r.region, r.convention) == ("ET", "2023")]
    cell = summary["conventions"]["2023"]["ET"]["dice"]
    assert cell["mean"] == pytest.approx(np.mean(own), rel=1e-12)
    assert cell["n"] == 4
    assert summary["official_names"]["2023"]["lesion_dice"] == "LesionWise_Score_Dice"
    table = (out / "table.md").read_text()
    for convention in CONVENTIONS:  # the policy stands where the means are read
        assert POLICY[convention] in table
        assert POLICY[convention] in found.table
    assert set(summary["files"]["truth"]) == set(summary["files"]["prediction"]) == set(IDS)
    assert summary["files"]["truth"][IDS[0]] == summary["files"]["prediction"][IDS[0]]


def test_the_spacing_is_the_files(truth: Path, tmp_path: Path) -> None:
    labels = seg(truth, IDS[0])
    wide = np.diag([-2.0, 1, 3, 1])
    moved = np.roll(labels.data, 1, axis=3)
    for folder, data in (("truth", labels.data), ("pred", moved)):
        path = tmp_path / folder / f"{IDS[0]}-seg.nii.gz"
        Volume(data=data, affine=wide).save(path)
    found = evaluate_segmentation(
        tmp_path / "pred", tmp_path / "truth", tmp_path / "out", conventions=["2025"],
        pictures=False,
    )  # fmt: skip
    (wt,) = (r.values for r in read_scores(tmp_path / "out" / "per_case.csv") if r.region == "WT")
    assert wt["hd95"] == 3  # mm: one voxel along the third axis
    assert wt["ref_ml"] == pytest.approx((labels.data > 0).sum() * 6 / 1000)
    assert list(found.summary["conventions"]) == ["2025"]


def test_predictions_lie_flat_or_nested_by_either_name(truth: Path, tmp_path: Path) -> None:
    for k, case_id in enumerate(IDS):
        name = f"{case_id}-seg" if k % 2 else case_id
        folder = tmp_path / "pred" / (case_id if k < 2 else "")
        seg(truth, case_id).save(folder / f"{name}.nii.gz")
    seg(truth, IDS[0]).save(tmp_path / "pred" / "BraTS-GLI-99999-000.nii.gz")
    found = evaluate_segmentation(tmp_path / "pred", truth, tmp_path / "out", pictures=False)
    assert found.summary["cases"] == 4
    assert {r.values["dice"] for r in read_scores(tmp_path / "out" / "per_case.csv")} == {1}
    (unused,) = found.summary["predictions_not_used"]
    assert "99999" in unused


def save_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def spoil(fault: str, path: Path) -> None:
    volume = Volume.load_labels(path)
    data = volume.data.copy()
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = volume.shape[0] - 1
    fraction = data.astype(np.float32)
    fraction[0, 7, 12, 9] = np.nan if fault == "nan" else 0.5
    data[0, 0, 0, 0] = 7
    faults: dict[str, Callable[[], object]] = {
        "missing": path.unlink,
        "text": lambda: save_bytes(path, b"not a scan"),
        "cut off": lambda: save_bytes(path, path.read_bytes()[:60]),
        "shape": lambda: volume.with_data(volume.data[..., :-1]).save(path),
        "flipped": lambda: Volume(data=volume.data, affine=volume.affine @ turn).save(path),
        "label": lambda: volume.with_data(data).save(path),
        "nan": lambda: volume.with_data(fraction).save(path),
        "fraction": lambda: volume.with_data(fraction).save(path),
        "twice": lambda: volume.save(path.parent / "again" / path.name),
    }
    faults[fault]()


FAULTS = {
    "missing": f"no prediction → expected {IDS[1]}-seg.nii.gz",
    "text": "cannot be read as NIfTI",
    "cut off": "cannot be read as NIfTI",
    "shape": "prediction and truth differ in shape: (20, 24, 17) vs (20, 24, 18) → resample",
    "flipped": "prediction and truth differ in affine: up to 19 mm apart → resample",
    "label": "label 7 is outside the scheme brats2023 (0, 1, 2, 3)",
    "nan": "a label map holds small whole numbers only",
    "fraction": "a label map holds small whole numbers only",
    "twice": "two files",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_bad_prediction_is_one_line_and_the_others_go_on(
    fault: str, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pred, out = predict(truth, tmp_path / "pred"), tmp_path / "out"
    spoil(fault, pred / f"{IDS[1]}-seg.nii.gz")
    assert main(words(pred, truth, out, "--no-pictures")) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"{IDS[1]}: ")
    assert FAULTS[fault] in said.err
    assert said.err.count("\n") == 1
    assert "cases judged: 3, not judged: 1" in said.out
    assert {r.case for r in read_scores(out / "per_case.csv")} == set(IDS) - {IDS[1]}
    assert json.loads((out / "summary.json").read_text())["problems"][0] + "\n" == said.err


@pytest.mark.parametrize("fault", ["text", "label", "twice"])
def test_one_bad_truth_is_one_line_too(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case_id in IDS:
        write_case(tmp_path / "truth", case_id)
    pred = predict(tmp_path / "truth", tmp_path / "pred")
    spoil(fault, tmp_path / "truth" / IDS[1] / f"{IDS[1]}-seg.nii.gz")
    assert main(words(pred, tmp_path / "truth", tmp_path / "out", "--no-pictures")) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"{IDS[1]}: ")
    assert said.err.count("\n") == 1
    assert "cases judged: 3, not judged: 1" in said.out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["EMPTY", "TRUTH"], "no label maps"),
        (["NOWHERE", "TRUTH"], "no such"),
        (["PRED", "EMPTY"], "no case found"),
        (["PRED", "NOWHERE"], "no such"),
        (["PRED", "SCANS"], "no label maps"),
        (["OTHERS", "TRUTH"], "none of 4 cases could be judged"),
        (["PRED", "TRUTH", "--scheme", "brats2032"], "unknown label scheme"),
        (["PRED", "TRUTH", "--scheme", "brats2021"], "none of 4 cases could be judged"),
        (["PRED", "TRUTH", "--convention", "2024"], "2024"),
        (["PRED", "TRUTH", "--baselines", "none"], "unknown argument --baselines"),
        (["PRED", "TRUTH", "--split", "TORN"], "not valid JSON"),
        (["PRED", "TRUTH", "--split", "UNTESTED"], "no testing cases"),
        (["PRED", "TRUTH", "--split", "TWICE"], "occurs twice"),
        (["PRED", "TRUTH", "--split", "OUTSIDE"], "leaves the data folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(more, message, truth: Path, tmp_path: Path, capsys) -> None:
    places = {n: tmp_path / n.lower() for n in ("PRED", "EMPTY", "NOWHERE", "SCANS", "OTHERS")}
    predict(truth, places["PRED"])
    places["EMPTY"].mkdir()
    scan = Volume.load(truth / IDS[0] / f"{IDS[0]}-t1n.nii.gz")
    scan.save(places["SCANS"] / f"{IDS[0]}-t1n.nii.gz")
    seg(truth, IDS[0]).save(places["OTHERS"] / "BraTS-GLI-99999-000-seg.nii.gz")
    entry = {"case": IDS[0], "label": f"{IDS[0]}/{IDS[0]}-seg.nii.gz"}
    outside = {"testing": [{"case": IDS[0], "label": "../x.nii.gz"}]}
    splits = {"UNTESTED": {"training": [entry]}, "TWICE": {"testing": [entry] * 2},
              "OUTSIDE": outside}  # fmt: skip
    for name, values in splits.items():
        places[name] = tmp_path / f"{name}.json"
        places[name].write_text(json.dumps(values))
    places["TORN"] = tmp_path / "torn.json"
    places["TORN"].write_text('{"testing": [')
    (first, second), *options = [more[:2], *more[2:]]
    given = [str({**places, "TRUTH": truth}.get(w, w)) for w in (first, second, *options)]
    code = main(["evaluate", "segmentation", *given, "-o", str(tmp_path / "out"), "--no-pictures"])
    assert code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert not (tmp_path / "out" / "summary.json").exists()


def test_an_evaluation_is_not_overwritten_unasked(truth: Path, tmp_path: Path, capsys) -> None:
    pred, out = predict(truth, tmp_path / "pred"), tmp_path / "out"
    given = words(pred, truth, out, "--no-pictures")
    assert main(given) == 0
    before = (out / "per_case.csv").read_bytes()
    assert main(given) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*given, "--force"]) == 0
    assert (out / "per_case.csv").read_bytes() == before


def test_the_testing_cases_of_a_split_and_one_convention(truth: Path, tmp_path: Path) -> None:
    pred, out = predict(truth, tmp_path / "pred", IDS[:2]), tmp_path / "out"
    entries = [{"case": i, "label": f"{i}/{i}-seg.nii.gz"} for i in IDS]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"training": entries[2:], "testing": entries[:2]}))
    more = ("--split", str(split), "--convention", "2023", "--no-pictures")
    assert main(words(pred, truth, out, *more)) == 0
    with (out / "per_case.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert {(row["case"], row["convention"]) for row in table} == {(i, "2023") for i in IDS[:2]}


def test_other_schemes_are_judged_by_their_own_numbers(truth: Path, tmp_path: Path) -> None:
    labels = seg(truth, IDS[0])
    old = labels.with_data(np.where(labels.data == 3, 4, labels.data))
    for folder in ("truth", "pred"):
        old.save(tmp_path / folder / "BraTS2021_00001_seg.nii.gz")
    evaluate_segmentation(tmp_path / "pred", tmp_path / "truth", tmp_path / "out", pictures=True)
    et = next(r.values for r in read_scores(tmp_path / "out" / "per_case.csv") if r.region == "ET")
    assert et["dice"] == 1
    assert et["ref_ml"] == pytest.approx((labels.data == 3).sum() / 1000)
    # Without a scan the contours are on black; enhancing tumour is yellow in every scheme.
    image = plt.imread(tmp_path / "out" / "cases.png")[..., :3]
    assert near(image, LABEL_COLOURS[3]).any()


# --- the page ------------------------------------------------------------------------------------


def near(image: np.ndarray, colour: str) -> np.ndarray:
    return np.abs(image - to_rgb(colour)).max(-1) < 0.12


def test_worst_first_then_those_about_the_median() -> None:
    values = {f"c{k}": k / 20 for k in range(20)}
    chosen = worst_and_median(values)
    assert list(chosen.values()) == ["worst"] * 4 + ["median"] * 2
    assert list(chosen) == ["c0", "c1", "c2", "c3", "c9", "c10"]
    assert list(worst_and_median({"a": 0.5})) == ["a"]
    assert len(worst_and_median({str(k): k for k in range(5)})) == 5


def test_page_shows_contours_and_what_is_wrong(truth: Path, tmp_path: Path) -> None:
    pred = predict(truth, tmp_path / "pred", roll=2)
    evaluate_segmentation(pred, truth, tmp_path / "out")
    image = plt.imread(tmp_path / "out" / "cases.png")[..., :3]
    scan, true, made, wrong = np.array_split(image[80:, 40:], 4, axis=1)
    for panel in (true, made):
        assert near(panel, LABEL_COLOURS[2]).sum() > 100
    assert not near(scan, LABEL_COLOURS[2]).any()
    orange = (wrong[..., 0] > 1.25 * wrong[..., 2]).sum()
    blue = (wrong[..., 2] > 1.25 * wrong[..., 0]).sum()
    assert min(orange, blue) > 100
    assert set(ERRORS) == {1, 2}


def test_a_scan_that_cannot_be_drawn_on_does_not_stop_the_judging(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "truth", IDS[0])
    for role in ("t1n", "t1c", "t2w", "t2f"):
        save_bytes(tmp_path / "truth" / IDS[0] / f"{IDS[0]}-{role}.nii.gz", b"torn")
    pred = predict(tmp_path / "truth", tmp_path / "pred", IDS[:1])
    assert main(words(pred, tmp_path / "truth", tmp_path / "out")) == 0
    assert "drawn without t2f" in capsys.readouterr().err
    assert (tmp_path / "out" / "cases.png").exists()


def test_an_unwritable_folder_is_one_line(truth: Path, tmp_path: Path) -> None:
    pred = predict(truth, tmp_path / "pred")
    (tmp_path / "file").write_text("")
    with pytest.raises(SynthError, match="cannot write"):
        evaluate_segmentation(pred, truth, tmp_path / "file" / "out", pictures=False)
