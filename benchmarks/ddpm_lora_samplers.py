"""How many network calls does a scan need, by which sampler? AUC, KID and Dice for each.

    python -m benchmarks.ddpm_lora_samplers runs/base --lora runs/site_b --data data/site_b \
        --split data/site_b/split.json --segmenter runs/seg -o runs/samplers

Scans are drawn for label maps of the split's testing cases, which neither model nor segmenter has
seen, or with --into their tumours are painted anew into their own scans, and compared with these
cases: the AUC of the two-sample test with its interval; unbiased KID with its bootstrap interval;
Dice of the segmenter's answer against the label map; the median over cases of the largest |z| of a
region's brightness; and seconds a volume on this machine. The last lines are the floor: what random
halves of the real cases stay within, and what the segmenter reaches on real scans. KID is that of
`synth evaluate synthesis` with random convolutions, so that it does not depend on the segmenter.

The same command goes on where it was stopped. The predecessor's sampler is `ddpm` at 250 calls.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.networks import table
from ddpm_lora.generate import SamplerOptions, load
from ddpm_lora.provenance import Provenance
from ddpm_lora.write_samples import Maker, make
from synth.base.devices import pick
from synth.base.files import read_json, write_json
from synth.data.case import Case, discover
from synth.data.split import read_split
from synth.evaluate.scans import two_sample
from synth.evaluate.scans.features import Description, RandomConvolutions, TumourSegmenter, describe
from synth.evaluate.scans.reference import ScanReference
from synth.evaluate.scans.scan_case import common_spacing_mm, load_scans
from synth.training import log

CALLS = (5, 10, 20, 50, 250)
SAMPLERS = ("ddpm", "ddim", "dpmpp_2m")
HEAD = [
    "sampler",
    "calls",
    "AUC [95 %]",
    "KID [95 %]",
    "MMD² [95 %]",
    "Dice",
    "z",
    "signs",
    "s/volume",
]


@dataclass(kw_only=True)
class Judge:
    """Describes cases, and compares them with the real ones."""

    real: Sequence[Case]
    segmenter: TumourSegmenter | None
    painted: bool

    @cached_property
    def reference(self) -> ScanReference:
        """The real cases."""
        return ScanReference(self.described(self.real))

    def numbers(self, folder: Path) -> dict[str, Any]:
        """Judge the scans in a folder of `synth sample`."""
        made = self.described(discover(folder))
        found = self.reference.numbers(self.reference.judge(made), made)
        return found | {"two_sample": two_sample.judge(made, self.reference.real)}

    def described(self, cases: Sequence[Case]) -> list[Description]:
        """Read cases."""
        features, spacing_mm = RandomConvolutions(), common_spacing_mm(self.real)
        scans = [load_scans(case, spacing_mm) for case in cases]
        return [
            describe(
                s, features, self.segmenter, looks={"": two_sample.looks(s, around=self.painted)}
            )
            for s in scans
        ]


def seconds_of(folder: Path) -> float:
    """Mean seconds of a draw, from the records."""
    records = [read_json(path, dict) for path in sorted((folder / "records").glob("*.json"))]
    return float(np.mean([record["seconds"] for record in records]))


def row(sampler: str, calls: int, found: dict[str, Any], seconds: float) -> list[str]:
    kid, mmd2 = (
        f"{d['value']:.3g} [{d['low']:.3g}, {d['high']:.3g}]" for d in (found["kid"], found["mmd2"])
    )
    shown = [cell(found[n], k) for n, k in (("seg_dice", "mean"), ("z_intensity", "median"),
                                           ("signs", "mean"))]  # fmt: skip
    return [sampler, str(calls), auc(found, "made"), kid, mmd2, *shown, f"{seconds:.1f}"]


def auc(found: dict[str, Any], which: str) -> str:
    """How well the two-sample test tells made from real, or halves of the real; few say nothing."""
    apart = (found["two_sample"] or {}).get(which)
    return f"{apart['auc']:.2f} [{apart['low']:.2f}, {apart['high']:.2f}]" if apart else "–"


def floor_row(reference: ScanReference, last: dict[str, Any]) -> list[str]:
    found = reference.numbers(reference.verdict, reference.real)
    floors = [f"≤ {reference.floor[name]['high']:.3g}" for name in ("kid", "mmd2")]
    shown = [cell(found["seg_dice"], "mean"), cell(found["z_intensity"], "median"),
             cell(found["signs"], "mean")]  # fmt: skip
    return ["unseen real", "–", auc(last, "real"), *floors, *shown, "–"]


def cell(found: dict[str, Any] | None, key: str) -> str:
    return "–" if found is None else f"{found[key]:.3f}"


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="ddpm_lora checkpoint")
    parser.add_argument("--lora", nargs="*", default=[], help="adapters, as folder or folder:0.7")
    parser.add_argument("--data", type=Path, required=True, help="cases of the site to be like")
    parser.add_argument("--split", type=Path, help="its testing cases are held out [all are]")
    parser.add_argument("--segmenter", type=Path, help="trained on real cases of the same site")
    parser.add_argument("--samplers", nargs="*", default=SAMPLERS)
    parser.add_argument("--calls", type=int, nargs="*", default=CALLS)
    parser.add_argument("--into", action="store_true", help="paint into the cases' own scans")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--cases", type=int, default=16, help="label maps to draw for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    wish = parsed(words)
    log.configure()
    device = pick(wish.device)
    listed = read_split(wish.split, wish.data).testing if wish.split else ()
    real = [entry.case for entry in listed] or [c for c in discover(wish.data) if not c.is_made]
    chosen = np.linspace(0, len(real) - 1, min(wish.cases, len(real))).round().astype(int)
    label_maps = [real[i] for i in chosen]
    loaded = load(wish.model, wish.lora, device)
    segmenter = TumourSegmenter(wish.segmenter, device) if wish.segmenter else None
    judge = Judge(real=real, segmenter=segmenter, painted=wish.into)
    rows, numbers = [HEAD], {}
    for sampler in wish.samplers:
        for calls in wish.calls:
            folder = wish.out / f"{sampler}-{calls}"
            options = SamplerOptions(
                steps=calls, sampler=sampler, guidance=wish.guidance,
                temperature=wish.temperature, seed=wish.seed,
            )  # fmt: skip
            maker = Maker(
                out=folder,
                loaded=loaded,
                options=options,
                samples=1,
                provenance=Provenance(),
                hosts=real if wish.into else (),
            )
            if make(maker, label_maps):
                raise SystemExit(f"some scans of {folder} could not be drawn")
            found = judge.numbers(folder)
            numbers[folder.name] = found
            rows.append(row(sampler, calls, found, seconds_of(folder)))
            write_json(wish.out / "samplers.json", numbers)
    rows.append(floor_row(judge.reference, found))
    print(f"{len(label_maps)} label maps, {len(real)} real cases, guidance {wish.guidance:g}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
