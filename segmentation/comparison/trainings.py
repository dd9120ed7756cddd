"""The trainings of a comparison: arms × folds × seeds that differ in one thing.

Each unit (fold, seed, arm) is a training of its own. Within a fold and seed all arms have the same
initial weights, steps, schedule and real crops slot by slot; they differ in what stands in a share
of the slots. The checkpoint is chosen on an inner part of the training folds; what is reported is
the untouched fold. A killed study goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from segmentation import finetune
from segmentation.comparison.leakage import Cohorts, cohorts
from segmentation.comparison.training_mix import ARMS, items_of, require_same_real_slots, witness
from segmentation.config import Config
from segmentation.data import SegmentationData
from segmentation.inference.segment import Plan, load
from segmentation.inference.write_segmentations import Writer, only_scans, segment_all
from segmentation.recipe import Recipe
from synth.base.config import to_dict
from synth.base.errors import SynthError
from synth.base.files import read_json, write_json
from synth.base.seeding import mix
from synth.checkpoints.checkpoint import read_metadata
from synth.data.cache import ArrayCache
from synth.data.split import Split, data_hash, find_folds, patient_marks
from synth.evaluate.segmentation import judge
from synth.evaluate.segmentation_scores import RegionScore, mean_of, read_scores, write_scores
from synth.metrics.surface import Convention
from synth.training.config import TrainConfig
from synth.training.loop import train

log = logging.getLogger(__name__)

BASE = "base"
WITNESSED = 32  # slots of each arm whose real crops are compared before anything is trained
MAY_DIFFER = ("device",)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One training and its scores."""

    fold: int
    seed: int
    arm: str

    def __str__(self) -> str:
        return f"fold {self.fold}, seed {self.seed}, {self.arm}"

    @property
    def folder(self) -> str:
        """Return where it lies below the study."""
        return f"fold{self.fold}/seed{self.seed}/{self.arm}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
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
    plan: Plan = field(default_factory=Plan)
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
        """Return who does what in each fold."""
        folds = self.folds or tuple(self.split.folds)
        return {f: cohorts(self.split, f, inner_share=self.inner_share) for f in folds}

    @cached_property
    def units(self) -> list[Unit]:
        """Return all trainings, the arms of a fold and seed after one another."""
        return [
            Unit(fold=f, seed=s, arm=a) for f in self.cohorts for s in self.seeds for a in self.arms
        ]

    @property
    def cache(self) -> ArrayCache:
        """Return where prepared cases are kept, for all units."""
        return ArrayCache(self.out / "cache")

    def settings(self) -> dict[str, Any]:
        """Return what the result depends on, as JSON values."""
        used = [c for own in self.cohorts.values() for c in (*own.train, *own.inner, *own.tested)]
        made = [c for own in self.cohorts.values() for c in own.made]
        return {
            "preset": self.preset, "config": to_dict(self.config), "loop": to_dict(self.loop),
            "arms": list(self.arms), "share": self.share, "folds": list(self.cohorts),
            "seeds": list(self.seeds), "inner_share": self.inner_share,
            "conventions": list(self.conventions), "plan": to_dict(self.plan),
            "data": data_hash([*used, *made]),
        }  # fmt: skip

    def scores(self, unit: Unit) -> Path:
        """Return the table of a unit: its presence means done."""
        return self.out / unit.folder / "scores.csv"


def begin(study: Study) -> None:
    """Refuse what would not be a comparison, and write down what is compared."""
    for fold, own in study.cohorts.items():
        if "synthetic" in study.arms and not own.made:
            raise SynthError(
                f"fold {fold}: no generated case may train ({own.unused} are not for it)",
                hint="append some with `synth sample --append-to`, from label maps and a generator "
                "of the other folds",
            )
        log.info(
            "fold %d: %d real cases train, %d choose, %d are tested; %d generated, %d not used",
            fold, len(own.train), len(own.inner), len(own.tested), len(own.made), own.unused,
        )  # fmt: skip
    _require_unseen(study)
    path = study.out / "study.json"
    settings = study.settings()
    if path.exists():
        _require_same(read_json(path), settings, study.out)
    for own in study.cohorts.values():
        arms = [
            items_of(arm, own, study.config, share=study.share, cache=study.cache)
            for arm in study.arms
        ]
        seed = study.seeds[0]
        require_same_real_slots([witness(a, seed=seed, slots=WITNESSED) for a in arms])
    write_json(path, settings)


