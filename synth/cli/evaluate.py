"""The verbs evaluate inpainting, evaluate masks, evaluate segmentation and evaluate synthesis."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

ALONE = "baselines"


def inpainting(
    pred: Path,
    truth: Path,
    *,
    out: Path,
    baselines: tuple[str, ...] = ("all",),
    use: bool = False,
    split: Path | None = None,
    no_pictures: bool = False,
    force: bool = False,
) -> int:
    """Judge filled holes by the metrics of the BraTS challenge, beside six classical fills.

    Writes per_case.csv, summary.json, table.md, overview.png and a picture of each case. The exit
    code is 2 when a case could not be judged; the others are judged.

    Args:
        pred: folder with <case>-t1n-inference.nii.gz or <case>.nii.gz; the word baselines judges
            the classical fills alone.
        truth: folder with t1n, mask-healthy, and t1n-voided or mask.
        baselines: all, none, or some of brain-mean, rim-mean, harmonic, biharmonic, mirror,
            mirror-rim.
        use: also measure sharpness against the other side, shares of tissues, and the error of a
            registration after filling (needs SimpleITK).
        split: judge only the testing cases of this split (JSON).
        force: overwrite an earlier evaluation.
    """
    from synth.evaluate.inpainting import evaluate_inpainting

    found = evaluate_inpainting(
        None if str(pred) == ALONE else pred, truth, out, baselines=baselines, split=split,
        pictures=not no_pictures, force=force, progress=True, use=use,
    )  # fmt: skip
    print(found.table)
    return _conclude(found, f"\ncases judged: {found.summary['cases']}, not judged", "", out)


def masks(
    pred: Path,
    truth: Path,
    *,
    out: Path,
    train: Path | None = None,
    split: Path | None = None,
    scheme: str = "auto",
    no_pictures: bool = False,
    force: bool = False,
) -> int:
    """Judge drawn label maps: are they like real ones, and are they copies?

    Writes per_case.csv, summary.json, table.md and masks.png. The exit code is 2 when a label map
    could not be judged; the others are judged.

    Args:
        pred: folder with the drawn label maps.
        truth: folder with real label maps that no model was trained on.
        train: folder with the cases that the model was trained on, to find copies.
        split: judge by the testing cases of this split (JSON); its training cases are those that
            the model was trained on.
        force: overwrite an earlier evaluation.
    """
    from synth.evaluate.masks import evaluate_masks

    found = evaluate_masks(
        pred, truth, out, train_dir=train, split=split, scheme=scheme,
        pictures=not no_pictures, force=force,
    )  # fmt: skip
    print(found.table)
    copied, generated = found.summary["copied"], found.summary["generated"]
    for copy in copied[:10]:
        print(f"copied? {copy['mask']} is {copy['training']}: Dice {copy['dice']:.3f}")
    looked = "copied" in generated
    copies = f", copied: {len(copied)}" if looked else ", copies: not looked for (--train)"
    return _conclude(found, f"\nmasks judged: {generated['masks']}, problems", copies, out)


def segmentation(
    pred: Path,
    truth: Path,
    *,
    out: Path,
    convention: Literal["both", "2023", "2025"] = "both",
    split: Path | None = None,
    scheme: str = "auto",
    no_pictures: bool = False,
    force: bool = False,
) -> int:
    """Judge segmentations by the rules of BraTS: each region as a whole, and lesion by lesion.

    Writes per_case.csv, summary.json, table.md, cases.png and a picture of each case. The exit code
    is 2 when a case could not be judged; the others are judged.

    Args:
        pred: folder with <case>-seg.nii.gz or <case>.nii.gz.
        truth: folder of cases with label maps (and scans, to draw on).
        convention: the rules of BraTS 2023 (and 2024), of 2025, or both, each in its own table.
        split: judge only the testing cases of this split (JSON).
        force: overwrite an earlier evaluation.
    """
    from synth.evaluate.segmentation import evaluate_segmentation

    found = evaluate_segmentation(
        pred, truth, out, conventions=("2023", "2025") if convention == "both" else (convention,),
        split=split, scheme=scheme, pictures=not no_pictures, force=force,
    )  # fmt: skip
    print(found.table)
    unused = f", predictions without truth: {len(found.summary['predictions_not_used'])}"
    return _conclude(found, f"\ncases judged: {found.summary['cases']}, not judged", unused, out)


def synthesis(
    pred: Path,
    truth: Path,
    *,
    out: Path,
    train: Path | None = None,
    split: Path | None = None,
    segmenter: Path | None = None,
    keep: tuple[str, ...] = (),
    scheme: str = "auto",
    device: str = "auto",
    no_pictures: bool = False,
    force: bool = False,
) -> int:
    """Judge scans drawn for label maps: are they real as a set, right one by one, and new?

    `synth evaluate scans` is the same. As a set: KID, diversity, texture, brightness of regions.
    One by one: is the tumour where the labels say, is the scan a copy of a training case?
    Writes per_case.csv, summary.json, table.md, page.png, plots and a picture of each case. The
    exit code is 2 when a case could not be judged; the others are judged.

    Args:
        pred: folder that `synth sample` wrote, or any folder of cases with four contrasts.
        truth: real cases that no model was trained on.
        train: folder with the cases that the model was trained on, to find copies.
        split: judge by the testing cases of this split (JSON); its training cases are those that
            the model was trained on.
        segmenter: segmentation checkpoint, trained on real cases: it says whether the tumour is
            where the labels say, and its bottleneck gives the features of KID.
        keep: rules on columns of per_case.csv, in quotes: 'seg_dice>=0.6' 'z_intensity<=4'
            'copied==0'. Writes kept.json, the cases that are good enough to train on, and
            dropped.csv.
        device: where the segmenter runs: auto, cpu, cuda, cuda:1 …
        force: overwrite an earlier evaluation.
    """
    from synth.evaluate.scans.judge import evaluate_synthesis
    from synth.evaluate.scans.tables import headline

    found = evaluate_synthesis(
        pred, truth, out, train_dir=train, split=split, segmenter=segmenter, keep=keep,
        scheme=scheme, device=device, pictures=not no_pictures, force=force,
    )  # fmt: skip
    print(found.table)
    for copy in found.summary["copies"][:10]:
        print(f"copied? {copy['case']} is {copy['training']}: distance {copy['distance']:.3f}")
    gate = found.summary["gate"]
    if gate is not None:
        print(f"\nkept: {len(gate['kept'])}, dropped: {len(gate['dropped'])} → {out}/dropped.csv")
    print(f"\n{headline(found.summary)}")
    return _conclude(
        found, f"cases judged: {found.summary['generated']['cases']}, problems", "", out
    )


def _conclude(found: Any, judged: str, further: str, out: Path) -> int:
    print(f"{judged}: {len(found.problems)}{further} → {out}")
    return 2 if found.problems else 0
