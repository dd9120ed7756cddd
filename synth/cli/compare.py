"""The verb compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synth.training.config import TrainConfig


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
    shard: str = "0/1",
    device: str = "auto",
    **settings: Any,
) -> int:
    """Train segmenters with and without synthetic data, and say whether it helped.

    In each fold and by each seed the arms start from the same weights and take the same steps; real
    crops are the same wherever two arms see real ones. base: real cases alone. synthetic: a share
    of the training slots goes to the generated cases of the split (fold -1). duplicated: to real
    cases once more. augmented: to those, fully augmented. An inner part of the training folds
    chooses the checkpoint, the untouched fold is reported. A generated case made after a tested
    patient, or by a generator that has seen one, is a leak and is refused. So are weights given as
    --init-from that were trained on a tested patient; those that do not say whom they have seen, as
    converted public ones, begin with a warning.
    Writes summary.json, table.md, per_case.csv, forest-*.png and pairs-*.png; the same command goes
    on after a kill.

    Args:
        data: folder that the paths of the split are relative to.
        split: decathlon-style JSON with folds, and generated cases as fold -1 with their source and
            seen_folds (`synth sample --append-to` writes them).
        out: folder of the study.
        arms: base and what it is compared with.
        share: share of the slots that other cases take.
        folds: folds to test; default all.
        seeds: trainings of each arm and fold; from one nothing can be concluded.
        inner_share: share of the training patients that choose the checkpoint.
        preset: named settings of segmentation; flags below override single ones.
        tta: average the answers to the eight mirror images.
        shard: i/n, the i-th of n equal shares of the trainings; the last to finish concludes.
        device: auto, cpu, cuda, cuda:1 …
        settings: fields of the segmentation's configuration and of the loop, by name.
    """
    from synth.base import families
    from synth.cli.models import override, preset_of

    given = {k: v for k, v in settings.items() if v is not None}
    config = override(preset_of("segmentation", preset), given)
    loop = override(families.get("segmentation").training.load()[preset], given)

    from segmentation.comparison.results import conclude
    from segmentation.comparison.trainings import Study, begin, run
    from segmentation.inference.segment import Plan
    from segmentation.recipe import fit_to_data
    from synth.base.devices import pick
    from synth.data.split import read_split
    from synth.jobs.cases import BatchOptions

    if device != "auto":
        pick(device)
    read = read_split(split, data)
    # One network for all folds: the size of a brain tells nothing about the labels of a tested one.
    real = [entry.case for entry in read.training if entry.source is None]
    config = fit_to_data(config, real, cache=out / "cache")
    study = Study(
        out=out, split=read, config=config, loop=loop, preset=preset, arms=arms,
        share=share, folds=folds, seeds=seeds, inner_share=inner_share, plan=Plan(tta=tta),
        device=device,
    )  # fmt: skip
    begin(study)
    if not run(study, BatchOptions(shard=shard).share(study.units)):
        return 130  # as a stopped training: nothing to mend, the same command goes on
    left = sum(not study.scores(unit).exists() for unit in study.units)
    if left:
        print(f"{left} of {len(study.units)} trainings are left to other shards → {out}")
        return 0
    print(conclude(study))
    print(f"→ {out}/table.md")
    return 0


def compare_settings(words: Sequence[str]) -> tuple[type, ...]:  # noqa: ARG001
    """Return the dataclasses whose fields are flags of `compare`."""
    from synth.base import families

    return (families.get("segmentation").config.load(), TrainConfig)
