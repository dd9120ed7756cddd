"""The judge of inpainting: the challenge's metrics, beside classical fills.

All methods are judged on the same cases, inside the healthy mask, by `synth.metrics.image`. A case
that cannot be judged (no prediction, another grid, a damaged file) is left out for every method and
reported; the others go on. The fills get the voided scan and the whole hole, tumour and all, as a
network does; what the truth holds there never reaches them.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from synth.base.files import atomic_path, write_json
from synth.base.manifest import manifest
from synth.data.case import Case, discover
from synth.data.fill import BASELINES
from synth.data.split import read_split
from synth.data.volume import Volume
from synth.evaluate import tables as scoreboard
from synth.evaluate.inpainting_case import KnownHole, fill_native, load_hole
from synth.evaluate.tables import Score
from synth.metrics.image import inpainting_metrics
from synth.pictures import inpainting
from synth.training.log import Progress

PREDICTION = "prediction"
PAIRED = ("ssim", "psnr_01", "mse")
SUMMARY = "summary.json"
OVERVIEW_CASES = 6

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """A case with every method's answer and score."""

    known: KnownHole
    answers: dict[str, np.ndarray]
    scores: list[Score]
    sd: np.ndarray | None
    inputs: list[Path]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came out; the same lies in the output folder."""

    scores: tuple[Score, ...]
    problems: tuple[str, ...]
    """One line for each case that could not be judged."""
    summary: Mapping[str, Any]
    table: str


def evaluate_inpainting(
    pred_dir: Path | None,
    truth_dir: Path,
    out: Path,
    *,
    baselines: Sequence[str] = ("all",),
    split: Path | None = None,
    pictures: bool = True,
    force: bool = False,
    progress: bool = False,
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
    """
    began = time.monotonic()
    fills = choose_baselines(baselines)
    if pred_dir is None and not fills:
        raise SynthError("nothing to judge: neither predictions nor baselines")
    if (out / SUMMARY).exists() and not force:
        raise SynthError(f"{out} holds an evaluation already", hint="--force overwrites it")
    predictions = None if pred_dir is None else find_predictions(pred_dir)
    cases = _cases(truth_dir, split)
    shown = PREDICTION if predictions is not None else next(reversed(fills))

    scores: list[Score] = []
    problems: list[str] = []
    inputs: list[Path] = []
    views: dict[str, inpainting.HoleView] = {}
    with Progress(len(cases), label="evaluate", unit="case", shown=progress) as bar:
        for case in cases:
            try:
                judged = judge(case, predictions, fills)
            except SynthError as error:
                problems.append(_one_line(case, error))
                log.warning(problems[-1])
            else:
                scores += judged.scores
                inputs += judged.inputs
                if pictures:
                    views[case.id] = _draw(judged, shown, out / "pictures" / f"{case.id}.png")
            bar.advance()
    if not scores:
        raise SynthError(
            f"none of {len(cases)} cases could be judged", hint=f"the first: {problems[0]}"
        )
    if views:
        _draw_overview(views, scores, shown, out / "overview.png")

    results = _results(scores, shown)
    used = {str(p) for p in inputs}
    facts = manifest(
        "evaluate inpainting",
        {
            "pred": pred_dir, "truth": truth_dir, "out": out, "baselines": list(fills),
            "split": split,
        },
        inputs,
        seconds=round(time.monotonic() - began, 2),
    )  # fmt: skip
    ignored = sorted(
        str(p) for paths in (predictions or {}).values() for p in paths if str(p) not in used
    )
    summary = facts | {"problems": problems, "predictions_not_used": ignored} | results
    table = _write(out, scores, summary)
    return Evaluation(scores=tuple(scores), problems=tuple(problems), summary=summary, table=table)


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


def find_predictions(folder: Path) -> dict[str, list[Path]]:
    """Return every NIfTI file below a folder by its name without ending."""
    if not folder.is_dir():
        raise SynthError(
            f"{folder}: no such folder", hint="the word `baselines` judges the baselines alone"
        )
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.nii*")):
        if path.is_file() and path.name.endswith((".nii", ".nii.gz")):
            found.setdefault(path.name.removesuffix(".gz").removesuffix(".nii"), []).append(path)
    return found


