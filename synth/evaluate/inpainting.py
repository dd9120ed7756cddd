"""The judge of inpainting: the challenge's metrics, beside classical fills.

All methods are judged on the same cases, inside the healthy mask, by `synth.metrics.image`. A case
that cannot be judged (no prediction, another grid, a damaged file) is left out for every method and
reported; the others go on. The fills get the voided scan and the whole hole, tumour and all, as a
network does; what the truth holds there never reaches them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from synth.data.case import Case
from synth.data.fill import BASELINES
from synth.data.volume import Volume
from synth.evaluate import tables as scoreboard
from synth.evaluate.common import (
    Evaluation,
    EvaluationRun,
    evenly,
    find_cases,
    find_nifti,
    only_file,
)
from synth.evaluate.inpainting_case import KnownHole, fill_native, load_hole
from synth.evaluate.tables import Score, plain_table
from synth.metrics.downstream_use import DownstreamUse
from synth.metrics.image import inpainting_metrics
from synth.pictures import inpainting
from synth.training.log import Progress

PREDICTION = "prediction"
PAIRED = ("ssim", "psnr_01", "mse")
OVERVIEW_CASES = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A case with every method's answer and score."""

    known: KnownHole
    answers: dict[str, np.ndarray]
    scores: list[Score]
    sd: np.ndarray | None
    inputs: list[Path]


def evaluate_inpainting(  # noqa: PLR0913 - all but three by name
    pred_dir: Path | None,
    truth_dir: Path,
    out: Path,
    *,
    baselines: Sequence[str] = ("all",),
    split: Path | None = None,
    pictures: bool = True,
    force: bool = False,
    progress: bool = False,
    use: bool = False,
) -> Evaluation:
    """Judge predictions and baselines; write per_case.csv, summary.json, table.md and pictures.

    Args:
        pred_dir: `<case>-t1n-inference.nii.gz` or `<case>.nii.gz`, flat or in case folders; None
            judges the baselines alone.
        truth_dir: cases with t1n, mask-healthy, and t1n-voided or mask.
        out: folder to write.
        baselines: names of `BASELINES` (`mirror-rim` will do for "mirror + rim"), all, or none.
        split: judge only the testing cases of this decathlon-style JSON.
        pictures: draw each case, and an overview.
        force: overwrite an earlier evaluation.
        progress: show a progress bar.
        use: judge the answers by their use, too: sharpness, tissues, registration.
    """
    fills = choose_baselines(baselines)
    if pred_dir is None and not fills:
        raise SynthError("nothing to judge: neither predictions nor baselines")
    run = EvaluationRun("inpainting", out, force=force, pred=pred_dir, truth=truth_dir,
                        baselines=list(fills), split=split)  # fmt: skip
    hint = "the word `baselines` judges the baselines alone"
    predictions = None if pred_dir is None else find_nifti(pred_dir, hint)
    cases = find_cases(truth_dir, split)
    shown = PREDICTION if predictions is not None else next(reversed(fills))
    scores: list[Score] = []
    inputs: list[Path] = []
    views: dict[str, inpainting.HoleView] = {}
    with Progress(len(cases), label="evaluate", unit="case", shown=progress) as bar:
        for judged in run.judge_each(
            cases, lambda case: judge(case, predictions, fills, use=use), bar
        ):
            scores += judged.scores
            inputs += judged.inputs
            if pictures:
                case_id = judged.scores[0].case
                views[case_id] = _draw(judged, shown, out / "pictures" / f"{case_id}.png")
    if views:
        _draw_overview(views, scores, shown, out / "overview.png")
    results = _results(scores, shown)
    used = {str(p) for p in inputs}
    given = (str(p) for paths in (predictions or {}).values() for p in paths)
    tables = list(_tables(results))
    metrics = list(scores[0].values)
    return run.write(
        tables,
        {"predictions_not_used": sorted(p for p in given if p not in used)} | results,
        (
            ["case", "method", *metrics, "hole_voxels"],
            ([s.case, s.method, *(float(s.values[m]) for m in metrics), s.voxels] for s in scores),
        ),
        "\n\n".join(plain_table(rows) for _, rows in tables),
        inputs=inputs,
    )


