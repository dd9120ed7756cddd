"""The judge of generated scans: realistic, tumour in the right place, new?

Everything stands beside what unseen real cases score among themselves. All cases are brought to one
voxel size, the coarser of the sets, since texture depends on it. `--keep` sorts out single cases.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from synth.base.devices import pick
from synth.base.errors import SynthError
from synth.base.files import atomic_path, write_json
from synth.base.manifest import manifest
from synth.data.case import Case
from synth.evaluate import quality_filter
from synth.evaluate.quality_filter import Rule
from synth.evaluate.scans import pictures as synthesis_pictures
from synth.evaluate.scans import tables as synthesis_tables
from synth.evaluate.scans.features import DICE, Description, column_names, describe
from synth.evaluate.scans.random_features import RandomConvolutions
from synth.evaluate.scans.reference import Jury, Verdict
from synth.evaluate.scans.scan_case import common_spacing_mm, find_scans, load_scans, real_sets
from synth.evaluate.scans.segmenter import Segmenter
from synth.evaluate.tables import markdown_table, plain_table
from synth.training.log import Progress

SUMMARY = "summary.json"
LEAST = {"generated": 2, "real": 4, "training": 3}
THUMBNAILS = 24
"""Cases of a set that diversity is measured on."""
NEEDS = {
    **dict.fromkeys(DICE, "--segmenter"),
    **dict.fromkeys(("copied", "nearest_distance"), "--train or --split"),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SynthesisEvaluation:
    """What came out; the same lies in the output folder."""

    problems: tuple[str, ...]
    """One line for each case that cannot be read."""
    summary: Mapping[str, Any]
    table: str


@dataclass(kw_only=True)
class Reader:
    """Reads cases, keeps their descriptions, and the panels of those that are drawn."""

    features: RandomConvolutions | Segmenter
    segmenter: Segmenter | None
    spacing_mm: float
    pictures: bool
    problems: list[str] = field(default_factory=list)
    panels: dict[str, list[tuple[str, synthesis_pictures.Panels]]] = field(default_factory=dict)

    def read(self, name: str, cases: Sequence[Case], bar: Progress) -> list[Description]:
        """Describe the cases of a set; a bad one is noted and left out."""
        found = []
        training = name == "training"
        drawn = set(_evenly(len(cases), synthesis_pictures.ROWS)) if self.pictures else set()
        thumbnails = _evenly(len(cases), 0 if training else THUMBNAILS)
        for number, case in enumerate(cases):
            try:
                scans = load_scans(case, self.spacing_mm)
                found.append(
                    describe(
                        scans, self.features, None if training else self.segmenter,
                        thumbnail=number in thumbnails,
                    )
                )  # fmt: skip
                if number in drawn and not training:
                    row = (case.id, synthesis_pictures.panels_of(scans))
                    self.panels.setdefault(name, []).append(row)
            except SynthError as error:
                self.problems.append(_one_line(name, case, error))
                log.warning(self.problems[-1])
            bar.advance()
        if len(found) < LEAST[name]:
            raise SynthError(
                f"{name}: {len(found)} of {len(cases)} cases can be judged, "
                f"{LEAST[name]} are needed",
                hint=self.problems[0] if self.problems else "give more cases",
            )
        return found


def evaluate_synthesis(
    pred_dir: Path,
    truth_dir: Path,
    out: Path,
    *,
    train_dir: Path | None = None,
    split: Path | None = None,
    segmenter: Path | None = None,
    keep: Sequence[str] = (),
    **options: Any,
) -> SynthesisEvaluation:
    """Judge made scans; write per_case.csv, summary.json, table.md and pictures.

    Args:
        pred_dir: cases with t1n, t1c, t2w, t2f and, for what needs labels, seg: any BraTS naming.
        truth_dir: real cases that no model was trained on.
        out: folder to write.
        train_dir: real cases the model was trained on: shows copies.
        split: decathlon-style JSON: of `truth_dir`, its testing cases are the truth and, without
            `train_dir`, its training cases what the model was trained on.
        segmenter: segmentation checkpoint, trained on real cases: gives features, and says
            whether the tumour is where the labels are.
        keep: rules on columns of per_case.csv; writes kept.json and dropped.csv.
        **options: see `Options`.
    """
    began = time.monotonic()
    wish = Options(**options)
    rules = quality_filter.parse_rules(keep)
    if (out / SUMMARY).exists() and not wish.force:
        raise SynthError(f"{out} holds an evaluation already", hint="--force overwrites it")
    sets = {"generated": find_scans(pred_dir, wish.scheme)}
    sets |= real_sets(truth_dir, train_dir, split, wish.scheme)
    columns = column_names(segmenter=segmenter is not None, training="training" in sets)
    quality_filter.require_columns(rules, columns, NEEDS)
    judge = Segmenter(segmenter, pick(wish.device)) if segmenter else None
    reader = Reader(
        features=judge or RandomConvolutions(), segmenter=judge,
        spacing_mm=common_spacing_mm(sets["generated"], sets["real"]), pictures=wish.pictures,
    )  # fmt: skip
    with Progress(sum(map(len, sets.values())), label="read", unit="case") as bar:
        read = {name: reader.read(name, cases, bar) for name, cases in sets.items()}
    jury = Jury(read["real"], read.get("training", ()))
    verdicts = {
        name: jury.judge(own, training=name == "training")
        for name, own in read.items()
        if name != "real"
    }
    rows = {d.case.id: row for d, row in zip(read["generated"], verdicts["generated"].rows,
                                             strict=True)}  # fmt: skip
    gate = _gate(out, rules, rows, read["generated"])
    if wish.pictures:
        _draw(out, reader, read)
    facts = manifest(
        "evaluate synthesis",
        {"pred": pred_dir, "truth": truth_dir, "train": train_dir, "split": split, "out": out,
         "segmenter": segmenter, "keep": list(keep)},
        (),
        files={n: {d.case.id: quality_filter.scans_hash(d.case) for d in own}
               for n, own in read.items()},
        seconds=round(time.monotonic() - began, 2),
    )  # fmt: skip
    summary = facts | {
        "problems": reader.problems,
        "spacing_mm": reader.spacing_mm,
        "features": reader.features.name,
        "real": jury.numbers(jury.verdict, read["real"]) | {"halves": jury.floor},
        **{name: jury.numbers(verdict, read[name]) for name, verdict in verdicts.items()},
        "copies": _copies(verdicts["generated"], read),
        "copy_distance": jury.memory.threshold if jury.memory else None,
        "signs": jury.expected,
        "gate": gate,
    }
    _write_csv(out / "per_case.csv", read, {"real": jury.verdict, **verdicts}, jury)
    tables = synthesis_tables.tables(summary)
    with atomic_path(out / "table.md") as temporary:
        parts = [f"{head}\n\n{markdown_table(t)}\n" for head, t in tables]
        temporary.write_text("\n".join(parts), encoding="utf-8")
    write_json(out / SUMMARY, summary)  # last: it says that all is there
    return SynthesisEvaluation(
        problems=tuple(reader.problems),
        summary=summary,
        table="\n\n".join(plain_table(t) for _, t in tables[:3]),
    )


@dataclass(frozen=True, kw_only=True)
class Options:
    """How an evaluation is done."""

    scheme: str = "auto"
    """Label scheme of all folders; auto infers each case's from its id."""
    pictures: bool = True
    device: str = "cpu"
    """Where the segmenter runs."""
    force: bool = False
    """Overwrite an earlier evaluation."""


