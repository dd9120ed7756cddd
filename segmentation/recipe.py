"""How a segmenter is trained: one loss over all scales, validated by Dice."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from segmentation import finetune, optimizers
from segmentation.config import FROM_DATA, LARGEST, Config
from segmentation.data import SegmentationData
from segmentation.losses import LOSSES, supervised
from segmentation.predict import probabilities
from synth.checkpoints import checkpoint
from synth.data.cache import ArrayCache
from synth.data.case import MODALITIES, Case
from synth.data.labels import REGIONS
from synth.data.volume import Volume
from synth.metrics.overlap import dice
from synth.training.recipe import Writer

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
SHOWN = MODALITIES.index("t1c")  # under the regions in previews


class Recipe:
    """The one-loss recipe of `synth.training.loop`."""

    def __init__(self, config: Config, network: nn.Module | None = None) -> None:
        self.config = config
        self.model: nn.Module = network or finetune.start_network(config)

    def optimizers(self) -> dict[str, Optimizer]:
        """One, over what is not frozen."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return {"model": optimizers.build_optimizer(self.config, trained)}

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Answer every scale."""
        answers = self.model(batch["image"])
        yield "model", supervised(answers, batch["regions"], LOSSES[self.config.loss])

    def validate(self, batch: Batch) -> dict[str, float]:
        """Dice of a whole case; a region that truth and prediction leave empty has none.

        `left_out_ET` and so on say in which share of the cases that happened.
        """
        predicted, truth = self.predicted(batch).cpu().numpy(), batch["regions"][0].cpu().numpy()
        found = {r: dice(p, t) for r, p, t in zip(REGIONS, predicted, truth, strict=True)}
        known = {f"dice_{r}": value for r, value in found.items() if not np.isnan(value)}
        left_out = {f"left_out_{r}": float(np.isnan(value)) for r, value in found.items()}
        mean = {"dice": float(np.mean(list(known.values())))} if known else {}
        return mean | known | left_out

    def predicted(self, batch: Batch) -> Tensor:  # (3, x, y, z) bool
        """The regions of a batch of one whole case."""
        image = batch["image"][0]
        return probabilities(self.model, image, self.config, device=image.device) > 0.5

    def preview(self, batch: Batch) -> dict[str, Volume]:
        """The scan, and on its grid truth and prediction: 1 WT only, 2 TC only, 3 ET."""
        affine = np.diag([*[self.config.spacing_mm] * 3, 1.0])
        shown = {
            "t1c": batch["image"][:, SHOWN],
            "truth": batch["regions"].sum(1).short(),
            "prediction": self.predicted(batch)[None].sum(1).short(),
        }
        return {name: Volume(data=v.cpu().numpy(), affine=affine) for name, v in shown.items()}

    def writer(self, describe: Mapping[str, Any]) -> Writer:
        """Return what writes a checkpoint; of `init_from` it keeps the name, not where it was.

        Whom `init_from` was trained on, this one has seen too.
        """
        start = self.config.init_from
        began = Path(start).name if start else ""
        marks = checkpoint.read_metadata(start).get("patients") if start else None
        if marks is not None:
            describe = {**describe, "patients": sorted({*describe.get("patients", ()), *marks})}

        def publish(folder: Path, model: nn.Module, facts: dict[str, Any]) -> None:
            said: dict[str, Any] = {**describe, **facts}
            said["config"] = replace(self.config, init_from=began)
            checkpoint.write(folder, model=model, **said)

        return publish


def fit_to_data(config: Config, cases: Sequence[Case], *, cache: Path) -> Config:
    """Return the configuration with a patch: where it leaves that to the data, the median brain.

    The brain box on the network's grid is rounded up, up to the largest patch. What is prepared for
    it stays in the cache, so that a run that goes on chooses at once, and the same.
    """
    if config.patch != FROM_DATA or not cases:
        return config
    data = SegmentationData(cases, config, cache=ArrayCache(cache))
    boxes = [data.prepare_case(index)["image"].shape[1:] for index in range(len(data))]
    edges = np.ceil(np.median(boxes, axis=0) / config.multiple).astype(int) * config.multiple
    most = np.array(LARGEST) // config.multiple * config.multiple
    x, y, z = (int(edge) for edge in np.minimum(edges, most))
    log.info("patch %d × %d × %d, from the brains of %d cases", x, y, z, len(cases))
    return replace(config, patch=(x, y, z))


def assemble(
    config: Config, training: Sequence[Case], held_out: Sequence[Case], *, cache: Path
) -> tuple[Recipe, SegmentationData, SegmentationData | None]:
    """Return (recipe, training items, validation items) for the loop."""
    config = fit_to_data(config, training, cache=cache)
    network = finetune.start_network(config)  # before preparing: it may refuse a setting
    if config.init_from:
        log.info("from %s:\n%s", config.init_from, finetune.parts_table(network, config))
    arrays = ArrayCache(cache)
    items = SegmentationData(training, config, cache=arrays)
    validation = SegmentationData(held_out, config, cache=arrays, fixed=True)
    return Recipe(config, network), items, validation if held_out else None
