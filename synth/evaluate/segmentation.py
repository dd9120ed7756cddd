"""The judge of segmentations: each region, whole and lesion by lesion, as in BraTS.

A case that cannot be judged (no prediction, another grid, a damaged file, a label outside the
scheme) is one line and in no mean; the others go on. The official script of 2025 skips such a case
silently, and compares voxels without a look at the affine; see `segmentation_scores` for what
happens to numbers that do not exist.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from synth.base.files import file_hash
from synth.data.case import Case, require_scheme, require_unique
from synth.data.volume import Volume
from synth.evaluate import segmentation_scores as scores
from synth.evaluate.common import (
    Evaluation,
    EvaluationRun,
    find_cases,
    find_nifti,
    only_file,
)
from synth.evaluate.segmentation_scores import RegionScore
from synth.evaluate.tables import plain_table
from synth.metrics.surface import Convention
from synth.pictures.montage import Marks, draw_montage
from synth.pictures.slices import LABEL_COLOURS, cut_slice, find_frame
from synth.training.log import Progress

PAGE_WORST, PAGE_MEDIAN = 4, 2
BACKDROPS = ("t2f", "t1c", "t2w", "t1n")
ERRORS = {1: "#f5a524", 2: "#3ec8f5"}  # missed, false
BLANK_MARGIN = 12  # voxels around a tumour where no scan is beside it

log = logging.getLogger(__name__)


def evaluate_segmentation(
    pred_dir: Path,
    truth_dir: Path,
    out: Path,
    *,
    conventions: Sequence[Convention] = scores.CONVENTIONS,
    split: Path | None = None,
    scheme: str = "auto",
    pictures: bool = True,
    force: bool = False,
) -> Evaluation:
    """Judge label maps; write per_case.csv, summary.json, table.md and cases.png.

    Args:
        pred_dir: `<case>-seg.nii.gz` or `<case>.nii.gz`, flat or in folders.
        truth_dir: cases with a label map, in any BraTS naming.
        out: folder to write.
        conventions: 2023, 2025, or both; they are never mixed in one table.
        split: judge only the testing cases of this decathlon-style JSON.
        scheme: label scheme of both folders; auto infers each case's from its id.
        pictures: draw the worst cases and those about the median.
        force: overwrite an earlier evaluation.
    """
    _require_known(conventions)
    run = EvaluationRun("segmentation", out, force=force, pred=pred_dir, truth=truth_dir,
                        split=split, scheme=scheme, conventions=list(conventions))  # fmt: skip
    cases = _labelled_cases(truth_dir, split, scheme)
    predictions = _predictions(pred_dir)

    def judged_case(case: Case) -> tuple[Case, Path, list[RegionScore]]:
        path = _prediction_of(case, predictions)
        return case, path, judge(case, path, conventions)

    with Progress(len(cases), label="evaluate", unit="case") as bar:
        found = list(run.judge_each(cases, judged_case, bar))
    rows = [row for _, _, own in found for row in own]
    judged = {case.id: (case, path) for case, path, _ in found}
    if pictures:
        draw_page(rows, judged, out / "cases.png")
    summary = scores.summarise(rows)
    used = {path for _, path, _ in found}
    ignored = (str(p) for paths in predictions.values() for p in paths if p not in used)
    heads = {name: f"BraTS {name}, mean ± sd. {scores.POLICY[name]}." for name in conventions}
    tables = [(heads[name], scores.table_rows(summary[name])) for name in conventions]
    return run.write(
        tables,
        {
            "cases": len(judged),
            "predictions_not_used": sorted(ignored),
            "policy": {name: scores.POLICY[name] for name in conventions},
            "official_names": {name: scores.OFFICIAL[name] for name in conventions},
            "conventions": summary,
        },
        scores.score_lines(rows),
        "\n\n".join(f"{head}\n{plain_table(lines)}" for head, lines in tables),
        # Truth and prediction often have the same name.
        files={
            "truth": {name: file_hash(case.path("seg")) for name, (case, _) in judged.items()},
            "prediction": {name: file_hash(path) for name, (_, path) in judged.items()},
        },
    )


def _require_known(conventions: Sequence[str]) -> None:
    for name in conventions:
        if name not in scores.CONVENTIONS:
            raise SynthError(f"no convention '{name}'", hint=did_you_mean(name, scores.CONVENTIONS))


def _predictions(folder: Path) -> dict[str, list[Path]]:
    hint = "names are like <case>-seg.nii.gz or <case>.nii.gz"
    found = find_nifti(folder, hint)
    if not found:
        raise SynthError(f"{folder}: no label maps", hint=hint)
    return found


def _prediction_of(case: Case, predictions: Mapping[str, list[Path]]) -> Path:
    require_unique([case])
    return only_file(predictions, (f"{case.id}-seg", f"{case.id}_seg", case.id))


def _labelled_cases(truth_dir: Path, split: Path | None, scheme: str) -> list[Case]:
    cases = find_cases(truth_dir, split, scheme)
    if split is None:
        cases = [case for case in cases if "seg" in case.files]
        if not cases:
            raise SynthError(f"{truth_dir}: no label maps", hint="names are like <case>-seg.nii.gz")
    return cases


def judge(case: Case, path: Path, conventions: Sequence[Convention]) -> list[RegionScore]:
    """Score the prediction of a case by each convention."""
    truth, pred = _load(case, path)
    return [
        row
        for convention in conventions
        for row in scores.score_labels(
            pred.data[0], truth.data[0], truth.spacing_mm, convention,
            case=case.id, patient=case.patient, scheme=case.scheme,
        )
    ]  # fmt: skip


def draw_page(
    rows: Sequence[RegionScore], judged: Mapping[str, tuple[Case, Path]], path: Path
) -> Path:
    """Draw the worst cases and those about the median by mean Dice: scan, truth, prediction."""
    first = rows[0].convention
    dice = {r.case: r.values["dice"] for r in rows if (r.region, r.convention) == ("mean", first)}
    chosen = worst_and_median({c: v for c, v in dice.items() if np.isfinite(v)} or dice)
    panels: list[list[np.ndarray]] = []
    marks: dict[tuple[int, int], Marks] = {}
    labels: list[str] = []
    for number, (case_id, rank) in enumerate(chosen.items()):
        row, layers = _panels(*judged[case_id])
        panels.append(row)
        marks |= {(number, column): layer for column, layer in layers.items()}
        labels.append(f"{case_id}\n{rank}: Dice {dice[case_id]:.3f}")
    return draw_montage(
        panels, path, row_labels=labels, marks=marks,
        column_labels=("scan", "truth", "prediction", "missed orange, false blue"),
        title=f"Worst and median of {len(dice)} cases by mean Dice; NCR red, ED green, ET yellow",
    )  # fmt: skip


def worst_and_median(values: Mapping[str, float]) -> dict[str, str]:
    """Return case → why it is shown: the lowest values, then those about the median."""
    ranked = sorted(values, key=lambda case: (values[case], case))
    worst = ranked[:PAGE_WORST]
    rest = ranked[len(worst) :]
    middle = max(len(ranked) // 2 - PAGE_MEDIAN // 2 - len(worst), 0)
    return dict.fromkeys(worst, "worst") | dict.fromkeys(
        rest[middle : middle + PAGE_MEDIAN], "median"
    )


def _load(case: Case, path: Path) -> tuple[Volume, Volume]:
    truth, pred = case.load("seg"), Volume.load_labels(path)
    truth.require_same_grid(pred, ("truth", "prediction"))
    require_scheme(pred.data, case.scheme, name=path.name)
    return truth, pred


def _panels(case: Case, path: Path) -> tuple[list[np.ndarray], dict[int, Marks]]:
    """One axial slice, where most voxels are wrong (if none is, where the truth is largest)."""
    truth, pred = (
        labels.with_data(_shown(labels.data[0], case.scheme)) for labels in _load(case, path)
    )
    axis = int(np.flatnonzero(nib.orientations.io_orientation(truth.affine)[:, 0] == 2)[0])
    others = tuple(dim for dim in range(3) if dim != axis)
    wrong = truth.data[0] != pred.data[0]
    index = int((wrong if wrong.any() else truth.data[0] > 0).sum(axis=others).argmax())
    image, true, made = (
        cut_slice(volume, "axial", index) for volume in (_backdrop(case, truth), truth, pred)
    )
    tumour = (true > 0) | (made > 0)
    frame = find_frame(image > 0) if image.any() else find_frame(tumour, BLANK_MARGIN)
    image, true, made = image[frame], true[frame], made[frame]
    error = np.where(made > 0, 2, 1) * ((true > 0) != (made > 0))
    layers: dict[int, Marks] = {
        1: (true, LABEL_COLOURS, True), 2: (made, LABEL_COLOURS, True), 3: (error, ERRORS, False),
    }  # fmt: skip
    return [image] * 4, layers


def _backdrop(case: Case, truth: Volume) -> Volume:
    """Return the scan that contours are drawn on; black where there is none."""
    for role in (r for r in BACKDROPS if r in case.files):
        try:
            scan = case.load(role)
            truth.require_same_grid(scan, ("truth", role))
        except SynthError as error:
            log.warning("%s: drawn without %s: %s", case.id, role, error.message)
            continue
        return scan
    return truth.with_data(np.zeros(truth.shape, np.float32))


def _shown(labels: np.ndarray, scheme: str) -> np.ndarray:
    """Number labels for display as 2023 does: 2 in WT, 1 in TC, 3 in ET."""
    found = scores.judged_regions(scheme)
    shown = np.zeros(labels.shape, np.uint8)
    for name, number in zip(scores.REGIONS, (2, 1, 3), strict=True):
        shown[np.isin(labels, found[name])] = number
    return shown
