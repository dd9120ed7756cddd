"""`synth evaluate synthesis`, from folders to tables, pictures and the gate."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segmentation.config import PRESETS
from segmentation.network import build
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.cli import main
from synth.data.case import discover
from synth.data.labels import regions_of
from synth.evaluate.scans.features import TumourSegmenter, column_names
from synth.evaluate.scans.judge import evaluate_synthesis
from synth.evaluate.scans.scan_case import load_scans
from synth.metrics.overlap import dice
from tests.toy_scans import MM, cohort, patient, write


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """made: five new patients, two draws of one; a copy of training case 103 in other grey values;
    a patient under the labels of another; truth; train.
    """
    root = tmp_path_factory.mktemp("data")
    cohort(root / "truth", range(1, 11))
    cohort(root / "train", range(101, 113))
    for seed in range(201, 206):
        write(root / "made", f"BraTS-GLI-{seed:05d}-000-synth00", patient(seed))
    write(root / "made", "BraTS-GLI-00201-000-synth01", patient(299))
    copied = {r: d if r == "seg" else (d * 0.7).round() for r, d in patient(103).items()}
    write(root / "made", "BraTS-GLI-00301-000-synth00", copied)
    wrong = patient(302) | {"seg": patient(303)["seg"] * (patient(302)["t1n"] > 0)}
    write(root / "made", "BraTS-GLI-00302-000-synth00", wrong)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = PRESETS["tiny"]
    config = type(config)(**(vars(config) | {"width": 4, "patch": (48, 48, 48), "spacing_mm": MM}))
    return checkpoint.save(
        tmp_path_factory.mktemp("model") / "seg", model=build(config), family="segmentation",
        preset="tiny", config=config,
    )  # fmt: skip


def rows(out: Path, kind: str = "generated") -> dict[str, dict[str, str]]:
    with (out / "per_case.csv").open() as lines:
        return {r["case"]: r for r in csv.DictReader(lines) if r["set"] == kind}


@pytest.fixture(scope="module")
def judged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judged")
    rules = ["z_intensity<=6", "copied==0", "signs>=0.8"]
    found = evaluate_synthesis(
        data / "made", data / "truth", out, train_dir=data / "train", keep=rules, pictures=False
    )
    assert found.problems == ()
    return out


def test_a_copy_and_a_wrong_label_map_are_dropped_and_nothing_else(judged: Path) -> None:
    with (judged / "dropped.csv").open() as lines:
        dropped = {r["case"]: r["reason"] for r in csv.DictReader(lines)}
    assert set(dropped) == {"BraTS-GLI-00301-000-synth00", "BraTS-GLI-00302-000-synth00"}
    assert dropped["BraTS-GLI-00301-000-synth00"] == "copied is 1, not == 0"
    assert "z_intensity" in dropped["BraTS-GLI-00302-000-synth00"]
    summary = json.loads((judged / "summary.json").read_text())
    (copy,) = summary["copies"]
    assert copy["training"] == "BraTS-GLI-00103-000"
    assert copy["distance"] < summary["copy_distance"]
    assert summary["generated"]["copied"] == 1
    assert summary["gate"]["kept"].keys() == rows(judged).keys() - dropped.keys()


def test_the_set_stands_beside_real_ones(judged: Path) -> None:
    summary = json.loads((judged / "summary.json").read_text())
    made, train = summary["generated"], summary["training"]
    floor = summary["real"]["halves"]["kid"]
    assert train["kid"]["low"] <= 0 or train["kid"]["value"] < 2 * floor["high"]
    assert made["ms_ssim"]["same_label_map"]["n"] == 1
    assert made["ms_ssim"]["pairs"]["n"] == 20
    assert made["ms_ssim"]["pairs"]["mean"] == pytest.approx(
        summary["real"]["ms_ssim"]["pairs"]["mean"], abs=0.1
    )
    assert "left_out" not in made["fid"]
    assert summary["real"]["seg_dice"] is None
    assert summary["signs"]["ET_t1c_mean"] == 1
    table = (judged / "table.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert lines
    for shown in summary["tables"]:  # a bar in a cell would cut it
        assert {len(row) for row in shown["rows"]} == {len(shown["rows"][0])}
        assert "|" not in "".join(cell for row in shown["rows"] for cell in row)
    assert "unseen real" in table
    assert "random convolutions" in table


def test_csv_has_every_number_of_every_case_as_rules_know_them(judged: Path) -> None:
    made, real = rows(judged), rows(judged, "real")
    names = column_names(segmenter=False, training=True)
    assert list(made["BraTS-GLI-00204-000-synth00"]) == ["set", "case", *names, "nearest_training"]
    assert (len(made), len(real)) == (8, 10)
    assert made["BraTS-GLI-00301-000-synth00"]["nearest_training"] == "BraTS-GLI-00103-000"
    # Levels are in the file's unit: the copy is 0.7 times as bright.
    training = rows(judged, "training")["BraTS-GLI-00103-000"]
    for m in ("t1n", "t2f"):
        ratio = float(made["BraTS-GLI-00301-000-synth00"][f"level_{m}"]) - float(
            training[f"level_{m}"]
        )
        assert 10**ratio == pytest.approx(0.7, abs=0.002)  # rounded to whole grey values


def test_bad_cases_are_one_line_each_and_the_rest_goes_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data / "made", tmp_path / "made")
    for number, role in (("202", "t2w"), ("203", "seg"), ("204", "t1c")):
        name = f"BraTS-GLI-00{number}-000-synth00"
        path = tmp_path / "made" / name / f"{name}-{role}.nii.gz"
        start = path.read_bytes()[:200]
        path.unlink()
        if role == "t2w":
            path.write_bytes(start)
    words = ["evaluate", "synthesis", str(tmp_path / "made"), str(data / "truth")]
    words += ["-o", str(tmp_path / "out"), "--no-pictures"]
    assert main(words) == 2
    told = capsys.readouterr()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [p.split(":")[0] for p in summary["problems"]] == [
        "generated BraTS-GLI-00202-000-synth00", "generated BraTS-GLI-00204-000-synth00"
    ]  # fmt: skip
    assert all("→" in p and "\n" not in p for p in summary["problems"])
    assert "cases judged: 6, problems: 2" in told.out
    # The last lines are what is looked for, not the end of a long table.
    kid = summary["generated"]["kid"]
    says = told.out.splitlines()[-2]
    assert says.startswith(f"KID {kid['value']:.3g} [{kid['low']:.3g}, {kid['high']:.3g}], real ")
    assert says.endswith("sets of fewer than 30 show large differences only")
    # Without labels a case is judged by what needs none.
    unlabelled = rows(tmp_path / "out")["BraTS-GLI-00203-000-synth00"]
    assert unlabelled["ET_t1c_mean"] == unlabelled["signs"] == "nan"
    assert np.isfinite(float(unlabelled["z_texture"]))
    assert "copied" not in unlabelled
    assert main(words) == 2
    assert "--force overwrites it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "z_intensty<=3"], "no number 'z_intensty'"),
        (["--keep", "seg_dice>=0.5"], "without --segmenter"),
        (["--keep", "copied==0"], "without --train"),
        (["--keep", "copied"], "is not a rule"),
        (["--train", "TRUTH"], "unseen case and a training case"),
        (["--segmenter", "NOWHERE"], "no such checkpoint"),
        (["--baselines", "none"], "unknown argument --baselines"),
    ],
)
def test_mistakes_are_told_before_anything_is_read(
    data: Path, tmp_path: Path, words: list[str], message: str, capsys
) -> None:
    words = [str(data / "truth") if w == "TRUTH" else w for w in words]
    command = ["evaluate", "synthesis", str(data / "made"), str(data / "truth"), *words]
    assert main([*command, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pictures_mix_real_and_made_rows(data: Path, tmp_path: Path, monkeypatch) -> None:
    seen = {}

    def draw_montage(panels, path: Path, **words) -> Path:
        seen.update(words, panels=panels)
        return path

    monkeypatch.setattr("synth.evaluate.scans.judge.draw_montage", draw_montage)
    evaluate_synthesis(data / "made", data / "truth", tmp_path / "out")
    kinds = [label.split("\n")[0] for label in seen["row_labels"]]
    assert sorted(kinds) == ["generated"] * 6 + ["real"] * 6
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)
    assert all(len(row) == 12 for row in seen["panels"])
    # Each row is the case it says: its brightest t1c is in the first t1c panel's plane or beyond.
    for label, panels in zip(seen["row_labels"], seen["panels"], strict=True):
        name = label.split("\n")[1]
        folder = data / ("made" if name.endswith(("synth00", "synth01")) else "truth")
        (case,) = [c for c in discover(folder) if c.id == name]
        image = load_scans(case, MM).image[1]
        assert max(p.max() for p in panels[3:6]) <= image.max()
        assert np.isin(panels[3], image).all()
    for name in ("spectra.png", "intensities.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_segmenter_judges_labels_and_gives_features(
    data: Path, model: Path, tmp_path: Path
) -> None:
    judge = TumourSegmenter(model)
    case = discover(data / "truth")[0]
    found = judge.dice(case)
    wanted = regions_of(case.load("seg").data[0], case.scheme)
    answer = judge.regions(case)
    assert answer.shape == wanted.shape
    for name, a, b in zip(("WT", "TC", "ET"), answer, wanted, strict=True):
        assert found[f"seg_dice_{name}"] == dice(a, b, both_empty="perfect")
    assert found["seg_dice"] == pytest.approx(np.mean([found[f"seg_dice_{r}"] for r in
                                                       ("WT", "TC", "ET")]))  # fmt: skip

    kept = []
    network = judge.loaded.model
    hook = network.bottleneck.register_forward_hook(lambda *call: kept.append(call[-1]))
    features = judge(load_scans(case, MM))
    hook.remove()
    assert len(features) == 2 * kept[0].shape[1]
    assert max(kept[0].shape[2:]) <= 3  # a sixteenth of the grid
    maps = kept[0][0].numpy().astype(float)
    assert (features[: len(maps)] <= maps.max(axis=(1, 2, 3)) + 1e-6).all()
    assert (features[: len(maps)] >= maps.min(axis=(1, 2, 3)) - 1e-6).all()

    out = tmp_path / "out"
    found = evaluate_synthesis(
        data / "made", data / "truth", out, segmenter=model, keep=["seg_dice>=0"], pictures=False
    )
    assert "bottleneck of" in found.summary["features"]
    assert len(found.summary["gate"]["kept"]) == 8
    own = [float(r["seg_dice"]) for r in rows(out).values()]
    assert found.summary["generated"]["seg_dice"]["mean"] == pytest.approx(np.mean(own))
    assert "Dice of the segmenter" in (out / "table.md").read_text()


def test_a_checkpoint_that_does_not_segment_is_refused(tmp_path: Path) -> None:
    from tests.test_ddpm_lora_generate import save_model

    with pytest.raises(SynthError, match="ddpm_lora checkpoint"):
        TumourSegmenter(save_model(tmp_path / "base"))


@pytest.mark.slow
def test_phantoms_of_another_site_are_far_and_of_the_same_are_not(tmp_path: Path) -> None:
    for name, more in (("a", []), ("kin", ["--seed", "1"]), ("b", ["--site", "B"])):
        assert main(["phantom", str(tmp_path / name), "--cases", "8", *more]) == 0

    def kid(name: str) -> dict:
        found = evaluate_synthesis(
            tmp_path / name, tmp_path / "a", tmp_path / f"{name}-out", pictures=False
        )
        return found.summary

    kin, far = kid("kin"), kid("b")
    assert kin["generated"]["kid"]["low"] < far["real"]["halves"]["kid"]["high"]
    assert far["generated"]["kid"]["low"] > 5 * far["real"]["halves"]["kid"]["high"]
    assert far["generated"]["kid"]["low"] > 5 * kin["generated"]["kid"]["high"]


def test_table_of_samplers_is_that_of_the_judge(tmp_path: Path, capsys) -> None:
    from benchmarks.ddpm_lora_samplers import main as bench
    from tests.test_ddpm_lora_generate import SMALL, save_model

    cohort(tmp_path / "truth", range(1, 6))
    base = save_model(tmp_path / "base", replace(SMALL, spacing_mm=MM))
    words = [str(base), "--data", str(tmp_path / "truth")]
    words += ["--cases", "3", "--calls", "1", "2", "--samplers", "ddim", "--device", "cpu"]
    bench([*words, "-o", str(tmp_path / "out")])
    table = capsys.readouterr().out
    found = evaluate_synthesis(
        tmp_path / "out" / "ddim-2", tmp_path / "truth", tmp_path / "judged", pictures=False
    ).summary
    numbers = json.loads((tmp_path / "out" / "samplers.json").read_text())["ddim-2"]
    assert numbers["kid"] == found["generated"]["kid"]
    assert numbers["z_intensity"] == found["generated"]["z_intensity"]
    assert f"{numbers['kid']['value']:.3g} [" in table
    assert f"≤ {found['real']['halves']['kid']['high']:.3g}" in table
