"""Writes a split as a data set of nnU-Net v2, with its folds.

OUT/Dataset501_Name/{imagesTr,labelsTr,imagesTs,labelsTs}, dataset.json and splits_final.json, by
nnU-Net's documentation/reference/dataset-format.md. Labels are numbered as in BraTS 2023 and
trained as regions, so that what nnU-Net predicts is read by `synth evaluate segmentation`. Made
cases train and never validate; those behind which a patient of a fold stands are left out of it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from synth.base.errors import SynthError
from synth.base.files import atomic_path, write_json
from synth.data.case import MODALITIES, Case, require_unique
from synth.data.labels import ED, ET, NCR, SCHEMES, to_classes
from synth.data.split import Split
from synth.data.volume import Volume

log = logging.getLogger(__name__)

NAME = re.compile(r"Dataset\d{3}_\w+")
CHANNELS = ("T1", "T1ce", "T2", "FLAIR")
"""nnU-Net's words for our contrasts; all are normalised as MRI."""
REGIONS = {"WT": "whole tumor", "TC": "tumor core", "ET": "enhancing tumor"}
ENDING = ".nii.gz"


def export(split: Split, out: Path, *, link: bool = False) -> Path:
    """Write every case of a split, and its folds; return the folder.

    Args:
        split: its training cases become imagesTr, its testing cases imagesTs.
        out: folder to make, named like Dataset501_Tumours, in nnUNet_raw.
        link: link scans that are .nii.gz instead of copying them.
    """
    if not NAME.fullmatch(out.name):
        raise SynthError(f"{out.name} is no name of a data set", hint="like Dataset501_Tumours")
    parts = {"Tr": [e.case for e in split.training], "Ts": [e.case for e in split.testing]}
    require_unique([*parts["Tr"], *parts["Ts"]])
    if not parts["Tr"]:
        raise SynthError("the split has no training case", hint="`synth split` makes one")
    for part, cases in parts.items():
        for case in cases:
            _write_case(case, out, part, link=link)
    regions = SCHEMES["brats2023"]
    write_json(out / "dataset.json", {
        "channel_names": {str(k): name for k, name in enumerate(CHANNELS)},
        "labels": {"background": 0, **{REGIONS[r]: list(regions[r]) for r in REGIONS}},
        # What is written for a voxel of each region, in this order: what remains of WT is ED.
        "regions_class_order": [ED, NCR, ET],
        "numTraining": len(parts["Tr"]),
        "file_ending": ENDING,
    })  # fmt: skip
    folds = _folds(split)
    if folds:
        write_json(out / "splits_final.json", folds)
    log.info("%s: %d training cases, %d for testing, %d folds", out, *map(len, parts.values()),
             len(folds))  # fmt: skip
    return out


def _folds(split: Split) -> Sequence[dict[str, list[str]]]:
    """Return who trains and who validates, fold by fold."""
    found = []
    for number in split.folds:
        train, held_out = split.fold(number)
        found.append({"train": [c.id for c in train], "val": [c.id for c in held_out]})
    return found


def _write_case(case: Case, out: Path, part: str, *, link: bool) -> None:
    """Write four scans, numbered, and the label map."""
    labels = case.load("seg")
    for number, contrast in enumerate(MODALITIES):
        source = case.path(contrast)
        target = out / f"images{part}" / f"{case.id}_{number:04d}{ENDING}"
        volume = Volume.load(source)
        volume.require_same_grid(labels, (str(source), str(case.path("seg"))))
        _put(source, target, volume, link=link)
    classes = to_classes(labels.data[0], case.scheme, name=str(case.path("seg")))
    labels.with_data(classes).save(out / f"labels{part}" / f"{case.id}{ENDING}")


def _put(source: Path, target: Path, volume: Volume, *, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not source.name.endswith(ENDING):
        volume.save(target)
    elif link:
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(source.resolve(), target.parent.resolve()))
    else:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
