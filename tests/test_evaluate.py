"""Judging filled brains: the official numbers, beside baselines that never see the truth."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from synth.base.errors import SynthError
from synth.cli import main
from synth.data.case import Case, discover
from synth.data.fill import BASELINES, harmonic
from synth.data.volume import Volume
from synth.evaluate.inpainting import choose_baselines, evaluate_inpainting
from synth.evaluate.inpainting_case import fill_native, load_hole
from synth.evaluate.tables import Score, differences, markdown_table, plain_table, spread
from synth.metrics.image import METRICS, inpainting_metrics
from tests.conftest import write_case

IDS = [f"BraTS-GLI-{n:05d}-000" for n in range(1, 5)]


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    for seed, case_id in enumerate(IDS):
        write_case(tmp_path / "truth", case_id, seed=seed)
    return tmp_path / "truth"


def predict(truth: Path, folder: Path, make: Callable[[Volume], np.ndarray], ids=IDS) -> Path:
    for case_id in ids:
        image = Volume.load(truth / case_id / f"{case_id}-t1n.nii.gz")
        made = image.with_data(make(image).astype(np.float32))
        made.save(folder / f"{case_id}-t1n-inference.nii.gz")
    return folder


def noisy(image: Volume) -> np.ndarray:
    return image.data + np.random.default_rng(1).normal(0, 30, image.data.shape)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "per_case.csv").open() as lines:
        return list(csv.DictReader(lines))


def test_numbers_are_those_of_the_metrics_in_file_axes(truth: Path, tmp_path: Path) -> None:
    pred = predict(truth, tmp_path / "pred", noisy)
    found = evaluate_inpainting(pred, truth, tmp_path / "out", pictures=False)
    assert found.problems == ()
    table = rows(tmp_path / "out")
    assert len(table) == len(IDS) * (1 + len(BASELINES))
    for case_id in IDS:
        t1n, voided, healthy = (
            Volume.load(truth / case_id / f"{case_id}-{role}.nii.gz").data[0]
            for role in ("t1n", "t1n-voided", "mask-healthy")
        )
        made = Volume.load(pred / f"{case_id}-t1n-inference.nii.gz").data[0]
        expected = inpainting_metrics(made, t1n, voided, healthy > 0)
        (row,) = (r for r in table if (r["case"], r["method"]) == (case_id, "prediction"))
        assert {m: float(row[m]) for m in METRICS} == expected
        assert int(row["hole_voxels"]) == int(healthy.sum())
    mean = found.summary["methods"]["prediction"]["mse"]["mean"]
    own = [float(r["mse"]) for r in table if r["method"] == "prediction"]
    assert mean == pytest.approx(np.mean(own), rel=1e-12)


def test_a_baseline_handed_in_as_prediction_differs_by_exactly_nothing(
    truth: Path, tmp_path: Path
) -> None:
    for case in discover(truth):
        known = load_hole(case)
        filled = known.truth.with_data(fill_native(harmonic, known))
        filled.save(tmp_path / "pred" / case.id / f"{case.id}.nii.gz")  # the other naming, nested
    found = evaluate_inpainting(
        tmp_path / "pred", truth, tmp_path / "out", baselines=["harmonic", "rim-mean"],
        pictures=False,
    )  # fmt: skip
    for values in found.summary["prediction_minus"]["harmonic"].values():
        assert values == {"mean": 0, "low": 0, "high": 0, "p_value": 1, "n": 4, "excluded": 0}
    assert found.summary["prediction_minus"]["rim mean"]["mse"]["mean"] != 0


def test_a_perfect_prediction(truth: Path, tmp_path: Path) -> None:
    pred = predict(truth, tmp_path / "pred", lambda image: image.data)
    found = evaluate_inpainting(
        pred, truth, tmp_path / "out", baselines=["harmonic"], pictures=False
    )
    own = found.summary["methods"]["prediction"]
    assert own["mse"]["mean"] == 0
    assert own["ssim"]["mean"] == pytest.approx(1)
    # 10 log10(1 / 2.2e-16)
    assert own["psnr_01_eps"]["mean"] == pytest.approx(156.536, abs=1e-3)
    # An infinite PSNR is counted, not averaged, and JSON has no word for it.
    assert own["psnr_01"] == {"mean": None, "sd": None, "median": None, "n": 0, "non_finite": 4}
    pair = found.summary["prediction_minus"]["harmonic"]
    assert (pair["psnr_01"]["mean"], pair["psnr_01"]["excluded"]) == (None, 4)
    assert pair["mse"]["mean"] == -found.summary["methods"]["harmonic"]["mse"]["mean"]
    text = (tmp_path / "out" / "summary.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == json.loads(json.dumps(found.summary))
    assert {r["psnr_01"] for r in rows(tmp_path / "out") if r["method"] == "prediction"} == {"inf"}
    assert "not finite" in found.table


@pytest.mark.parametrize("name", BASELINES)
def test_no_baseline_depends_on_the_truth_in_the_hole(
    name: str, truth: Path, tmp_path: Path
) -> None:
    """Not even where the voided file still holds it."""
    (case, *_) = discover(truth)
    honest = load_hole(case)
    image = honest.truth
    other = np.where(honest.hole, 1234, image.data[0]).astype(np.float32)
    for path in (case.path("t1n"), case.path("voided")):
        image.with_data(other).save(path)
    leaking = load_hole(case)
    assert (leaking.voided[leaking.hole] == 1234).all()
    fill = BASELINES[name]
    assert np.array_equal(fill_native(fill, honest), fill_native(fill, leaking))


def test_fills_see_ras_whatever_the_files_axes(truth: Path) -> None:
    (case, *_) = discover(truth)  # LPS
    known = load_hole(case)
    seen = {}

    def spy(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
        seen["image"], seen["hole"] = image, hole
        return image + hole

    filled = fill_native(spy, known)
    assert np.array_equal(seen["image"], known.voided[::-1, ::-1])
    assert np.array_equal(seen["hole"], known.hole[::-1, ::-1])
    assert np.array_equal(filled, known.voided + known.hole)


def flipped(image: Volume) -> Volume:
    """The same voxels in the same places of the world, stored the other way round."""
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = image.shape[0] - 1
    return Volume(data=image.data[:, ::-1].copy(), affine=image.affine @ turn)


@pytest.mark.parametrize("fault", ["missing", "shape", "flipped", "twice", "nan"])
def test_one_bad_prediction_is_one_line_and_the_others_go_on(
    fault: str, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pred = predict(truth, tmp_path / "pred", noisy)
    path = pred / f"{IDS[1]}-t1n-inference.nii.gz"
    volume = Volume.load(path)
    expected = {
        "missing": f"no prediction → expected {path.name} or {IDS[1]}.nii.gz",
        "shape": "prediction and t1n differ in shape: (20, 24, 17) vs (20, 24, 18)",
        "flipped": "prediction and t1n differ in affine: up to 19 mm apart",
        "twice": "two files",
        "nan": "1 voxels are NaN",
    }
    if fault == "missing":
        path.unlink()
    elif fault == "shape":
        volume.with_data(volume.data[..., :-1]).save(path)
    elif fault == "flipped":
        flipped(volume).save(path)
    elif fault == "twice":
        volume.save(pred / "again" / f"{IDS[1]}.nii.gz")
    else:
        volume.data[0, 0, 0, 0] = np.nan
        volume.save(path)
    out = tmp_path / "out"
    words = ["evaluate", "inpainting", str(pred), str(truth), "-o", str(out), "--no-pictures"]
    assert main([*words, "--baselines", "rim-mean"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"{IDS[1]}: ")
    assert expected[fault] in said.err
    assert said.err.count("\n") == 1
    assert "cases judged: 3, not judged: 1" in said.out
    # Every method is judged on the same cases.
    by_method = {m: {r["case"] for r in rows(out) if r["method"] == m}
                 for m in ("prediction", "rim mean")}  # fmt: skip
    assert by_method["prediction"] == by_method["rim mean"] == set(IDS) - {IDS[1]}
    assert json.loads((out / "summary.json").read_text())["problems"][0] + "\n" == said.err


def test_baselines_alone_and_the_cases_of_a_split(
    truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    testing = [
        {"case": i} | {key: f"{i}/{i}-{role}.nii.gz" for key, role in
                       (("t1n", "t1n"), ("mask_healthy", "mask-healthy"), ("mask", "mask"))}
        for i in IDS[:2]
    ]  # fmt: skip
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"testing": testing}))
    out = tmp_path / "out"
    words = ["evaluate", "inpainting", "baselines", str(truth), "-o", str(out)]
    options = ["--split", str(split), "--baselines", "mirror + rim", "harmonic", "--no-pictures"]
    assert main([*words, *options]) == 0
    said = capsys.readouterr().out
    assert "mirror + rim" in said
    assert "prediction" not in said
    assert {r["case"] for r in rows(out)} == set(IDS[:2])
    assert main([*words, *options]) == 2  # what is there is not overwritten …
    assert "--force" in capsys.readouterr().err
    assert main([*words, *options, "--force"]) == 0  # … unasked


def test_a_missing_voided_scan_is_made_and_a_missing_mask_is_the_union(truth: Path) -> None:
    (case, *_) = discover(truth)
    whole = load_hole(case)
    for absent in ("voided", "mask"):
        files = {role: path for role, path in case.files.items() if role != absent}
        known = load_hole(Case(id=case.id, files=files))
        assert np.array_equal(known.voided, whole.voided)
        assert np.array_equal(known.hole, whole.hole)
    with pytest.raises(SynthError, match="neither t1n-voided nor mask"):
        load_hole(Case(id=case.id, files={r: case.files[r] for r in ("t1n", "healthy")}))


def test_refusals(truth: Path, tmp_path: Path) -> None:
    with pytest.raises(SynthError, match="did you mean mirror-rim"):
        choose_baselines(["mirror-rims"])
    with pytest.raises(SynthError, match="nothing to judge"):
        evaluate_inpainting(None, truth, tmp_path / "out", baselines=["none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SynthError, match="none of 4 cases could be judged"):
        evaluate_inpainting(tmp_path / "empty", truth, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_show_every_case(truth: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    pred = predict(truth, tmp_path / "pred", noisy)
    image = Volume.load(pred / f"{IDS[0]}-t1n-inference.nii.gz")
    image.with_data(np.abs(image.data)).save(pred / f"{IDS[0]}-t1n-sd.nii.gz")
    out = tmp_path / "out"
    evaluate_inpainting(pred, truth, out, baselines=["rim-mean"])
    widths = {p.stem: imread(p).shape[1] for p in (out / "pictures").iterdir()}
    assert sorted(widths) == IDS
    assert widths[IDS[0]] > widths[IDS[1]]  # one column more: its sd
    assert (out / "overview.png").stat().st_size > 10_000


def test_view_cuts_where_most_of_the_mask_is_and_hides_the_error_under_a_tumour(
    truth: Path,
) -> None:
    from synth.pictures.inpainting import cut_hole

    known = load_hole(discover(truth)[0])
    wrong = known.truth.data[0] + 200
    seen = cut_hole(known.truth, known.voided, known.healthy, known.hole, {"wrong": wrong})
    for plane, axis in enumerate((2, 1, 0)):
        most = known.healthy.sum(axis=tuple(a for a in range(3) if a != axis)).max()
        assert (seen.parts[plane] == 1).sum() == most
        assert (seen.error("wrong", plane)[seen.parts[plane] == 2] == 0).all()
        assert (seen.error("wrong", plane)[seen.parts[plane] == 0] > 0).any()


def test_spread_counts_what_it_leaves_out() -> None:
    found = spread(np.array([1.0, 2, 6, np.inf, np.nan]))
    assert found == {"mean": 3, "sd": pytest.approx(7**0.5), "median": 2, "n": 3, "non_finite": 2}


def test_a_single_pair_has_a_mean_but_no_interval() -> None:
    scores = [
        Score(case=c, method=m, values={"mse": v}, voxels=1)
        for c, m, v in (("a", "x", 3.0), ("a", "y", 1.0), ("b", "x", np.inf), ("b", "y", 1.0))
    ]
    assert differences(scores, "x", ["mse"])["y"]["mse"] == {
        "mean": 2, "low": None, "high": None, "p_value": None, "n": 1, "excluded": 1,
    }  # fmt: skip


def test_tables() -> None:
    cells = [["method", "SSIM"], ["a", "0.5"], ["longer name", "0.25"]]
    assert plain_table(cells) == "method       SSIM\na             0.5\nlonger name  0.25"
    assert markdown_table(cells).splitlines()[:2] == ["| method | SSIM |", "| --- | ---: |"]