def _require_unseen(study: Study) -> None:
    """Refuse to begin all arms from weights that have seen who is tested."""
    start = study.config.init_from
    if not start:
        return
    marks = read_metadata(start).get("patients")
    if marks is None:
        log.warning("%s does not say whom it was trained on: see to it that none is tested", start)
        return
    if tested := find_folds(study.split, marks) & study.cohorts.keys():
        raise SynthError(
            f"{start} was trained on patients of fold {min(tested)}, which is tested: a leak",
            hint="begin from weights that have seen none of them, or test other folds (--folds)",
        )


def run(study: Study, units: Sequence[Unit]) -> bool:
    """Train and score units, or go on with them; return False where a training was stopped."""
    # Numbered among all, so that a study that goes on says the same of a training as before.
    left = [(f"[{k}/{len(units)}] {u}", u) for k, u in enumerate(units, start=1)
            if not study.scores(u).exists()]  # fmt: skip
    began = time.monotonic()
    for done, (label, unit) in enumerate(left, start=1):
        dice = _run(study, unit, label)
        if dice is None:
            log.warning("%s was stopped; the same command goes on", unit)
            return False
        ahead = (time.monotonic() - began) / done * (len(left) - done)
        log.info("%s: Dice %.3f; %d min left", label, dice, ahead / 60)
    return True


def rows_of(study: Study) -> dict[str, list[RegionScore]]:
    """Return arm → scores of all units, which must be done."""
    missing = [u for u in study.units if not study.scores(u).exists()]
    if missing:
        raise SynthError(
            f"{len(missing)} of {len(study.units)} trainings are not done, first: {missing[0]}",
            hint="the same command goes on; without --shard it does all that is left",
        )
    found: dict[str, list[RegionScore]] = {arm: [] for arm in study.arms}
    for unit in study.units:
        found[unit.arm] += read_scores(study.scores(unit))
    return found


def _run(study: Study, unit: Unit, label: str) -> float | None:
    """Train and score a unit; return its mean Dice, or None where it was asked to stop."""
    own, folder = study.cohorts[unit.fold], study.out / unit.folder
    items = items_of(unit.arm, own, study.config, share=study.share, cache=study.cache)
    inner = SegmentationData(own.inner, study.config, cache=study.cache, fixed=True)
    used = [*own.train, *(own.made if unit.arm == "synthetic" else ())]
    describe = {
        "family": "segmentation", "preset": study.preset, "config": study.config,
        "data_hash": data_hash(used), "patients": patient_marks([*own.train, *own.inner]),
        "unit": str(unit),
    }  # fmt: skip
    torch.manual_seed(mix(unit.seed, "initial weights"))
    recipe = Recipe(study.config, finetune.begin(study.config))
    summary = train(
        recipe, items, folder / "run", replace(study.loop, seed=unit.seed), describe=describe,
        validation=inner, device=study.device,
        label=label,
    )  # fmt: skip
    if summary["stopped"]:
        return None
    from synth.base.devices import pick

    models = load([folder / "run"], device=str(pick(study.device)))
    writer = Writer(out=folder / "segmented", models=models, plan=study.plan)
    scans = only_scans(own.tested, writer.out)
    if failed := segment_all(writer, scans):
        raise SynthError(
            f"{unit}: {failed} tested cases could not be segmented", hint="mend them: see above"
        )
    found = [
        replace(row, fold=unit.fold, seed=unit.seed)
        for case in own.tested
        for row in judge(case, writer.target(case), study.conventions)
    ]
    write_scores(study.scores(unit), found)
    return mean_of(_primary(found))


def _primary(rows: Sequence[RegionScore]) -> Iterator[float]:
    first = rows[0].convention
    return (r.values["dice"] for r in rows if r.region == "mean" and r.convention == first)


def _require_same(then: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    for key, value in now.items():
        if then.get(key) != value:
            raise SynthError(
                f"{out} was begun with other {key}: {_short(then.get(key))}, not {_short(value)}",
                hint="repeat that command, or choose another --out",
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 120 else text[:117] + "…"


def described(arms: Sequence[str]) -> list[str]:
    """Return a line an arm: what it is."""
    return [f"{arm}: {ARMS[arm]}" for arm in arms]
