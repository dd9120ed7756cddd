"""The verb evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from synth.base.errors import SynthError

ALONE = "baselines"


def evaluate(
    kind: Literal["inpainting", "masks", "segmentation", "synthesis"],
    pred: Path,
    truth: Path,
    *,
    out: Path,
    baselines: tuple[str, ...] = ("all",),
    use: bool = False,
    split: Path | None = None,
    train: Path | None = None,
    scheme: str = "auto",
    convention: Literal["both", "2023", "2025"] = "both",
    segmenter: Path | None = None,
    keep: tuple[str, ...] = (),
    device: str = "auto",
    no_pictures: bool = False,
    force: bool = False,
) -> int:
    """Judge what was made: inpainting, masks, synthesis or segmentation.

    inpainting: by the challenge's metrics, beside the classical fills to beat. masks: label maps
    against real ones that no model was trained on, and against the training masks to find copies.
    segmentation: predicted label maps, each region whole and lesion by lesion. synthesis: scans
    drawn for label maps, as a set (KID, diversity, texture, brightness of regions) and one by one
    (is the tumour where the labels say, is it a copy); --keep lists which are fit to train on in
    kept.json.
    Writes per_case.csv, summary.json, table.md and pictures (overview.png and one of each case,
    masks.png, cases.png, or page.png and plots). Exits with 2 when a case could not be judged; the
    others are.

    Args:
        kind: what was made: inpainting, holes in t1n; masks, tumour label maps; segmentation,
            label maps of scans; synthesis, scans of label maps.
        pred: inpainting: folder with <case>-t1n-inference.nii.gz or <case>.nii.gz; the word
            baselines judges the baselines alone. masks: folder with label maps. segmentation:
            folder with <case>-seg.nii.gz or <case>.nii.gz. synthesis: folder as `synth sample`
            writes it, or any with four contrasts.
        truth: inpainting: folder with t1n, mask-healthy, and t1n-voided or mask. masks: folder
            with real label maps. segmentation: cases with label maps (and scans, to draw on).
            synthesis: real cases that no model was trained on. Any BraTS naming.
        out: folder to write.
        baselines: inpainting only: all, none, or some of brain-mean, rim-mean, harmonic,
            biharmonic, mirror, mirror-rim.
        use: inpainting only: also judge sharpness against the other side, shares of tissues, and
            how far a registration of the filled brain is off (needs SimpleITK).
        split: judge only by the testing cases of this decathlon-style JSON; for masks and synthesis
            its training cases are those that the model was trained on.
        train: masks and synthesis: folder with the cases that the model was trained on.
        scheme: not for inpainting: label scheme of all folders; auto infers it from each case's id.
        convention: segmentation only: the rules of BraTS 2023 (and 2024), 2025, or both, each in
            a table of its own.
        segmenter: synthesis only: segmentation checkpoint trained on real cases: is the tumour
            where the labels say? Its bottleneck gives the features of KID.
        keep: synthesis only: rules on columns of per_case.csv, such as 'seg_dice>=0.6'
            'z_intensity<=4' 'copied==0', in quotes; writes kept.json and dropped.csv.
        device: synthesis only: where the segmenter runs: auto, cpu, cuda, cuda:1 …
        no_pictures: draw nothing.
        force: overwrite an earlier evaluation.
    """
    _require_inpainting(kind, use)
    if kind == "synthesis":
        if baselines != ("all",) or convention != "both":
            raise SynthError("--baselines and --convention are not for synthesis", hint="leave out")
        return _synthesis(
            pred, truth, out, train_dir=train, split=split, segmenter=segmenter, keep=keep,
            scheme=scheme, device=device, pictures=not no_pictures, force=force,
        )  # fmt: skip
    if segmenter or keep:
        raise SynthError("--segmenter and --keep are for synthesis", hint="leave them out")
    if kind == "segmentation":
        if baselines != ("all",) or train is not None:
            raise SynthError("--baselines and --train are not for segmentation", hint="leave out")
        conventions = ("2023", "2025") if convention == "both" else (convention,)
        return _segmentation(
            pred, truth, out, conventions=conventions, split=split, scheme=scheme,
            pictures=not no_pictures, force=force,
        )  # fmt: skip
    if convention != "both":
        raise SynthError("--convention is for segmentation", hint="leave it out")
    if kind == "masks":
        if baselines != ("all",):
            raise SynthError("--baselines is for inpainting", hint="leave it out")
        return _masks(
            pred, truth, out, train_dir=train, split=split, scheme=scheme,
            pictures=not no_pictures, force=force,
        )  # fmt: skip
    if train is not None or scheme != "auto":
        raise SynthError("--train and --scheme are not for inpainting", hint="leave them out")
    from synth.evaluate.inpainting import evaluate_inpainting

    found = evaluate_inpainting(
        None if str(pred) == ALONE else pred,
        truth,
        out,
        baselines=baselines,
        split=split,
        pictures=not no_pictures,
        force=force,
        progress=True,
        use=use,
    )
    print(found.table)
    print(f"\ncases judged: {found.summary['cases']}, not judged: {len(found.problems)} → {out}")
    return 2 if found.problems else 0


def _masks(pred: Path, truth: Path, out: Path, **options: Any) -> int:
    from synth.evaluate.masks import evaluate_masks

    found = evaluate_masks(pred, truth, out, **options)
    print(found.table)
    copied = found.summary["copied"]
    for copy in copied[:10]:
        print(f"copied? {copy['mask']} is {copy['training']}: Dice {copy['dice']:.3f}")
    generated, problems = found.summary["generated"], len(found.problems)
    copies = (
        f"copied: {len(copied)}" if "copied" in generated else "copies: not looked for (--train)"
    )
    print(f"\nmasks judged: {generated['masks']}, problems: {problems}, {copies} → {out}")
    return 2 if found.problems else 0


def _segmentation(pred: Path, truth: Path, out: Path, **options: Any) -> int:
    from synth.evaluate.segmentation import evaluate_segmentation

    found = evaluate_segmentation(pred, truth, out, **options)
    print(found.table)
    unused = len(found.summary["predictions_not_used"])
    print(
        f"\ncases judged: {found.summary['cases']}, not judged: {len(found.problems)}, "
        f"predictions without truth: {unused} → {out}"
    )
    return 2 if found.problems else 0


def _synthesis(pred: Path, truth: Path, out: Path, **options: Any) -> int:
    from synth.evaluate.scans.judge import evaluate_synthesis
    from synth.evaluate.scans.tables import headline

    found = evaluate_synthesis(pred, truth, out, **options)
    print(found.table)
    for copy in found.summary["copies"][:10]:
        print(f"copied? {copy['case']} is {copy['training']}: distance {copy['distance']:.3f}")
    gate = found.summary["gate"]
    if gate is not None:
        print(f"\nkept: {len(gate['kept'])}, dropped: {len(gate['dropped'])} → {out}/dropped.csv")
    print(f"\n{headline(found.summary)}")
    judged = found.summary["generated"]["cases"]
    print(f"cases judged: {judged}, problems: {len(found.problems)} → {out}")
    return 2 if found.problems else 0


def _require_inpainting(kind: str, use: bool) -> None:
    if use and kind != "inpainting":
        raise SynthError("--use is for inpainting", hint="leave it out")
