"""The trainings of a comparison: arms × folds × seeds that differ in one thing.

Within a fold and seed all arms have the same initial weights, steps, schedule and real crops slot
by slot; they differ in what fills a share of the slots. The checkpoint is chosen on an inner part
of the training folds; the untouched fold is reported. A comparison that was killed goes on.
"""

from __future__ import annotations

import json
import logging
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from segmentation.comparison.leakage import Cohorts, split_cases
from segmentation.comparison.training_mix import (
    Mixed,
    arm_items,
    hash_real_slots,
    require_same_real_slots,
)
from segmentation.config import Config
from segmentation.data import SegmentationData
from segmentation.finetune import start_network
from segmentation.inference.segment import SegmentOptions, load_models
from segmentation.inference.write_segmentations import (
    CaseWriter,
    drop_labels,
    write_segmentations,
)
from segmentation.recipe import Recipe
from synth.base.config import to_dict
from synth.base.devices import pick
from synth.base.errors import SynthError
from synth.base.files import read_json, write_json
from synth.base.patient_marks import are_foreign
from synth.base.seeding import mix
from synth.checkpoints.checkpoint import read_metadata
from synth.data.cache import ArrayCache
from synth.data.split import Split, data_hash, find_folds, patient_marks
from synth.evaluate.segmentation import judge
from synth.evaluate.segmentation_scores import RegionScore, mean_of, read_scores, write_scores
from synth.jobs.cases import in_processes
from synth.metrics.surface import Convention
from synth.training.config import TrainConfig
from synth.training.loop import train

log = logging.getLogger(__name__)

BASE = "base"
INNER = "validation/dice"
CHECKED_SLOTS = 32  # of each arm: their real crops are compared before anything is trained


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training and its scores."""

    fold: int
    seed: int
    arm: str

    def __str__(self) -> str:
        return f"fold {self.fold}, seed {self.seed}, {self.arm}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What is compared, on what, and how it is trained."""

    out: Path
    split: Split
    config: Config
    loop: TrainConfig
    preset: str = "tiny"
    arms: tuple[str, ...] = (BASE, "synthetic", "duplicated")
    share: float = 0.5
    """Share of the slots that other cases take."""
    folds: tuple[int, ...] = ()
    """None: all of the split."""
    seeds: tuple[int, ...] = (0, 1, 2)
    inner_share: float = 0.2
    """Share of the training patients that choose the checkpoint."""
    conventions: tuple[Convention, ...] = ("2023", "2025")
    options: SegmentOptions = field(default_factory=SegmentOptions)
    device: str = "auto"

    def __post_init__(self) -> None:
        if BASE not in self.arms or len(self.arms) < 2:
            raise SynthError(f"arms {', '.join(self.arms)}", hint="base and at least one other")
        for name, values in (("arm", self.arms), ("fold", self.folds), ("seed", self.seeds)):
            if len(set(values)) < len(values):
                raise SynthError(f"a {name} is named twice: {values}", hint="once each")
        if not 0 < self.share < 1:
            raise SynthError(f"share = {self.share}", hint="between 0 and 1; 0.5 is usual")
        if not 0 < self.inner_share < 1:
            raise SynthError(f"inner_share = {self.inner_share}", hint="between 0 and 1")
        if not self.seeds:
            raise SynthError("no seed", hint="--seeds 0 1 2")

    @cached_property
    def cohorts(self) -> dict[int, Cohorts]:
        """What each case is for, in each fold."""
        folds = self.folds or tuple(self.split.folds)
        return {f: split_cases(self.split, f, inner_share=self.inner_share) for f in folds}

    @cached_property
    def trainings(self) -> list[Training]:
        """All trainings, the arms of a fold and seed after one another."""
        return [
            Training(fold=fold, seed=seed, arm=arm)
            for fold in self.cohorts for seed in self.seeds for arm in self.arms
        ]  # fmt: skip

    @property
    def cache(self) -> ArrayCache:
        """Where prepared cases are kept, for all trainings."""
        return ArrayCache(self.out / "cache")

    def items(self, arm: str, fold: int) -> Mixed:
        """Return the training items of an arm in a fold."""
        return arm_items(arm, self.cohorts[fold], self.config, share=self.share, cache=self.cache)

    def settings(self) -> dict[str, Any]:
        """Return what the result depends on, as JSON values."""
        used = [c for own in self.cohorts.values() for c in (*own.train, *own.inner, *own.tested)]
        made = [c for own in self.cohorts.values() for c in own.made]
        return {
            "preset": self.preset, "config": to_dict(self.config), "loop": to_dict(self.loop),
            "arms": list(self.arms), "share": self.share, "folds": list(self.cohorts),
            "seeds": list(self.seeds), "inner_share": self.inner_share,
            "conventions": list(self.conventions), "plan": to_dict(self.options),
            "data": data_hash([*used, *made]),
        }  # fmt: skip

    def folder(self, training: Training) -> Path:
        """Return where a training lies."""
        return self.out / f"fold{training.fold}/seed{training.seed}/{training.arm}"

    def scores(self, training: Training) -> Path:
        """Return the table of a training: where it is, the training is done."""
        return self.folder(training) / "scores.csv"

    def missing(self) -> list[Training]:
        """Return the trainings that are not done."""
        return [t for t in self.trainings if not self.scores(t).exists()]


