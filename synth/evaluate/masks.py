"""The judge of tumour masks: are they like real ones, and are they new?

Everything is measured beside what real masks score among themselves. The masks of both folders are
compared on one voxel size, the coarser of the two, since areas and topology depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from synth.base.files import file_hash
from synth.evaluate.common import (
    Evaluation,
    EvaluationRun,
    evenly,
    find_real_sets,
)
from synth.evaluate.mask_files import Mask, common_spacing_mm, find_masks, load_mask, on_spacing
from synth.evaluate.mask_reference import (
    MaskComparison,
    MaskReference,
    features_table,
    sets_table,
)
from synth.evaluate.tables import plain_table
from synth.pictures.rendering import draw_tumours
from synth.training.log import Progress

PAGE_MASKS = 16
LEAST = {"generated": 2, "real": 4, "training": 2}
SETS_HEAD = (
    "Shapes of masks against unseen real ones. W1 is the Wasserstein distance; ln, natural "
    "logarithm of ml. The last line has what random halves of the real masks stay within."
)
FEATURES_HEAD = "Mean ± sd of each feature, and how far apart the two distributions are."


def evaluate_masks(
    pred_dir: Path,
    truth_dir: Path,
    out: Path,
    *,
    train_dir: Path | None = None,
    split: Path | None = None,
    scheme: str = "auto",
    pictures: bool = True,
    force: bool = False,
) -> Evaluation:
    """Judge drawn masks; write per_case.csv, summary.json, table.md and masks.png.

    Args:
        pred_dir: label maps to judge: any BraTS naming, or any NIfTI files in our numbers.
        truth_dir: real label maps that no model was trained on.
        out: folder to write.
        train_dir: label maps the model was trained on: shows copies.
        split: decathlon-style JSON: of `truth_dir`, its testing cases are the truth and, without
            `train_dir`, its training cases what the model was trained on.
        scheme: label scheme of all folders; auto infers each case's from its id.
        pictures: draw the page.
        force: overwrite an earlier evaluation.
    """
    run = EvaluationRun("masks", out, force=force, pred=pred_dir, truth=truth_dir,
                        train=train_dir, split=split)  # fmt: skip
    sets = {"generated": find_masks(pred_dir, scheme)}
    sets |= find_real_sets(
        truth_dir, train_dir, split, scheme, lambda folder: find_masks(folder, scheme),
        labelled=True,
    )  # fmt: skip
    with Progress(sum(map(len, sets.values())), label="read", unit="mask") as bar:
        read = {
            name: list(run.judge_each(cases, load_mask, bar, name=name, least=LEAST[name]))
            for name, cases in sets.items()
        }
    spacing_mm = common_spacing_mm(read["generated"], read["real"])
    masks = {name: on_spacing(own, spacing_mm) for name, own in read.items()}
    reference = MaskReference(masks["real"], masks.get("training", ()))
    verdicts = {
        n: reference.judge(masks[n], training=n == "training") for n in masks if n != "real"
    }
    if pictures:
        draw_page(
            {name: own for name, own in masks.items() if name != "training"}, out / "masks.png"
        )
    tables = (
        (SETS_HEAD, sets_table(verdicts, reference)),
        (FEATURES_HEAD, features_table(verdicts["generated"], reference)),
    )
    return run.write(
        tables,
        {
            "spacing_mm": spacing_mm,
            "real": reference.numbers(),
            **{name: verdict.numbers() for name, verdict in verdicts.items()},
            "copied": _copied(verdicts["generated"], masks["generated"], reference),
        },
        _per_case(masks, reference, verdicts),
        "\n\n".join(plain_table(rows) for _, rows in tables),
        # The same file name may be in every folder.
        files={n: {m.name: file_hash(m.path) for m in own} for n, own in masks.items()},
    )


def draw_page(sets: Mapping[str, Sequence[Mask]], path: Path, *, most: int = PAGE_MASKS) -> Path:
    """Draw masks of each set, evenly from the smallest to the largest: none is picked."""
    chosen = {}
    for name, masks in sets.items():
        ranked = sorted(masks, key=lambda m: (int(m.regions[0].sum()), m.name))
        chosen[name] = [
            (ranked[i].regions, ranked[i].spacing_mm[0]) for i in evenly(len(ranked), most)
        ]
    return draw_tumours(chosen, path)


def _copied(
    verdict: MaskComparison, masks: Sequence[Mask], reference: MaskReference
) -> list[dict[str, Any]]:
    """Name the copies, and what they are copies of."""
    if verdict.nearest is None or verdict.copied is None:
        return []
    near = verdict.nearest
    return [
        {
            "mask": masks[i].name,
            "training": reference.train_names[near.index[i]],
            "dice": near.closeness[i],
        }
        for i in np.flatnonzero(verdict.copied).tolist()
    ]


def _per_case(
    masks: Mapping[str, Sequence[Mask]],
    reference: MaskReference,
    verdicts: Mapping[str, MaskComparison],
) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and lines of per_case.csv."""
    names = [*reference.rows[0], "nearest_dice"]
    unseen = reference.rule.unseen if reference.rule else None
    lines = []
    for name, own in masks.items():
        verdict = verdicts.get(name)
        rows = verdict.rows if verdict else reference.rows
        near = verdict.nearest if verdict else unseen
        for i, (mask, row) in enumerate(zip(own, rows, strict=True)):
            values = row | ({} if near is None else {"nearest_dice": near.closeness[i]})
            other = "" if near is None else reference.train_names[near.index[i]]
            cells = (float(values.get(n, math.nan)) for n in names)
            lines.append([name, mask.name, *cells, other, mask.path])
    return ["set", "mask", *names, "nearest_training", "file"], lines