def _gate(
    out: Path,
    rules: Sequence[Rule],
    rows: Mapping[str, Mapping[str, float]],
    made: Sequence[Description],
) -> dict[str, Any] | None:
    if not rules:
        return None
    reasons = quality_filter.judge_rows(rules, rows)
    return quality_filter.write_gate(out, rules, reasons, {d.case.id: d.case for d in made})


def _copies(verdict: Verdict, read: Mapping[str, Sequence[Description]]) -> list[dict[str, Any]]:
    """Name the copies, and what they are copies of."""
    if verdict.copied is None or verdict.nearest is None:
        return []
    near = verdict.nearest
    return [
        {
            "case": read["generated"][i].case.id,
            "training": read["training"][near.index[i]].case.id,
            "distance": float(near.distance[i]),
        }
        for i in np.flatnonzero(verdict.copied).tolist()
    ]


def _draw(out: Path, reader: Reader, read: Mapping[str, Sequence[Description]]) -> None:
    shown = {name: read[name] for name in ("generated", "real")}
    synthesis_pictures.page(reader.panels, out / "page.png")
    synthesis_pictures.spectra(
        {n: np.stack([d.energies for d in own]) for n, own in shown.items()}, out / "spectra.png"
    )
    synthesis_pictures.intensities(
        {n: [d.row for d in own] for n, own in shown.items()}, out / "intensities.png"
    )


def _write_csv(
    path: Path,
    read: Mapping[str, Sequence[Description]],
    verdicts: Mapping[str, Verdict],
    jury: Jury,
) -> None:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    names = list(dict.fromkeys(n for v in verdicts.values() for row in v.rows for n in row))
    lines.writerow(["set", "case", *names, "nearest_training"])
    for name, own in read.items():
        near = verdicts[name].nearest
        for i, (described, row) in enumerate(zip(own, verdicts[name].rows, strict=True)):
            cells = [repr(float(row.get(n, math.nan))) for n in names]
            other = "" if near is None else jury.train[near.index[i]].case.id
            lines.writerow([name, described.case.id, *cells, other])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _one_line(name: str, case: Case, error: SynthError) -> str:
    hint = f" → {error.hint}" if error.hint else ""
    return f"{name} {case.id}: {error.message.removeprefix(f'{case.id}: ')}{hint}"


def _evenly(count: int, most: int) -> list[int]:
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