def begin_comparison(comparison: Comparison) -> None:
    """Refuse what would not be a comparison, and write down what is compared."""
    for fold, own in comparison.cohorts.items():
        if "synthetic" in comparison.arms and not own.made:
            raise SynthError(
                f"fold {fold}: no generated case may train ({own.unused} are not for it)",
                hint="append some with `synth sample --append-to`, from label maps and a generator "
                "of the other folds",
            )
        log.info(
            "fold %d: %d real cases train, %d choose, %d are tested; %d generated, %d not used",
            fold, len(own.train), len(own.inner), len(own.tested), len(own.made), own.unused,
        )  # fmt: skip
    _require_unseen(comparison)
    path, settings = comparison.out / "study.json", comparison.settings()
    if path.exists():
        _require_same_settings(read_json(path, dict), settings, comparison.out)
    for fold in comparison.cohorts:
        arms = [comparison.items(arm, fold) for arm in comparison.arms]
        seed = comparison.seeds[0]
        require_same_real_slots([hash_real_slots(a, seed=seed, slots=CHECKED_SLOTS) for a in arms])
    write_json(path, settings)


def run_trainings(
    comparison: Comparison, trainings: Sequence[Training], *, workers: int = 0
) -> bool:
    """Train and score, or go on with it; return False where a training was stopped.

    With workers, so many trainings run side by side, each in one thread: what they learn does not
    depend on their number. 0: one after another, with all threads.
    """
    # Numbered among all, so that a comparison that goes on gives a training the same number.
    left = [(f"[{k}/{len(trainings)}] {t}", t) for k, t in enumerate(trainings, start=1)
            if not comparison.scores(t).exists()]  # fmt: skip
    began = time.monotonic()
    work = partial(_train_and_score, comparison, threads=1 if workers else 0)
    with in_processes(work, left, workers or 1) as finished:
        for done, (label, training) in enumerate(left, start=1):
            rows = finished((label, training))
            if rows is None:
                log.warning("%s was stopped; the same command goes on", training)
                return False
            first = [r for r in rows if r.region == "mean" and r.convention == rows[0].convention]
            ahead = (time.monotonic() - began) / done * (len(left) - done)
            dice = mean_of(row.values["dice"] for row in first)
            log.info("%s: Dice %.3f; %d min left", label, dice, ahead / 60)
    return True


def _train_and_score(
    comparison: Comparison, numbered: tuple[str, Training], *, threads: int
) -> list[RegionScore] | None:
    """Do one training; None where it was asked to stop."""
    label, training = numbered
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        done = _train_arm(comparison, training, label)
        return _score_fold(comparison, training) if done else None
    finally:
        torch.set_num_threads(before)


