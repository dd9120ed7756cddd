"""Do drawn tumour labels look like real ones? One table: generators, simple rivals, real masks.

    python -m benchmarks.label_gan NAME=CHECKPOINT ... --train DATA --unseen DATA -o OUT

Every line has `--count` masks on the training cohort's voxel size, judged against the lesions of
`--unseen`, which nothing was fitted on. `--split JSON` takes both sets from one folder (`--train`):
its training and its testing cases.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from label_gan import lesion_size
from label_gan.config import Config
from label_gan.data import LesionData
from label_gan.distance_maps import from_output
from label_gan.generate import draw, load
from label_gan.shape import Shape, signed_distance
from synth.base.errors import SynthError
from synth.base.files import write_json, write_text
from synth.base.seeding import generator
from synth.checkpoints.checkpoint import Checkpoint
from synth.data.case import Case
from synth.data.split import read_split
from synth.evaluate.mask_files import Mask, find_masks, on_spacing
from synth.evaluate.mask_reference import MaskComparison, MaskReference, sets_table
from synth.evaluate.masks import draw_page
from synth.evaluate.tables import markdown_table, plain_table
from synth.metrics.shape import regions_of

EXPLAINED = 0.97
"""Share of the variance that the components of the PCA keep."""
RAW_DRAWS = 20
"""Drawings whose nesting is checked before repair."""


def as_mask(shape: Shape) -> Mask:
    return Mask(
        name=shape.source, path=Path(shape.source), regions=regions_of(shape.labels),
        spacing_mm=(shape.spacing_mm,) * 3,
    )  # fmt: skip


def lesions(cases: list[Case]) -> list[Mask]:
    """Cut the lesions out as the generators see them in training."""
    cohort = LesionData(cases, Config())
    shapes = list(cohort.shapes())
    masks = [as_mask(shape) for shape in shapes]
    return on_spacing(masks, cohort.spacing_mm())


def drawn(
    loaded: Checkpoint, count: int, spacing_mm: float, *, raw: int = RAW_DRAWS
) -> tuple[list[Mask], float]:
    """Draw masks, and say which share of raw drawings is nested before it is made to be."""
    shapes = [shape for shape, _ in draw(loaded, count, spacing_mm=spacing_mm)]
    nested = [nested_raw(loaded, number) for number in range(raw)]
    return [as_mask(shape) for shape in shapes], float(np.mean(nested))


@torch.no_grad()
def nested_raw(loaded: Checkpoint, number: int) -> bool:
    """Whether the network's own maps, cut at their level one by one, are each in the one before."""
    stream, network = generator(0, "raw", number), loaded.model
    size = None
    if loaded.config.architecture == "ordered":
        size = lesion_size.choose(network.table, stream, None)[None]
    code = torch.randn(1, network.code_length, generator=stream)
    masks = from_output(network(code, size)[0], loaded.config) < 0
    return not (masks[1:] & ~masks[:-1]).any()


def spheres(train: list[Mask], count: int, rng: np.random.Generator) -> Iterator[Mask]:
    """Concentric balls with the volumes of a training mask: necrosis in a rim in oedema."""
    for number in range(count):
        source = train[rng.integers(len(train))]
        wt, tc, et = (int(region.sum()) for region in source.regions)
        edge = 2 * int(np.ceil((wt * 3 / 4 / np.pi) ** (1 / 3))) + 5
        middle = (edge - 1) / 2 + rng.uniform(-0.5, 0.5, 3)
        places = np.indices((edge,) * 3).reshape(3, -1) - middle[:, None]
        order = np.argsort((places**2).sum(0), kind="stable")
        labels = np.zeros(edge**3, np.uint8)
        labels[order[:wt]], labels[order[:tc]], labels[order[: tc - et]] = 2, 3, 1
        cube = labels.reshape((edge,) * 3)
        yield as_mask(Shape(labels=cube, spacing_mm=source.spacing_mm[0], source=f"ball {number}"))


def principal_components(train: list[Mask], count: int, rng: np.random.Generator) -> Iterator[Mask]:
    """Gaussian codes in the principal components of the signed distances of WT, TC and ET."""
    edge = 2 * max(max(m.regions.shape[1:]) for m in train) // 2 + 9
    maps = np.stack([_distances(mask, edge) for mask in train]).reshape(len(train), -1)
    mean = maps.mean(axis=0)
    values, vectors = np.linalg.eigh((maps - mean) @ (maps - mean).T)
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    kept = int(np.searchsorted(np.cumsum(values) / values.sum(), EXPLAINED)) + 1
    basis = vectors[:, :kept].T @ (maps - mean) / np.sqrt(len(train) - 1)
    made = 0
    while made < count:
        levels = (mean + rng.standard_normal(kept) @ basis).reshape(3, edge, edge, edge)
        if not (levels[0] < 0).any():
            continue
        # Left as they come: this is what three thresholds make of nesting.
        yield Mask(
            name=f"pca {made}", path=Path(f"pca {made}"), regions=regions_of(levels < 0),
            spacing_mm=train[0].spacing_mm,
        )  # fmt: skip
        made += 1


