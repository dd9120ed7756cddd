"""The verb evaluate: predictions against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from synth.errors import SynthError

ALONE = "baselines"


def evaluate(
    kind: Literal["inpainting", "masks"],
    pred: Path,
    truth: Path,
    *,
    out: Path,
    baselines: tuple[str, ...] = ("all",),
    split: Path | None = None,
    train: Path | None = None,
    scheme: str = "auto",
    no_pictures: bool = False,
    force: bool = False,
) -> int:
    """Judge what was made: filled brains by the challenge's metrics, or the shapes of masks.

    inpainting: beside the classical fills to beat. masks: label maps against real ones that no
    model was trained on, and against the training masks to find copies.
    Writes per_case.csv, summary.json, table.md and pictures (overview.png and one of each case, or
    masks.png). Exits with 2 when a case could not be judged; the others are.

    Args:
        kind: what was made: inpainting, holes in t1n; masks, tumour label maps.
        pred: inpainting: folder with <case>-t1n-inference.nii.gz or <case>.nii.gz; the word
            baselines judges the baselines alone. masks: folder with label maps.
        truth: inpainting: folder with t1n, mask-healthy, and t1n-voided or mask. masks: folder
            with real label maps. Any BraTS naming.
        out: folder to write.
        baselines: inpainting only: all, none, or some of brain-mean, rim-mean, harmonic,
            biharmonic, mirror, mirror-rim.
        split: judge only by the testing cases of this decathlon-style JSON; for masks its training
            cases are the training masks.
        train: masks only: folder with the label maps that the model was trained on.
        scheme: masks only: label scheme of all folders; auto infers it from each case's id.
        no_pictures: draw nothing.
        force: overwrite an earlier evaluation.
    """
    if kind == "masks":
        if baselines != ("all",):
            raise SynthError("--baselines is for inpainting", hint="leave it out")
        return _masks(
            pred, truth, out, train_dir=train, split=split, scheme=scheme,
            pictures=not no_pictures, force=force,
        )  # fmt: skip
    if train is not None or scheme != "auto":
        raise SynthError("--train and --scheme are for masks", hint="leave them out")
    from synth.judge_inpainting import evaluate_inpainting

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


def _masks(pred: Path, truth: Path, out: Path, **options: Any) -> int:
    from synth.judge_masks import evaluate_masks

    found = evaluate_masks(pred, truth, out, **options)
    print(found.table)
    copied = found.summary["copied"]
    for copy in copied[:10]:
        print(f"copied? {copy['mask']} is {copy['training']}: Dice {copy['dice']:.3f}")
    judged = found.summary["generated"]["masks"]
    print(
        f"\nmasks judged: {judged}, problems: {len(found.problems)}, copied: {len(copied)} → {out}"
    )
    return 2 if found.problems else 0
