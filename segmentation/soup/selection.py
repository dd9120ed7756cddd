"""Chooses among weights by their Dice on a set of cases.

Whatever is chosen here looks better on these cases than it is: they must not be reported on.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segmentation.config import require_segmentation
from segmentation.data import prepare_scans
from segmentation.inference.postprocess import apply_rules
from segmentation.inference.segment import SegmentOptions, load_models, load_scans, predict
from segmentation.soup.averaging import Kind, Soup, Weights, average
from synth.base.errors import SynthError
from synth.base.files import file_hash, read_json, write_json
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
class CaseScores:
    """Measures weights as the mean Dice of WT, TC and ET over cases, each on its own grid.

    Scores are kept in a JSON file by the content of the weights and of the data.
    """

    model: Checkpoint
    cases: Sequence[Case]
    options: SegmentOptions
    cache: ArrayCache
    file: Path
    frames: dict[str, tuple[Frame, float]] = field(default_factory=dict)
    """Case → its frame, and ml a voxel."""
    measured: list[str] = field(default_factory=list)
    """Keys of the scores that were not in the file."""

    def __call__(self, weights: Weights) -> float:
        """Return the mean Dice, measured at most once; an empty region found empty counts 1."""
        known = read_json(self.file, dict[str, float]) if self.file.exists() else {}
        key = f"{content_hash(weights)}:{self.fingerprint}"
        if key not in known:
            self.model.model.load_state_dict(weights)
            known[key] = float(np.mean([self.case_dice(case) for case in self.cases]))
            self.measured.append(key)
            write_json(self.file, known)
        return known[key]

    def case_dice(self, case: Case) -> float:
        """Return the mean Dice of one case over the regions."""
        arrays = self.cache.get(case.id, case.scheme, lambda: self._prepare(case))
        frame, voxel_ml = self.frames[case.id]
        image = torch.from_numpy(np.array(arrays["image"]))  # a copy: files are read-only
        answer = predict(image, frame, self.model, self.options)
        pairs = zip(apply_rules(answer, self.options.rules, voxel_ml), arrays["truth"], strict=True)
        return float(np.mean([dice(mine, true, both_empty="perfect") for mine, true in pairs]))

    def _prepare(self, case: Case) -> Arrays:
        scans, labels = load_scans(case), case.load("seg")
        first = scans[MODALITIES[0]]
        first.require_same_grid(labels, (MODALITIES[0], "seg"))
        image, frame = prepare_scans([scans[m] for m in MODALITIES], self.model.config)
        self.frames[case.id] = frame, first.voxel_ml
        return {"image": image.numpy(), "truth": regions_of(labels.data[0], case.scheme)}

    @cached_property
    def fingerprint(self) -> str:
        """Return what a score depends on besides the weights: network, options, and every file."""
        settings = repr(([getattr(self.model.config, name) for name in ALIKE], self.options))
        settings = settings.replace("SegmentOptions(", "Plan(")  # scores of earlier versions count
        digest = hashlib.blake2b(settings.encode(), digest_size=8)
        for case in self.cases:
            hashes = [file_hash(case.path(role)) for role in (*MODALITIES, "seg")]
            digest.update(f"{case.id} {case.scheme} {' '.join(hashes)}\n".encode())
        return digest.hexdigest()


def content_hash(weights: Weights) -> str:
    """Return a fingerprint of names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def make_soup(
    paths: Sequence[Path],
    cases: Sequence[Case],
    out: Path,
    *,
    kind: Kind = "greedy",
    options: SegmentOptions,
    device: str = "cpu",
    scores: Path | None = None,
) -> Soup:
    """Make a soup of checkpoints, chosen on `cases`, and write it as a checkpoint.

    Args:
        paths: checkpoints or runs, of one network.
        cases: with four contrasts and a segmentation; not to be reported on afterwards.
        out: checkpoint folder to write.
        kind: uniform averages all; greedy takes in what helps.
        options: how cases are segmented while choosing.
        device: where to.
        scores: JSON file that keeps scores between runs; default OUT/scores.json.
    """
    facts = _require_one_network(paths)
    if not cases:
        raise SynthError("no case to choose on", hint="a fold with cases, or a folder of them")
    with tempfile.TemporaryDirectory() as folder:
        score = CaseScores(
            model=load_models(paths[:1], device)[0], cases=cases, options=options,
            cache=ArrayCache(Path(folder)), file=scores or out / "scores.json",
        )  # fmt: skip
        soup = average(kind, {str(path): partial(_read_weights, path) for path in paths}, score)
    best = checkpoint.load(soup.best)
    best.model.load_state_dict(soup.weights)
    patients = [own["patients"] for own in facts if own.get("patients") is not None]
    checkpoint.save(
        out,
        model=best.model,
        family="segmentation",
        preset=best.preset,
        config=best.config,
        patients=sorted(set().union(*patients)) if patients else None,
        metrics={"dice_on_selection": soup.score},
        source=f"{kind} soup of {', '.join(soup.kept)}" if soup.gain > 0 else soup.best,
        soup={"kind": kind, "table": [vars(row) for row in soup.rows], "gain": soup.gain,
              "measured": len(score.measured)},
        selected_on={"cases": [case.id for case in cases], "data": score.fingerprint},
    )  # fmt: skip
    return soup


def _require_one_network(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the metadata of checkpoints; refuse weights that cannot be averaged."""
    if len(set(paths)) < len(paths) or not paths:
        raise SynthError("a soup is made of different checkpoints", hint="name each of them once")
    found = [checkpoint.read_metadata(path) for path in paths]
    first = found[0]["config"]
    for path, facts in zip(paths, found, strict=True):
        require_segmentation(path, facts["family"])
        for name in ALIKE:
            if facts["config"].get(name) != first.get(name):
                raise SynthError(
                    f"{path} has {name} = {facts['config'].get(name)}, {paths[0]} "
                    f"{first.get(name)}",
                    hint="soups need one network; an ensemble (synth segment) may mix them",
                )
    return found


def _read_weights(path: Path) -> Weights:
    return checkpoint.load(path).model.state_dict()
