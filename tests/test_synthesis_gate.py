"""The gate: rules are read strictly, unknown numbers pass nothing, and only the kept go on."""

import csv
import math
from pathlib import Path

import pytest

from ddpm_lora.provenance import Provenance, append
from synth.base.errors import SynthError
from synth.base.files import read_json, write_json
from synth.cli import main
from synth.data.case import discover
from synth.data.split import Entry, Split, read_split, write_split
from synth.evaluate.quality_filter import (
    Rule,
    judge_rows,
    parse_rules,
    read_kept,
    require_columns,
    scans_hash,
    write_gate,
)
from tests.toy_scans import patient, write


def test_rules_compare_as_they_are_written() -> None:
    row = {"a": 2.0}
    passing = ["a<=2", "a>=2", "a==2", "a<2.5", "a > 1", "a != 3"]
    failing = ["a<=1", "a>=2.5", "a==1", "a<2", "a>2", "a!=2"]
    assert all(Rule.parse(text).broken_by(row) is None for text in passing)
    reasons = [Rule.parse(text).broken_by(row) for text in failing]
    assert reasons[0] == "a is 2, not <= 1"
    assert all(reasons)
    assert str(Rule.parse(" seg_dice >= 0.60 ")) == "seg_dice>=0.6"


@pytest.mark.parametrize("text", ["seg_dice", "seg_dice>=", "seg_dice=>1", "a>=b", "a>=nan", ""])
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(SynthError, match="is not a rule"):
        Rule.parse(text)


def test_numbers_that_are_not_there_are_named() -> None:
    rules = parse_rules(["seg_dcie>=0.6"])
    with pytest.raises(SynthError, match="no number 'seg_dcie'") as caught:
        require_columns(rules, ["seg_dice", "signs"], {})
    assert "seg_dice" in caught.value.hint
    with pytest.raises(SynthError, match="without --segmenter"):
        require_columns(parse_rules(["seg_dice>=0"]), ["signs"], {"seg_dice": "--segmenter"})


def test_a_number_that_is_not_known_passes_no_rule() -> None:
    rules = parse_rules(["a>=0", "b<=1"])
    found = judge_rows(rules, {"x": {"a": 1, "b": 2}, "y": {"a": math.nan, "b": 1}, "z": {"a": 0}})
    assert found == {"x": ["b is 2, not <= 1"], "y": ["a is not known"], "z": ["b is not known"]}


def made(folder: Path, seeds: range) -> Path:
    """What `synth sample` leaves, as far as a split is concerned."""
    for seed in seeds:
        name = f"BraTS-GLI-{seed:05d}-000-synth00"
        write(folder, name, patient(seed))
        label_map = {"label_map": name.removesuffix("-synth00")}
        record = {"case": name, "scheme": "brats2023", "source": label_map}
        write_json(folder / "records" / f"{name}.json", record)
    return folder


def test_only_kept_cases_are_appended_and_dropped_ones_are_taken_out(tmp_path: Path) -> None:
    out = made(tmp_path / "made", range(1, 4))
    write(tmp_path / "real", "BraTS-GLI-00001-000", patient(1))
    (real,) = discover(tmp_path / "real")
    listed = write_split(
        tmp_path / "split.json", Split(training=(Entry(case=real, fold=0),)), tmp_path
    )
    cases = {c.id: c for c in discover(out)}
    first, second, third = sorted(cases)
    provenance = Provenance(split=read_split(listed, tmp_path), strict=True)

    def names() -> list[str]:
        return [e.case.id for e in read_split(listed, tmp_path).training]

    assert append(listed, out, provenance, tmp_path) == 0
    assert names() == [real.id, first, second, third]

    reasons = {first: [], second: ["signs is 0.5, not >= 0.8"], third: []}
    gate = tmp_path / "gate"
    write_gate(gate, parse_rules(["signs>=0.8"]), reasons, cases)
    with (gate / "dropped.csv").open() as lines:
        dropped = list(csv.DictReader(lines))
    assert dropped == [{"case": second, "reason": "signs is 0.5, not >= 0.8"}]
    kept = read_kept(gate)
    assert kept == {name: scans_hash(cases[name]) for name in (first, third)}
    for _ in range(2):
        assert append(listed, out, provenance, tmp_path, kept=kept) == 0
        assert names() == [real.id, first, third]

    # Drawn again: what was judged is not what is there.
    write(out, third, patient(9))
    assert append(listed, out, provenance, tmp_path, kept=kept) == 1


def test_other_files_are_no_lists_of_kept_cases(tmp_path: Path) -> None:
    write_json(tmp_path / "kept.json", {"format": 2, "kept": {}})
    with pytest.raises(SynthError, match="format 2, this version reads 1"):
        read_kept(tmp_path)
    assert read_json(tmp_path / "kept.json", dict)["format"] == 2


def test_kept_says_what_is_appended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--kept", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "--kept without --append-to" in capsys.readouterr().err
    words = ["sample", "--kept", str(tmp_path / "no.json"), "--append-to", "split.json"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 2
    assert "no.json" in capsys.readouterr().err
