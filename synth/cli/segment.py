"""The verb segment."""

from __future__ import annotations

from pathlib import Path

from synth.jobs.cases import BatchOptions


def segment(
    data: Path,
    *,
    out: Path,
    models: tuple[Path, ...],
    weights: tuple[str, ...] = (),
    tta: bool = False,
    overlap: float = 0.5,
    thresholds: tuple[float, ...] = (0.5,),
    min_ml: tuple[float, ...] = (0.0,),
    min_probability: tuple[float, ...] = (0.0,),
    most: tuple[int, ...] = (0,),
    small_et_ml: float = 0.0,
    probabilities: bool = False,
    scheme: str = "auto",
    batch: BatchOptions,
    device: str = "auto",
) -> int:
    """Segment whole tumour, core and enhancing tumour (WT, TC, ET) from t1n, t1c, t2w and t2f.

    Several models are averaged as probabilities, each in its own frame. Labels are written in the
    case's own numbers on its own grid: <case>-seg.nii.gz, a picture of each case into pictures/,
    and a JSON record of each into records/. Finished cases are skipped: the same command goes on.
    Where a flag takes a value for WT, TC and ET, in this order, one value holds for all.

    Args:
        data: folder of cases in any BraTS naming; segmentations in it are not looked at.
        out: folder to write into.
        models: segmentation checkpoints, or runs; they may differ in network and spacing.
        weights: how much each model counts, or each in WT, TC and ET: 1,1,2 1,1,1 [all alike].
        tta: average the answers to the eight mirror images, at eight times the work.
        overlap: share of a window that its neighbour sees, too.
        thresholds: what is more probable is tumour, for WT, TC, ET.
        min_ml: drop components that are smaller, in millilitres, for WT, TC, ET.
        min_probability: drop components less probable on average, for WT, TC, ET.
        most: keep at most so many components, the largest, for WT, TC, ET; 0 keeps all.
        small_et_ml: enhancing tumour of less than this in all becomes necrotic core.
        probabilities: write <case>-{wt,tc,et}.nii.gz into probabilities/, too.
        scheme: label scheme to write; auto goes by the case ids.
        device: auto, cpu, cuda, cuda:1 …
        force: segment finished cases again.
    """
    from segmentation.inference.ensemble import weights_of
    from segmentation.inference.postprocess import Postprocessing
    from synth.data.case import discover

    rules = Postprocessing.of_words(
        thresholds=thresholds, min_ml=min_ml, min_probability=min_probability, most=most,
        small_et_ml=small_et_ml,
    )  # fmt: skip
    weights_of(weights, len(models))  # refuses what has no meaning before a model is read

    from segmentation.inference.segment import Plan, load
    from segmentation.inference.write_segmentations import Writer, only_scans, segment_all
    from synth.base.devices import pick

    cases = batch.share(only_scans(discover(data, scheme=scheme), out))
    plan = Plan(weights=tuple(map(float, weights)), tta=tta, overlap=overlap, rules=rules)
    writer = Writer(
        out=out, models=load(models, pick(device)), plan=plan, probabilities=probabilities,
        force=batch.force,
    )  # fmt: skip
    return 2 if segment_all(writer, cases) else 0
