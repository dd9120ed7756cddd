"""Inpainting on a left-out head: what each ingredient adds, what samplers cost, is spread honest?

    python -m benchmarks.heads CASES --model weights/wdm3d > table.md
    python -m benchmarks.heads CASES --picture holes.png

CASES holds t1n, mask and mask-healthy of brains whose holes are known. Every variant goes through
`wdm3d.inpaint` with a network of its own; guides are computed once a case.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from synth.checkpoints.checkpoint import Checkpoint
from synth.data.case import Case, discover
from synth.data.fill import BASELINES
from synth.diffusion.wavelet import dwt3
from synth.evaluate.common import evenly
from synth.evaluate.inpainting_case import KnownHole, fill_native, load_hole
from synth.metrics.image import inpainting_metrics
from synth.metrics.statistics import intervals
from synth.pictures.montage import draw_montage
from synth.pictures.slices import PLANES, cut_planes, find_frame, find_middle
from wdm3d import generate
from wdm3d.config import INPUT_SCALE, Config, SamplerOptions
from wdm3d.guides import FILLS

CALLS = (1, 2, 4, 8, 20)
DRAWS = 8  # for the calibration
Z_OF_COVERAGE = {50: 0.6745, 80: 1.2816, 95: 1.9600}


class OnlyFill(nn.Module):
    """A network that answers one fill, or their mean."""

    def __init__(self, config: Config, fill: int | None) -> None:
        super().__init__()
        self.config, self.fill = config, fill
        self.anchor = nn.Parameter(torch.zeros(1))  # it says which device the model is on

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the fill's difference from the base, as the state."""
        del t
        bands = self.config.bands
        if self.fill is None:
            return torch.zeros_like(x[:, :bands])
        fills = x[:, 2 * bands : 6 * bands].unflatten(1, (4, bands))
        difference = fills[:, self.fill] - fills[:, :3].mean(dim=1)
        return difference / (INPUT_SCALE * self.config.residual_scale)


class Bench:
    """Cases with their guides, kept."""

    def __init__(self, cases: list[Case], loaded: Checkpoint) -> None:
        self.cases, self.loaded = cases, loaded
        self.known: dict[str, KnownHole] = {case.id: load_hole(case) for case in cases}
        self.guides: dict[str, Any] = {}
        make, self.case_id = generate.guides_of, ""

        def kept(*words: Any) -> Any:
            if self.case_id not in self.guides:
                self.guides[self.case_id] = make(*words)
            return self.guides[self.case_id]

        generate.guides_of = kept

    def answers(self, options: SamplerOptions, network: nn.Module | None = None) -> Iterator[Any]:
        """Yield (case, result) of every case."""
        model = replace(self.loaded, model=network) if network is not None else self.loaded
        for case in self.cases:
            self.case_id = case.id
            known = self.known[case.id]
            hole = known.truth.with_data(known.hole)
            image = known.truth.with_data(known.voided)
            yield case, generate.inpaint(image, hole, model=model, options=options, name=case.id)

    def scores(self, answer: Callable[[Case], np.ndarray]) -> np.ndarray:  # (cases, 2)
        """Return PSNR and SSIM of each case."""
        rows = []
        for case in self.cases:
            known = self.known[case.id]
            found = inpainting_metrics(
                answer(case), known.truth.data[0], known.voided, known.healthy
            )
            rows.append((found["psnr_01"], found["ssim"]))
        return np.array(rows)

    def run(self, options: SamplerOptions, network: nn.Module | None = None) -> np.ndarray:
        """Score a network by options."""
        images = {c.id: result.image.data[0] for c, result in self.answers(options, network)}
        return self.scores(lambda case: images[case.id])