def read_arms(comparison: Comparison) -> dict[str, list[RegionScore]]:
    """Return arm → scores of all its trainings, which must be done."""
    if missing := comparison.missing():
        raise SynthError(
            f"{len(missing)} of {len(comparison.trainings)} trainings are not done, first: "
            f"{missing[0]}",
            hint="the same command goes on; without --shard it does all that is left",
        )
    rows: dict[str, list[RegionScore]] = {arm: [] for arm in comparison.arms}
    for training in comparison.trainings:
        rows[training.arm] += read_scores(comparison.scores(training))
    return rows


def late_rise(comparison: Comparison) -> float | None:
    """Return by how much the inner Dice of the base rose in the last quarter of its trainings.

    None where the runs do not say. The best of both parts: a curve that wavers does not rise.
    """
    rises = []
    for training in (t for t in comparison.trainings if t.arm == BASE):
        path = comparison.folder(training) / "run" / "metrics.jsonl"
        lines = map(json.loads, path.read_text().splitlines()) if path.is_file() else ()
        curve = [(line["step"], line[INNER]) for line in lines if INNER in line]
        early = [dice for step, dice in curve if step <= 0.75 * comparison.loop.steps]
        if early and len(early) < len(curve):
            rises.append(max(dice for _, dice in curve) - max(early))
    return mean_of(rises) if rises else None


def _train_arm(comparison: Comparison, training: Training, label: str) -> bool:
    """Train a network; return False where it was asked to stop."""
    own, config = comparison.cohorts[training.fold], comparison.config
    items = comparison.items(training.arm, training.fold)
    inner = SegmentationData(own.inner, config, cache=comparison.cache, fixed=True)
    used = [*own.train, *(own.made if training.arm == "synthetic" else ())]
    describe = {
        "family": "segmentation", "preset": comparison.preset, "config": config,
        "data_hash": data_hash(used), "patients": patient_marks([*own.train, *own.inner]),
        "unit": str(training),
    }  # fmt: skip
    torch.manual_seed(mix(training.seed, "initial weights"))
    recipe = Recipe(config, start_network(config))
    summary = train(
        recipe, items, comparison.folder(training) / "run",
        replace(comparison.loop, seed=training.seed), describe=describe, validation=inner,
        device=comparison.device, label=label,
    )  # fmt: skip
    return not summary["stopped"]


def _score_fold(comparison: Comparison, training: Training) -> list[RegionScore]:
    """Segment the tested cases with the trained network, and write and return the scores."""
    folder, tested = comparison.folder(training), comparison.cohorts[training.fold].tested
    models = load_models([folder / "run"], device=str(pick(comparison.device)))
    writer = CaseWriter(out=folder / "segmented", models=models, options=comparison.options)
    if failed := write_segmentations(writer, drop_labels(tested, writer.out)):
        raise SynthError(
            f"{training}: {failed} tested cases could not be segmented",
            hint="correct them: see above",
        )
    rows = [
        replace(row, fold=training.fold, seed=training.seed)
        for case in tested
        for row in judge(case, writer.target(case), comparison.conventions)
    ]
    write_scores(comparison.scores(training), rows)
    return rows


def _require_unseen(comparison: Comparison) -> None:
    """Refuse to start all arms from weights that have seen a tested patient."""
    start = comparison.config.init_from
    if not start:
        return
    marks = read_metadata(start).get("patients")
    if marks is None or are_foreign(marks):
        how = "does not list its patients" if marks is None else "marks them with another key"
        log.warning("%s %s: make sure that none of them is tested", start, how)
    if tested := find_folds(comparison.split, marks or ()) & comparison.cohorts.keys():
        raise SynthError(
            f"{start} was trained on patients of fold {min(tested)}, which is tested: a leak",
            hint="begin from weights that have seen none of them, or test other folds (--folds)",
        )


def _require_same_settings(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            old, new = (
                textwrap.shorten(str(v), 120, placeholder="…") for v in (before.get(key), value)
            )
            raise SynthError(
                f"{out} was begun with other {key}: {old}, not {new}",
                hint="repeat that command, or choose another --out",
            )
