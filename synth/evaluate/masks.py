"""The judge of tumour masks: are they like real ones, and are they new?

Everything is measured beside what real masks score among themselves. The masks of both folders are
compared on one voxel size, the coarser of the two, since areas and topology depend on it.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synth.base.errors import SynthError
from synth.base.files import atomic_path, file_hash, write_json
from synth.base.manifest import manifest
from synth.data.case import Case
from synth.data.split import read_split
from synth.evaluate.mask_files import Mask, common_spacing_mm, find_masks, load_mask, on_spacing
from synth.evaluate.mask_reference import Jury, Verdict, features_table, overlap_spread, sets_table
from synth.evaluate.tables import markdown_table, plain_table
from synth.pictures.rendering import page
from synth.training.log import Progress

SUMMARY = "summary.json"
PAGE_MASKS = 16
LEAST = {"generated": 2, "real": 4, "training": 2}
SETS_HEAD = (
    "Shapes of masks against unseen real ones. W1 is the Wasserstein distance; ln, natural "
    "logarithm of ml. The last line has what random halves of the real masks stay within."
)
FEATURES_HEAD = "Mean ± sd of each feature, and how far apart the two distributions are."

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MaskEvaluation:
    """What came out; the same lies in the output folder."""

    problems: tuple[str, ...]
    """One line for each label map that is empty or cannot be read."""
    summary: Mapping[str, Any]
    table: str


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
) -> MaskEvaluation:
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
    began = time.monotonic()
    if (out / SUMMARY).exists() and not force:
        raise SynthError(f"{out} holds an evaluation already", hint="--force overwrites it")
    sets = {"generated": find_masks(pred_dir, scheme)}
    sets |= _real_sets(truth_dir, train_dir, split, scheme)
    problems: list[str] = []
    with Progress(sum(map(len, sets.values())), label="read", unit="mask") as bar:
        read = {name: _load(name, cases, problems, bar) for name, cases in sets.items()}
    spacing_mm = common_spacing_mm(read["generated"], read["real"])
    masks = {name: on_spacing(own, spacing_mm) for name, own in read.items()}
    jury = Jury(masks["real"], masks.get("training", ()))
    verdicts = {
        name: jury.judge(own, training=name == "training")
        for name, own in masks.items()
        if name != "real"
    }
    if pictures:
        draw_page(
            {name: own for name, own in masks.items() if name != "training"}, out / "masks.png"
        )
    facts = manifest(
        "evaluate masks",
        {"pred": pred_dir, "truth": truth_dir, "train": train_dir, "split": split, "out": out},
        (),
        # The same file name may be in every folder.
        files={n: {m.name: file_hash(m.path) for m in own} for n, own in masks.items()},
        seconds=round(time.monotonic() - began, 2),
    )
    copied = _copied(verdicts["generated"], masks["generated"], jury)
    real: dict[str, Any] = {"masks": len(jury.rows), "halves": jury.floor}
    if jury.train is not None:
        real |= {"nearest_training_dice": overlap_spread(jury.unseen), "copy_dice": jury.copy_dice}
    summary = facts | {
        "problems": problems,
        "spacing_mm": spacing_mm,
        "real": real,
        **{name: verdict.numbers() for name, verdict in verdicts.items()},
        "copied": copied,
    }
    _write_csv(out / "per_case.csv", masks, jury, verdicts)
    tables = [sets_table(verdicts, jury), features_table(verdicts["generated"], jury)]
    heads = (SETS_HEAD, FEATURES_HEAD)
    with atomic_path(out / "table.md") as temporary:
        parts = [f"{h}\n\n{markdown_table(t)}\n" for h, t in zip(heads, tables, strict=True)]
        temporary.write_text("\n".join(parts), encoding="utf-8")
    write_json(out / SUMMARY, summary)  # last: it says that all is there
    return MaskEvaluation(
        problems=tuple(problems), summary=summary, table="\n\n".join(map(plain_table, tables))
    )


def draw_page(sets: Mapping[str, Sequence[Mask]], path: Path, *, most: int = PAGE_MASKS) -> Path:
    """Draw masks of each set, evenly from the smallest to the largest: none is picked."""
    chosen = {}
    for name, masks in sets.items():
        ranked = sorted(masks, key=lambda m: (int(m.regions[0].sum()), m.name))
        places = np.linspace(0, len(ranked) - 1, min(most, len(ranked))).round().astype(int)
        chosen[name] = [(ranked[i].regions, ranked[i].spacing_mm[0]) for i in places]
    return page(chosen, path)


def _real_sets(
    truth_dir: Path, train_dir: Path | None, split: Path | None, scheme: str
) -> dict[str, list[Case]]:
    sets = {}
    if split is None:
        sets["real"] = find_masks(truth_dir, scheme)
    else:
        parts = read_split(split, truth_dir)
        for name, entries in (("real", parts.testing), ("training", parts.training)):
            # Synthetic entries are no truth, and no evidence of a copy.
            cases = [e.case for e in entries if e.source is None and "seg" in e.case.files]
            sets[name] = [c if scheme == "auto" else c.with_scheme(scheme) for c in cases]
        if not sets["real"]:
            raise SynthError(
                f"{split}: no testing cases with labels", hint="without --split, all are judged"
            )
    if train_dir is not None:
        sets["training"] = find_masks(train_dir, scheme)
    return {name: cases for name, cases in sets.items() if cases}


def _load(name: str, cases: Sequence[Case], problems: list[str], bar: Progress) -> list[Mask]:
    masks = []
    for case in cases:
        try:
            mask = load_mask(case)
            if mask is None:
                raise SynthError(f"no tumour in {case.path('seg')}", hint="the label map is empty")
            masks.append(mask)
        except SynthError as error:
            problems.append(f"{name} {case.id}: {error.message} → {error.hint}")
            log.warning(problems[-1])
        bar.advance()
    least = LEAST[name]
    if len(masks) < least:
        raise SynthError(
            f"{name}: {len(masks)} of {len(cases)} label maps can be judged, {least} are needed",
            hint=problems[0] if problems else "give more masks",
        )
    return masks


def _copied(verdict: Verdict, masks: Sequence[Mask], jury: Jury) -> list[dict[str, Any]]:
    """Name the copies, and what they are copies of."""
    if verdict.nearest is None or verdict.copied is None:
        return []
    near = verdict.nearest
    return [
        {"mask": masks[i].name, "training": jury.train_names[near.index[i]], "dice": near.dice[i]}
        for i in np.flatnonzero(verdict.copied).tolist()
    ]


def _write_csv(
    path: Path, masks: Mapping[str, Sequence[Mask]], jury: Jury, verdicts: Mapping[str, Verdict]
) -> None:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    names = [*jury.rows[0], "nearest_dice"]
    lines.writerow(["set", "mask", *names, "nearest_training", "file"])
    for name, own in masks.items():
        verdict = verdicts.get(name)
        rows = verdict.rows if verdict else jury.rows
        near = verdict.nearest if verdict else (jury.unseen if jury.train is not None else None)
        for i, (mask, row) in enumerate(zip(own, rows, strict=True)):
            values = row | ({} if near is None else {"nearest_dice": near.dice[i]})
            cells = [repr(float(values.get(n, math.nan))) for n in names]
            other = "" if near is None else jury.train_names[near.index[i]]
            lines.writerow([name, mask.name, *cells, other, mask.path])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
