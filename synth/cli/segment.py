"""The verb segment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synth.jobs.cases import BatchOptions


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """From probabilities to labels; three values are for WT, TC and ET, one is for all."""

    thresholds: tuple[float, ...] = (0.5,)
    """probability above which a voxel is tumour, for WT, TC, ET."""
    min_ml: tuple[float, ...] = (0.0,)
    """remove smaller components, in millilitres, for WT, TC, ET."""
    min_probability: tuple[float, ...] = (0.0,)
    """remove components with a lower mean probability, for WT, TC, ET."""
    most: tuple[int, ...] = (0,)
    """keep only this number of components, the largest, for WT, TC, ET; 0: all."""
    small_et_ml: float = 0.0
    """if all enhancing tumour is less than this, it becomes necrotic core."""


def segment(
    data: Path,
    *,
    out: Path,
    models: tuple[Path, ...],
    weights: tuple[str, ...] = (),
    tta: bool = False,
    overlap: float = 0.5,
    labels: LabelOptions,
    probabilities: bool = False,
    batch: BatchOptions,
    scheme: str = "auto",
    device: str = "auto",
) -> int:
    """Segment whole tumour, core and enhancing tumour (WT, TC, ET) from t1n, t1c, t2w and t2f.

    The probabilities of several models are averaged. Labels are written in the numbers of the
    case's scheme, on its own grid: <case>-seg.nii.gz, a picture of each case in pictures/, and a
    record (JSON) of each in records/. Finished cases are skipped: the same command continues.

    Args:
        data: folder of cases in any BraTS naming; segmentations in it are not read.
        models: segmentation checkpoints or runs; they may differ in network and spacing.
        weights: weight of each model, or of each in WT, TC and ET: 1,1,2 1,1,1 [all equal].
        thresholds: probability above which a voxel is tumour, for WT, TC, ET or for all.
        min_ml: remove smaller components, in millilitres, for WT, TC, ET or for all.
        probabilities: also write <case>-{wt,tc,et}.nii.gz into probabilities/.
        scheme: label scheme to write; auto: from the case ids.
        force: segment finished cases again.
    """
    from segmentation.inference.ensemble import weight_table
    from segmentation.inference.postprocess import Postprocessing
    from synth.data.case import discover

    rules = Postprocessing.of_words(**vars(labels))
    weight_table(weights, len(models))  # refuses a mistake before a model is read

    from segmentation.inference.segment import SegmentOptions, load_models
    from segmentation.inference.write_segmentations import (
        CaseWriter,
        drop_labels,
        write_segmentations,
    )
    from synth.base.devices import pick

    cases = batch.share(drop_labels(discover(data, scheme=scheme), out))
    options = SegmentOptions(
        weights=tuple(map(float, weights)), tta=tta, overlap=overlap, rules=rules
    )
    writer = CaseWriter(
        out=out, models=load_models(models, pick(device)), options=options,
        probabilities=probabilities, force=batch.force,
    )  # fmt: skip
    return 2 if write_segmentations(writer, cases) else 0
