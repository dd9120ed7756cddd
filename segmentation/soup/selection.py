"""Chooses among weights by their Dice on a set of cases.

Whatever is chosen here looks better on these cases than it is: they must not be reported on.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from segmentation.data import prepared
from segmentation.inference.postprocess import settle
from segmentation.inference.segment import Plan, load, predicted, scans_of
from segmentation.soup.averaging import Kind, Scores, Soup, Weights, greedy, uniform
from synth.base.errors import SynthError
from synth.base.files import file_hash
from synth.checkpoints import checkpoint
from synth.checkpoints.checkpoint import Checkpoint
from synth.data.cache import ArrayCache, Arrays
from synth.data.case import MODALITIES, Case
from synth.data.labels import regions_of
from synth.data.prepare import Frame
from synth.metrics.overlap import dice

# Settings that make two networks one, apart from their weights; how they were trained may differ.
ALIKE = ("network", "kernel", "width", "deep_supervision", "patch", "spacing_mm")


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """Measures weights as the mean Dice of WT, TC and ET over cases, each on its own grid."""

    loaded: Checkpoint
    cases: Sequence[Case]
    plan: Plan
    cache: ArrayCache = field(default_factory=ArrayCache)
    frames: dict[str, tuple[Frame, float]] = field(default_factory=dict)
    """Case → its frame, and ml a voxel."""

    def __call__(self, weights: Weights) -> float:
        """Return the mean Dice; an empty region that is found empty counts 1."""
        self.loaded.model.load_state_dict(weights)
        return float(np.mean([self.case_dice(case) for case in self.cases]))

    def case_dice(self, case: Case) -> float:
        """Return the mean Dice of one case over the regions."""
        arrays = self.cache.get(case.id, case.scheme, lambda: self._prepare(case))
        frame, voxel_ml = self.frames[case.id]
        image = torch.from_numpy(np.array(arrays["image"]))  # a copy: files are read-only
        found = settle(predicted(image, frame, self.loaded, self.plan), self.plan.rules, voxel_ml)
        pairs = zip(found, arrays["truth"], strict=True)
        return float(np.mean([dice(mine, true, both_empty="perfect") for mine, true in pairs]))

    def _prepare(self, case: Case) -> Arrays:
        scans, labels = scans_of(case), case.load("seg")
        first = scans[MODALITIES[0]]
        first.require_same_grid(labels, (MODALITIES[0], "seg"))
        image, frame = prepared([scans[m] for m in MODALITIES], self.loaded.config)
        self.frames[case.id] = frame, first.voxel_ml
        return {"image": image.numpy(), "truth": regions_of(labels.data[0], case.scheme)}

    def fingerprint(self) -> str:
        """Return what a score depends on besides the weights: network, plan, and every file."""
        config = [getattr(self.loaded.config, name) for name in ALIKE]
        digest = hashlib.blake2b(repr((config, self.plan)).encode(), digest_size=8)
        for case in self.cases:
            hashes = [file_hash(case.path(role)) for role in (*MODALITIES, "seg")]
            digest.update(f"{case.id} {case.scheme} {' '.join(hashes)}\n".encode())
        return digest.hexdigest()


def require_one_network(paths: Sequence[Path]) -> None:
    """Refuse checkpoints whose weights have no common meaning; nothing is built."""
    first = None
    for path in paths:
        facts = checkpoint.read_metadata(path)
        if facts["family"] != "segmentation":
            raise SynthError(
                f"{path} is a {facts['family']} checkpoint", hint="soups are of segmentation"
            )
        config = facts["config"]
        first = first or config
        for name in ALIKE:
            if config.get(name) != first.get(name):
                raise SynthError(
                    f"{path} has {name} = {config.get(name)}, {paths[0]} {first.get(name)}",
                    hint="soups need one network; an ensemble (synth segment) may mix them",
                )


def cook(
    paths: Sequence[Path],
    cases: Sequence[Case],
    out: Path,
    *,
    kind: Kind = "greedy",
    plan: Plan | None = None,
    device: str = "cpu",
    scores: Path | None = None,
) -> Soup:
    """Make a soup of checkpoints, chosen on `cases`, and write it as a checkpoint.

    Args:
        paths: checkpoints or runs, of one network.
        cases: with four contrasts and a segmentation; not to be reported on afterwards.
        out: checkpoint folder to write.
        kind: uniform averages all; greedy takes in what helps.
        plan: how cases are segmented while choosing.
        device: where to.
        scores: JSON file that keeps scores between runs; default OUT/scores.json.
    """
    require_one_network(paths)
    if not cases:
        raise SynthError("no case to choose on", hint="a fold with cases, or a folder of them")
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(
            loaded=load(paths[:1], device)[0],
            cases=cases,
            plan=plan or Plan(),
            cache=ArrayCache(Path(folder)),
        )
        data = judge.fingerprint()
        kept = Scores(judge, data, scores or out / "scores.json")
        members = [(str(path), partial(_weights, path)) for path in paths]
        soup = {"uniform": uniform, "greedy": greedy}[kind](members, kept)
    best = checkpoint.load(soup.best)
    best.model.load_state_dict(soup.weights)
    rows = [vars(row) for row in soup.rows]
    told = [m for p in paths if (m := checkpoint.read_metadata(p).get("patients")) is not None]
    checkpoint.save(
        out,
        model=best.model,
        family="segmentation",
        preset=best.preset,
        config=best.config,
        patients=sorted({mark for marks in told for mark in marks}) if told else None,
        metrics={"dice_on_selection": soup.score},
        source=f"{kind} soup of {', '.join(soup.kept)}" if soup.gain > 0 else soup.best,
        soup={"kind": kind, "table": rows, "gain": soup.gain, "measured": kept.measured},
        selected_on={"cases": [case.id for case in cases], "data": data},
    )
    return soup


def _weights(path: Path) -> Weights:
    return checkpoint.load(path).model.state_dict()
