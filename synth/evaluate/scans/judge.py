"""The judge of generated scans: realistic, tumour in the right place, new?

Everything stands beside what unseen real cases score among themselves. All cases are brought to one
voxel size, the coarser of the sets, since texture depends on it. `--keep` sorts out single cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from synth.base.devices import pick
from synth.base.files import atomic_path
from synth.data.case import MODALITIES, Case
from synth.data.volume import Volume
from synth.evaluate import quality_filter
from synth.evaluate.common import (
    Evaluation,
    EvaluationRun,
    evenly,
)
from synth.evaluate.quality_filter import Rule
from synth.evaluate.scans import tables as synthesis_tables
from synth.evaluate.scans import two_sample
from synth.evaluate.scans.features import (
    DICE,
    Description,
    RandomConvolutions,
    TumourSegmenter,
    column_names,
    describe,
)
from synth.evaluate.scans.reference import ScanComparison, ScanReference
from synth.evaluate.scans.scan_case import (
    LEVELS,
    TUMOUR,
    Scans,
    column,
    common_spacing_mm,
    find_scans,
    is_painted,
    load_scans,
    real_sets,
)
from synth.evaluate.tables import plain_table
from synth.pictures.montage import draw_montage
from synth.pictures.slices import BACKGROUND as DARK
from synth.pictures.slices import INK, PLANES, cut_planes, find_frame, find_middle
from synth.training.log import Progress

ROWS = 6
"""Real and made rows each."""
COLOURS = {"generated": "#3ec8f5", "real": "#f5d90a"}
Panels = list[np.ndarray]
LEAST = {"generated": 2, "real": 4, "training": 3}
THUMBNAILS = 24
"""Cases of a set that diversity is measured on."""
NEEDS = {
    **dict.fromkeys(DICE, "--segmenter"),
    **dict.fromkeys(("copied", "nearest_distance"), "--train or --split"),
}


def panels_of(scans: Scans) -> Panels:
    """Cut three planes of every contrast through the middle of the tumour, or of the brain."""
    tumour = scans.classes > 0 if scans.classes is not None else np.zeros_like(scans.brain)
    middle = tumour if tumour.any() else scans.brain
    centre = find_middle(middle)
    brain, *contrasts = (
        cut_planes(Volume(data=array[None], affine=np.eye(4)), centre)
        for array in (scans.brain, *scans.image)
    )
    frames = [find_frame(plane) for plane in brain]
    return [
        plane[frame] for planes in contrasts for plane, frame in zip(planes, frames, strict=True)
    ]


def page(sets: Mapping[str, Sequence[tuple[str, Panels]]], path: Path, *, seed: int = 0) -> Path:
    """Draw the sets' rows in mixed order: which are made is to be seen, not to be expected."""
    rows = [(kind, *row) for kind, own in sets.items() for row in own]
    order = np.random.default_rng(seed).permutation(len(rows))
    mixed = [rows[i] for i in order]
    return draw_montage(
        [panels for _, _, panels in mixed],
        path,
        row_labels=[f"{kind}\n{name}" for kind, name, _ in mixed],
        column_labels=[f"{m} {plane}" for m in MODALITIES for plane in PLANES],
        window=(0, 1.2),
    )


def spectra(sets: Mapping[str, np.ndarray], path: Path) -> Path:
    """Plot the energy of Haar levels by contrast: mean ± sd over the cases of each set.

    Args:
        sets: (cases, 4, levels, 7) ln energies.
        path: PNG to write.
    """
    scale = np.arange(1, LEVELS + 1)

    def draw(axes, contrast: int) -> None:
        for name, energies in sets.items():
            values = np.log10(np.e) * energies[:, contrast].mean(axis=-1)  # (cases, levels)
            values = values[np.isfinite(values).all(axis=1)]
            if not len(values):
                continue
            mean, sd = values.mean(axis=0), values.std(axis=0)
            axes.plot(scale, mean, marker="o", color=COLOURS[name], label=name)
            axes.fill_between(scale, mean - sd, mean + sd, color=COLOURS[name], alpha=0.2)
        axes.set_xticks(scale, [str(2**s) for s in scale])
        axes.set_xlabel("detail, voxels")

    return _four(draw, path, "log10 energy / brain variance")


