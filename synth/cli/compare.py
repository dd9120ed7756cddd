"""The verb compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synth.base import families
from synth.training.config import TrainConfig
from synth.training.settings import override, preset_of


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How the trainings are run."""

    at_once: int = 0
    """trainings side by side on a CPU, each in one thread; 0: one after another, in all."""
    shard: str = "0/1"
    """i/n: the i-th of n equal parts of the trainings."""


def compare(
    data: Path,
    *,
    split: Path,
    out: Path,
    arms: tuple[str, ...] = ("base", "synthetic", "duplicated"),
    share: float = 0.5,
    folds: tuple[int, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    inner_share: float = 0.2,
    preset: str = "tiny",
    tta: bool = False,
    running: RunOptions,
    device: str = "auto",
    **settings: Any,
) -> int:
    """Train segmenters with and without synthetic data, and test whether the data help.

    All arms start from the same weights and take the same steps. They differ in a share of the
    training slots. base: only real cases. synthetic: generated cases of the split (fold -1).
    duplicated: real cases once more. augmented: the same with strong augmentation. The tested fold
    chooses nothing. Generated cases and --init-from weights that know a tested patient are refused.
    Writes summary.json, table.md, per_case.csv and plots. The same command continues.

    Args:
        data: folder that the paths of the split are relative to.
        split: split (JSON) with folds and generated cases, as `synth sample --append-to` writes it.
        out: folder of the comparison.
        arms: base, and what it is compared with.
        share: share of the training slots that other cases take.
        folds: folds to test [all].
        seeds: trainings of each arm and fold; one alone proves nothing.
        inner_share: share of the training patients that choose the checkpoint.
        preset: named settings of segmentation.
        steps: optimizer steps of each training.
    """
    config = override(preset_of("segmentation", preset), settings)
    loop = override(families.get("segmentation").training.load()[preset], settings)

    from segmentation.comparison.results import conclude
    from segmentation.comparison.trainings import Comparison, begin_comparison, run_trainings
    from segmentation.inference.segment import SegmentOptions
    from segmentation.recipe import fit_to_data
    from synth.base.devices import pick
    from synth.base.stopping import STOPPED
    from synth.data.split import read_split
    from synth.jobs.cases import BatchOptions

    side_by_side = running.at_once if pick(device) == "cpu" else 0
    read = read_split(split, data)
    # One network for all folds: the size of a brain tells nothing about the labels of a tested one.
    real = [entry.case for entry in read.training if entry.source is None]
    config = fit_to_data(config, real, cache=out / "cache")
    comparison = Comparison(
        out=out, split=read, config=config, loop=loop, preset=preset, arms=arms, share=share,
        folds=folds, seeds=seeds, inner_share=inner_share, options=SegmentOptions(tta=tta),
        device=device,
    )  # fmt: skip
    begin_comparison(comparison)
    share_of = BatchOptions(shard=running.shard).share(comparison.trainings)
    if not run_trainings(comparison, share_of, workers=side_by_side):
        return STOPPED[0]  # as a stopped training: the same command goes on
    if left := len(comparison.missing()):
        print(f"{left} of {len(comparison.trainings)} trainings are left to other shards → {out}")
        return 0
    print(conclude(comparison))
    print(f"→ {out}/table.md")
    return 0


def settings(words: Sequence[str]) -> tuple[type, ...]:  # noqa: ARG001
    """Return the dataclasses whose fields are options, too."""
    return (families.get("segmentation").config.load(), TrainConfig)