def ablation(bench: Bench) -> None:
    """Print every ingredient, alone and together, against the biharmonic fill."""
    config = bench.loaded.config
    plain = SamplerOptions(estimate="mean", flips=0)
    fills = {
        name: bench.scores(lambda case, f=BASELINES[name]: fill_native(f, bench.known[case.id]))
        for name in ("biharmonic", "mirror + rim")
    }
    rows = dict(fills)
    for index, name in enumerate(FILLS[:2]):
        rows[f"registered {name}, fitted and bent to the rim"] = bench.run(
            plain, OnlyFill(config, index)
        )
    rows["mean of these two and biharmonic (the base)"] = bench.run(plain, OnlyFill(config, None))
    rows["network, one call"] = bench.run(plain)
    rows["network, mean of 8 flips (the default)"] = bench.run(replace(plain, flips=3))
    print("\n| ingredient | PSNR dB | SSIM | PSNR minus biharmonic | SSIM minus biharmonic |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, values in rows.items():
        gains = [interval(values[:, k], fills["biharmonic"][:, k], (2, 3)[k]) for k in range(2)]
        mean = values.mean(axis=0)
        print(f"| {name} | {mean[0]:.2f} | {mean[1]:.3f} | {gains[0]} | {gains[1]} |", flush=True)


def interval(a: np.ndarray, b: np.ndarray, decimals: int) -> str:
    """Return the paired difference and its 95 % interval."""
    found = intervals(a - b)
    assert found is not None, "one case has no interval"
    mean, low, high = (f"{v:+.{decimals}f}" for v in ((a - b).mean(), *found.mean))
    return f"{mean} [{low}, {high}]"


def samplers(bench: Bench) -> None:
    """Print quality, texture and seconds of draws by calls."""
    print("\n| estimate | calls | PSNR dB | SSIM | detail energy, fine to coarse | s |")
    print("| --- | ---: | ---: | ---: | --- | ---: |")
    kinds = [("mean", "dpmpp_2m", 1), ("sharp", "dpmpp_2m", 1)]
    kinds += [("sample", s, n) for s in ("dpmpp_2m", "ddpm") for n in CALLS]
    for estimate, sampler, calls in kinds:
        options = SamplerOptions(estimate=estimate, sampler=sampler, steps=calls)  # ty: ignore[invalid-argument-type]
        began = time.monotonic()
        images = {c.id: r.image.data[0] for c, r in bench.answers(options)}
        seconds = (time.monotonic() - began) / len(images)
        score = bench.scores(lambda case, i=images: i[case.id]).mean(axis=0)
        energy = np.mean([detail(images[c.id], bench.known[c.id]) for c in bench.cases], axis=0)
        texts = " ".join(f"{e:.2f}" for e in energy)
        name = sampler if estimate == "sample" else estimate
        print(f"| {name} | {calls} | {score[0]:.2f} | {score[1]:.3f} | {texts} | {seconds:.1f} |",
              flush=True)  # fmt: skip


def detail(image: np.ndarray, known: KnownHole) -> np.ndarray:
    """Return the energy of three levels of detail inside the hole, as a share of the truth's."""
    return energies(image, known.healthy) / energies(known.truth.data[0], known.healthy)


def energies(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mean square of the detail bands of three Haar levels inside a mask."""
    found = []
    even = tuple(slice(0, n // 8 * 8) for n in image.shape)
    data = torch.from_numpy(np.ascontiguousarray(image[even], np.float32))[None, None]
    inside = ndimage.binary_erosion(mask[even])
    for _ in range(3):
        bands = dwt3(data)
        inside = inside.reshape(*[v for n in inside.shape for v in (n // 2, 2)]).all(axis=(1, 3, 5))
        found.append(float(bands[0, 1:].square().mean(0)[torch.from_numpy(inside)].mean()))
        data = bands[:, :1]
    return np.array(found)


def calibration(bench: Bench) -> None:
    """Print how often the truth lies within the intervals that the spread of draws claims."""
    means = {c.id: r.image.data[0] for c, r in bench.answers(SamplerOptions(estimate="mean"))}
    options = SamplerOptions(estimate="sample", samples=DRAWS, steps=8)
    shares: dict[int, list[float]] = {p: [] for p in Z_OF_COVERAGE}
    for case, result in bench.answers(options):
        known = bench.known[case.id]
        assert result.spread is not None
        error = np.abs(means[case.id] - known.truth.data[0])[known.healthy]
        for percent, z in Z_OF_COVERAGE.items():
            inside = error <= z * result.spread.data[0][known.healthy]
            shares[percent].append(float(inside.mean()))
    print("\n| interval | covers |\n| --- | ---: |")
    for percent, values in shares.items():
        print(f"| {percent} % | {100 * np.mean(values):.0f} % |")


def picture(bench: Bench, path: Path) -> None:
    """Draw three holes, from the best to the worst, in three planes."""
    made = {
        estimate: {c.id: r.image for c, r in bench.answers(SamplerOptions(estimate=estimate))}
        for estimate in ("mean", "sharp")
    }
    psnr = bench.scores(lambda case: made["mean"][case.id].data[0])[:, 0]
    ranked = [bench.cases[i] for i in np.argsort(-psnr)]
    rows, labels = [], []
    for case in (ranked[i] for i in evenly(len(ranked), 3)):
        known = bench.known[case.id]
        biharmonic = fill_native(BASELINES["biharmonic"], known)
        shown = [
            known.truth,
            *(known.truth.with_data(a[None]) for a in (known.voided, biharmonic)),
            *(images[case.id] for images in made.values()),
        ]
        middle = find_middle(known.hole)
        for plane, *panels in zip(PLANES, *(cut_planes(v, middle) for v in shown), strict=True):
            frame = find_frame(panels[0] > 0)
            rows.append([panel[frame] for panel in panels])
            labels.append(f"{case.id[-9:-4]} {plane}")
    columns = ("truth", "hole", "biharmonic", "mean", "sharp")
    draw_montage(rows, path, row_labels=labels, column_labels=columns, window=(0, 1.2))


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("--model", type=Path, default=Path("weights/wdm3d"))
    parser.add_argument("--only", choices=("ablation", "samplers", "calibration"))
    parser.add_argument("--picture", type=Path, help="draw this in place of the tables")
    given = parser.parse_args()
    bench = Bench(discover(given.cases), generate.load(given.model))
    if given.picture:
        picture(bench, given.picture)
        return
    for table in (ablation, samplers, calibration):
        if given.only in (None, table.__name__):
            table(bench)


if __name__ == "__main__":
    main()