def turned(train: list[Mask], count: int, rng: np.random.Generator) -> Iterator[Mask]:
    """Training masks under a random rotation and, half of them, mirrored."""
    for number in range(count):
        source = train[rng.integers(len(train))]
        edge = int(np.ceil(np.linalg.norm(source.regions.shape[1:]))) + 4
        turn = Rotation.random(rng=rng).as_matrix() * rng.choice([-1.0, 1.0])
        middle = np.full(3, (edge - 1) / 2)
        read = [
            ndimage.affine_transform(
                d, turn, middle - turn @ middle, order=1, mode="nearest", output_shape=(edge,) * 3
            )
            for d in _distances(source, edge)
        ]
        regions = np.logical_and.accumulate(np.stack(read) < 0)
        if regions[0].any():
            yield Mask(
                name=f"turned {number}", path=source.path, regions=regions_of(regions),
                spacing_mm=source.spacing_mm,
            )  # fmt: skip


def _distances(mask: Mask, edge: int) -> np.ndarray:  # (3, edge, edge, edge)
    """Signed distances in voxels about WT's centroid; an absent region is far away."""
    centre = np.argwhere(mask.regions[0]).mean(axis=0)
    before = np.rint((edge - 1) / 2 - centre).astype(int)
    box = tuple(slice(b, b + n) for b, n in zip(before, mask.regions.shape[1:], strict=True))
    whole = np.zeros((3, edge, edge, edge), bool)
    whole[(slice(None), *box)] = mask.regions
    return np.stack([signed_distance(region) for region in whole]).clip(max=edge)


RIVALS: dict[str, Callable[[list[Mask], int, np.random.Generator], Iterator[Mask]]] = {
    "spheres, real volumes": spheres,
    "PCA of signed distances": principal_components,
    "training masks, turned": turned,
}


def compare(
    checkpoints: dict[str, Checkpoint], train: list[Mask], unseen: list[Mask], count: int
) -> tuple[
    dict[str, list[Mask]], dict[str, MaskComparison], MaskReference, dict[str, dict[str, float]]
]:
    """Judge every generator; returns masks, verdicts, the reference, and the seconds of each."""
    spacing_mm = train[0].spacing_mm[0]
    reference = MaskReference(on_spacing(unseen, spacing_mm), train)
    masks, facts = {}, {}
    for name, loaded in checkpoints.items():
        began = time.monotonic()
        masks[name], nested = drawn(loaded, count, spacing_mm)
        seconds = (time.monotonic() - began) / count
        facts[name] = {"nested_before_mending": nested, "seconds_a_mask": seconds}
    for number, (name, make) in enumerate(RIVALS.items()):
        masks[name] = list(make(train, count, np.random.default_rng((0, number))))
    verdicts = {name: reference.judge(own) for name, own in masks.items()}
    verdicts["training masks"] = reference.judge(train, training=True)
    return masks, verdicts, reference, facts


def cohorts(options: argparse.Namespace) -> tuple[list[Case], list[Case]]:
    if options.split is not None:
        parts = read_split(options.split, options.train)
        return [e.case for e in parts.training], [e.case for e in parts.testing]
    if options.unseen is None:
        raise SynthError("no unseen masks to judge by", hint="--unseen FOLDER, or --split JSON")
    return find_masks(options.train), find_masks(options.unseen)


def main() -> None:
    """Print the table; write OUT/table.md, OUT/table.json and OUT/masks.png."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", nargs="*", metavar="NAME=CHECKPOINT")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--unseen", type=Path)
    parser.add_argument("--split", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    named = dict(word.split("=", 1) for word in options.checkpoints)
    train, unseen = (lesions(cases) for cases in cohorts(options))
    loaded = {name: load(path) for name, path in named.items()}
    masks, verdicts, reference, facts = compare(loaded, train, unseen, options.count)
    table = sets_table(verdicts, reference)
    print(plain_table(table))
    for name, own in facts.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3g}" for key, value in own.items()))
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "table.md", markdown_table(table) + "\n")
    numbers = {name: v.numbers() | facts.get(name, {}) for name, v in verdicts.items()}
    write_json(options.out / "table.json", {"real": reference.floor, **numbers})
    print(draw_page(masks | {"unseen real": unseen}, options.out / "masks.png", most=8))


if __name__ == "__main__":
    main()
