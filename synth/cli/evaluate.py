"""The verb evaluate: predictions against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

ALONE = "baselines"


def evaluate(
    kind: Literal["inpainting"],
    pred: Path,
    truth: Path,
    *,
    out: Path,
    baselines: tuple[str, ...] = ("all",),
    split: Path | None = None,
    no_pictures: bool = False,
    force: bool = False,
) -> int:
    """Judge predictions by the challenge's metrics, beside the classical fills to beat.

    Writes per_case.csv, summary.json, table.md, overview.png and a picture of each case. Exits
    with 2 when a case could not be judged; the others are.

    Args:
        kind: what was predicted: inpainting, holes in t1n.
        pred: folder with <case>-t1n-inference.nii.gz or <case>.nii.gz; the word baselines judges
            the baselines alone.
        truth: folder with t1n, mask-healthy, and t1n-voided or mask, in any BraTS naming.
        out: folder to write.
        baselines: all, none, or some of brain-mean, rim-mean, harmonic, biharmonic, mirror,
            mirror-rim.
        split: judge only the testing cases of this decathlon-style JSON.
        no_pictures: draw nothing.
        force: overwrite an earlier evaluation.
    """
    from synth.judge_inpainting import evaluate_inpainting

    assert kind == "inpainting"
    found = evaluate_inpainting(
        None if str(pred) == ALONE else pred,
        truth,
        out,
        baselines=baselines,
        split=split,
        pictures=not no_pictures,
        force=force,
        progress=True,
    )
    print(found.table)
    print(f"\ncases judged: {found.summary['cases']}, not judged: {len(found.problems)} → {out}")
    return 2 if found.problems else 0