def judge(
    case: Case,
    predictions: Mapping[str, list[Path]] | None,
    fills: Mapping[str, Callable[..., np.ndarray]],
) -> Judged:
    """Score the prediction of a case, if there are any, and every fill."""
    inputs = [case.path(r) for r in ("t1n", "healthy")]
    inputs += [case.files[r] for r in ("voided", "mask", "unhealthy") if r in case.files]
    known = load_hole(case)
    answers: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    sd = None
    if predictions is not None:
        path = _the_one(predictions, (f"{case.id}-t1n-inference", case.id))
        answers[PREDICTION] = _on_grid(path, known, "prediction")
        inputs.append(path)
        if f"{case.id}-t1n-sd" in predictions:
            path = _the_one(predictions, (f"{case.id}-t1n-sd",))
            sd = _on_grid(path, known, "sd map")
            inputs.append(path)
    for name, fill in fills.items():
        began = time.monotonic()
        answers[name] = fill_native(fill, known)
        seconds[name] = time.monotonic() - began
    scores = [
        Score(
            case=case.id,
            patient=case.patient,
            method=name,
            values=inpainting_metrics(answer, known.truth.data[0], known.voided, known.healthy),
            voxels=int(known.healthy.sum()),
            seconds=seconds.get(name),
        )
        for name, answer in answers.items()
    ]
    return Judged(known=known, answers=answers, scores=scores, sd=sd, inputs=inputs)


def _cases(truth_dir: Path, split: Path | None) -> list[Case]:
    if split is None:
        return discover(truth_dir)
    cases = [entry.case for entry in read_split(split, truth_dir).testing]
    if not cases:
        raise SynthError(f"{split}: no testing cases", hint="without --split, all are judged")
    return cases


def _the_one(found: Mapping[str, list[Path]], names: Sequence[str]) -> Path:
    paths = [path for name in names for path in found.get(name, [])]
    if len(paths) == 1:
        return paths[0]
    if paths:
        raise SynthError(f"two files: {paths[0]} and {paths[1]}", hint="keep one of them")
    expected = " or ".join(f"{name}.nii.gz" for name in names)
    raise SynthError("no prediction", hint=f"expected {expected}")


def _on_grid(path: Path, known: KnownHole, name: str) -> np.ndarray:
    volume = Volume.load(path)
    known.truth.require_same_grid(volume, ("t1n", name))
    return volume.data[0]


def _one_line(case: Case, error: SynthError) -> str:
    hint = f" → {error.hint}" if error.hint else ""
    return f"{case.id}: {error.message.removeprefix(f'{case.id}: ')}{hint}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z]+", "-", name.lower()).strip("-")


def _results(scores: Sequence[Score], shown: str) -> dict[str, Any]:
    results: dict[str, Any] = {
        "cases": len({s.case for s in scores}),
        "non_finite": scoreboard.NON_FINITE,
        "methods": scoreboard.summarise(scores),
    }
    if shown == PREDICTION:
        results["prediction_minus"] = scoreboard.differences(scores, PREDICTION, PAIRED)
    return results


def _tables(summary: Mapping[str, Any]) -> Iterator[list[list[str]]]:
    yield scoreboard.method_rows(summary["methods"])
    if summary.get("prediction_minus"):
        yield scoreboard.difference_rows(PREDICTION, summary["prediction_minus"])


def _write(out: Path, scores: Sequence[Score], summary: Mapping[str, Any]) -> str:
    """Write tables and summary (last: it says that all is there); return the plain table."""
    scoreboard.write_csv(out / "per_case.csv", scores)
    tables = list(_tables(summary))
    heads = ("Inside the healthy mask, mean ± sd.", "Mean [95 % bootstrap interval], Wilcoxon p.")
    parts = [f"{heads[i]}\n\n{scoreboard.markdown_table(t)}\n" for i, t in enumerate(tables)]
    with atomic_path(out / "table.md") as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")
    write_json(out / SUMMARY, summary)
    return "\n\n".join(map(scoreboard.plain_table, tables))


def _draw(judged: Judged, shown: str, path: Path) -> inpainting.HoleView:
    known = judged.known
    seen = inpainting.view(
        known.truth, known.voided, known.healthy, known.hole, judged.answers, judged.sd
    )
    score = next(s for s in judged.scores if s.method == shown)
    inpainting.case_picture(seen, shown, path, title=f"{score.case}: {_in_words(score)}")
    return seen.axial()


def _draw_overview(
    views: Mapping[str, inpainting.HoleView], scores: Sequence[Score], shown: str, path: Path
) -> None:
    ranked = sorted((s for s in scores if s.method == shown), key=lambda s: s.values["mse"])
    # Evenly from the best case to the worst: nobody can pick the pretty ones.
    places = np.linspace(0, len(ranked) - 1, min(OVERVIEW_CASES, len(ranked))).round().astype(int)
    chosen = [ranked[i] for i in places]
    inpainting.overview(
        [views[s.case] for s in chosen],
        [f"{s.case}\n{_in_words(s)}" for s in chosen],
        shown,
        path,
        title=f"{shown}: from the best of {len(ranked)} cases to the worst, by MSE",
    )


def _in_words(score: Score) -> str:
    return f"SSIM {score.values['ssim']:.3f}, {score.values['psnr_01']:.1f} dB"