def intensities(sets: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> Path:
    """Plot every case's mean brightness of the tumour's regions, in sd of the healthy brain."""
    places = np.arange(len(TUMOUR))

    def draw(axes, contrast: int) -> None:
        rng = np.random.default_rng(0)
        for number, (name, rows) in enumerate(sets.items()):
            for place, region in zip(places, TUMOUR, strict=True):
                values = column(rows, f"{region}_{MODALITIES[contrast]}_mean")
                across = place + 0.3 * (number - 0.5) + rng.uniform(-0.08, 0.08, len(values))
                label = name if place == 0 else None
                axes.scatter(across, values, s=9, color=COLOURS[name], alpha=0.7, label=label)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_xticks(places, list(TUMOUR))

    return _four(draw, path, "brighter than brain, sd")


def _four(draw, path: Path, unit: str) -> Path:
    """Make a row of four plots, one a contrast."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), dpi=120, facecolor=DARK, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for number, axes in enumerate(figure.subplots(1, len(MODALITIES))):
        axes.set_facecolor(DARK)
        axes.tick_params(colors=INK, labelsize=7)
        draw(axes, number)
        axes.set_title(MODALITIES[number], color=INK, fontsize=9)
        axes.xaxis.label.set_color(INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
        if number == 0:
            axes.set_ylabel(unit, color=INK, fontsize=8)
            axes.legend(fontsize=7, facecolor=DARK, labelcolor=INK, edgecolor=INK)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        canvas.print_png(stream)
    return path


@dataclass(kw_only=True)
class Reader:
    """Reads cases, keeps their descriptions, and the panels of those that are drawn."""

    run: EvaluationRun
    features: RandomConvolutions | TumourSegmenter
    segmenter: TumourSegmenter | None
    spacing_mm: float
    pictures: bool
    around: bool
    """The made cases are painted ones: the two-sample test looks at the tumour and about it."""
    panels: dict[str, list[tuple[str, Panels]]] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """Say how cases were read."""
        place = "in and around the tumour" if self.around else "outside the tumour"
        return {
            "spacing_mm": self.spacing_mm, "features": self.features.name, "looked_at": place,
        }  # fmt: skip

    def read(self, name: str, cases: Sequence[Case], bar: Progress) -> list[Description]:
        """Describe the cases of a set; a bad one is noted and left out."""
        training = name == "training"
        number_of = {case.id: number for number, case in enumerate(cases)}
        drawn, thumbnails = (
            {cases[i].id for i in evenly(len(cases), 0 if training else most)}
            for most in (ROWS * self.pictures, THUMBNAILS)
        )

        def describe_case(case: Case) -> Description:
            scans = load_scans(case, self.spacing_mm)
            segmenter = None if training else self.segmenter
            looks = {} if training else {"": two_sample.looks(scans, around=self.around)}
            if name == "real":
                number = number_of[case.id]
                other = load_scans(cases[number - 1], self.spacing_mm)
                copies = two_sample.spoiled(scans, other, number)
                looks |= {k: two_sample.looks(c, around=self.around) for k, c in copies}
            found = describe(
                scans, self.features, segmenter, looks=looks, thumbnail=case.id in thumbnails
            )
            if case.id in drawn:
                row = (case.id, panels_of(scans))
                self.panels.setdefault(name, []).append(row)
            return found

        least = LEAST[name]
        return list(self.run.judge_each(cases, describe_case, bar, name=name, least=least))


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
) -> Evaluation:
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
        **options: see `JudgeOptions`.
    """
    wish = JudgeOptions(**options)
    rules = quality_filter.parse_rules(keep)
    run = EvaluationRun("synthesis", out, force=wish.force, pred=pred_dir, truth=truth_dir,
                        train=train_dir, split=split, segmenter=segmenter,
                        keep=list(keep))  # fmt: skip
    sets = {"generated": find_scans(pred_dir, wish.scheme)}
    sets |= real_sets(truth_dir, train_dir, split, wish.scheme)
    columns = column_names(segmenter=segmenter is not None, training="training" in sets)
    quality_filter.require_columns(rules, columns, NEEDS)
    judge = TumourSegmenter(segmenter, pick(wish.device)) if segmenter else None
    reader = Reader(
        run=run, features=judge or RandomConvolutions(), segmenter=judge,
        spacing_mm=common_spacing_mm(sets["generated"], sets["real"]), pictures=wish.pictures,
        around=all(map(is_painted, sets["generated"])),
    )  # fmt: skip
    with Progress(sum(map(len, sets.values())), label="read", unit="case") as bar:
        read = {name: reader.read(name, cases, bar) for name, cases in sets.items()}
    reference = ScanReference(read["real"], read.get("training", ()))
    verdicts = {n: reference.judge(read[n], training=n == "training") for n in read if n != "real"}
    if wish.pictures:
        _draw(out, reader, read)
    results = {
        **reader.described(),
        "real": reference.numbers(reference.verdict, read["real"]) | {"halves": reference.floor},
        **{name: reference.numbers(verdict, read[name]) for name, verdict in verdicts.items()},
        "two_sample": two_sample.judge(read["generated"], read["real"]),
        "copies": _copies(verdicts["generated"], read),
        "copy_distance": 1 - reference.copies.rule.threshold if reference.copies else None,
        "signs": reference.expected,
        "gate": _gate(out, rules, verdicts["generated"], read["generated"]),
    }
    tables = synthesis_tables.tables(results)
    return run.write(
        tables,
        results,
        _per_case(read, {"real": reference.verdict, **verdicts}, reference),
        "\n\n".join(plain_table(t) for _, t in tables[:3]),
        files=_hashes(read),
    )


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """How an evaluation is done."""

    scheme: str = "auto"
    """Label scheme of all folders; auto infers each case's from its id."""
    pictures: bool = True
    device: str = "cpu"
    """Where the segmenter runs."""
    force: bool = False
    """Overwrite an earlier evaluation."""


def _hashes(read: Mapping[str, Sequence[Description]]) -> dict[str, dict[str, str]]:
    return {
        name: {d.case.id: quality_filter.scans_hash(d.case) for d in own}
        for name, own in read.items()
    }


def _gate(
    out: Path,
    rules: Sequence[Rule],
    verdict: ScanComparison,
    made: Sequence[Description],
) -> dict[str, Any] | None:
    if not rules:
        return None
    rows = {d.case.id: row for d, row in zip(made, verdict.rows, strict=True)}
    reasons = quality_filter.judge_rows(rules, rows)
    return quality_filter.write_gate(out, rules, reasons, {d.case.id: d.case for d in made})


def _copies(
    verdict: ScanComparison, read: Mapping[str, Sequence[Description]]
) -> list[dict[str, Any]]:
    """Name the copies, and what they are copies of."""
    if verdict.copied is None or verdict.nearest is None:
        return []
    near = verdict.nearest
    return [
        {
            "case": read["generated"][i].case.id,
            "training": read["training"][near.index[i]].case.id,
            "distance": float(1 - near.closeness[i]),
        }
        for i in np.flatnonzero(verdict.copied).tolist()
    ]


def _draw(out: Path, reader: Reader, read: Mapping[str, Sequence[Description]]) -> None:
    shown = {name: read[name] for name in ("generated", "real")}
    page(reader.panels, out / "page.png")
    spectra(
        {n: np.stack([d.energies for d in own]) for n, own in shown.items()}, out / "spectra.png"
    )
    intensities({n: [d.row for d in own] for n, own in shown.items()}, out / "intensities.png")


def _per_case(
    read: Mapping[str, Sequence[Description]],
    verdicts: Mapping[str, ScanComparison],
    reference: ScanReference,
) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and lines of per_case.csv."""
    names = list(dict.fromkeys(n for v in verdicts.values() for row in v.rows for n in row))
    lines = []
    for name, own in read.items():
        near = verdicts[name].nearest
        for i, (described, row) in enumerate(zip(own, verdicts[name].rows, strict=True)):
            other = "" if near is None else reference.train[near.index[i]].case.id
            cells = (float(row.get(n, math.nan)) for n in names)
            lines.append([name, described.case.id, *cells, other])
    return ["set", "case", *names, "nearest_training"], lines