def choose_baselines(names: Sequence[str]) -> dict[str, Callable[..., np.ndarray]]:
    """Return the fills by name; `all` and `none` stand alone."""
    if list(names) == ["all"]:
        return dict(BASELINES)
    if list(names) in (["none"], []):
        return {}
    known = {_slug(name): name for name in BASELINES}
    for name in names:
        if _slug(name) not in known:
            raise SynthError(
                f"no baseline '{name}'", hint=did_you_mean(_slug(name), [*known, "all", "none"])
            )
    return {known[s]: BASELINES[known[s]] for s in map(_slug, names)}


def judge(
    case: Case,
    predictions: Mapping[str, list[Path]] | None,
    fills: Mapping[str, Callable[..., np.ndarray]],
    *,
    use: bool = False,
) -> Judged:
    """Score the prediction of a case, if there are any, and every fill."""
    inputs = [case.path(r) for r in ("t1n", "healthy")]
    inputs += [case.files[r] for r in ("voided", "mask", "unhealthy") if r in case.files]
    known = load_hole(case)
    answers: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    sd = None
    if predictions is not None:
        path = only_file(predictions, (f"{case.id}-t1n-inference", case.id))
        answers[PREDICTION] = _on_grid(path, known, "prediction")
        inputs.append(path)
        if f"{case.id}-t1n-sd" in predictions:
            path = only_file(predictions, (f"{case.id}-t1n-sd",))
            sd = _on_grid(path, known, "sd map")
            inputs.append(path)
    for name, fill in fills.items():
        began = time.monotonic()
        answers[name] = fill_native(fill, known)
        seconds[name] = time.monotonic() - began
    downstream = DownstreamUse(known.truth, known.healthy) if use else None
    scores = [
        Score(
            case=case.id,
            patient=case.patient,
            method=name,
            values=inpainting_metrics(answer, known.truth.data[0], known.voided, known.healthy)
            | (downstream.metrics(answer) if downstream else {}),
            voxels=int(known.healthy.sum()),
            seconds=seconds.get(name),
        )
        for name, answer in answers.items()
    ]
    return Judged(known=known, answers=answers, scores=scores, sd=sd, inputs=inputs)


def _on_grid(path: Path, known: KnownHole, name: str) -> np.ndarray:
    volume = Volume.load(path)
    known.truth.require_same_grid(volume, ("t1n", name))
    return volume.data[0]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z]+", "-", name.lower()).strip("-")


def _results(scores: Sequence[Score], shown: str) -> dict[str, Any]:
    results: dict[str, Any] = {
        "cases": len({s.case for s in scores}),
        "non_finite": scoreboard.NON_FINITE,
        "methods": scoreboard.summarise(scores),
    }
    if shown == PREDICTION:
        judged = [*PAIRED, *(m for m in scoreboard.USE if m in scores[0].values)]
        results["prediction_minus"] = scoreboard.differences(scores, PREDICTION, judged)
    return results


def _tables(summary: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    yield "Inside the healthy mask, mean ± sd.", scoreboard.method_rows(summary["methods"])
    if summary.get("prediction_minus"):
        rows = scoreboard.difference_rows(PREDICTION, summary["prediction_minus"])
        yield "Mean [95 % bootstrap interval], Wilcoxon p.", rows


def _draw(judged: Judged, shown: str, path: Path) -> inpainting.HoleView:
    known = judged.known
    seen = inpainting.cut_hole(
        known.truth, known.voided, known.healthy, known.hole, judged.answers, judged.sd
    )
    score = next(s for s in judged.scores if s.method == shown)
    inpainting.draw_case(seen, shown, path, title=f"{score.case}: {_in_words(score)}")
    return seen.axial()


def _draw_overview(
    views: Mapping[str, inpainting.HoleView], scores: Sequence[Score], shown: str, path: Path
) -> None:
    ranked = sorted((s for s in scores if s.method == shown), key=lambda s: s.values["mse"])
    # Evenly spaced from the best case to the worst.
    chosen = [ranked[i] for i in evenly(len(ranked), OVERVIEW_CASES)]
    inpainting.draw_overview(
        [views[s.case] for s in chosen],
        [f"{s.case}\n{_in_words(s)}" for s in chosen],
        shown,
        path,
        title=f"{shown}: from the best of {len(ranked)} cases to the worst, by MSE",
    )


def _in_words(score: Score) -> str:
    return f"SSIM {score.values['ssim']:.3f}, {score.values['psnr_01']:.1f} dB"
