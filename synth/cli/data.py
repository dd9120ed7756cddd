"""Verbs about data: demo, phantom, check."""

from __future__ import annotations

import dataclasses
import time
from json import dumps
from pathlib import Path
from typing import Literal


def phantom(
    out: Path,
    *,
    cases: int = 8,
    size: Literal["small", "full"] = "small",
    site: Literal["A", "B"] = "A",
    seed: int = 0,
    workers: int = 0,
) -> int:
    """Write a demo cohort: multi-modal brains with tumours, in the challenge layout.

    Case k is the same however many are made; finished cases are skipped when run again.

    Args:
        out: folder to write into.
        cases: number of cases.
        size: full is 240×240×155 at 1 mm, small 64³ at 2.8 mm.
        site: B is another hospital: other patients, contrast, noise, bias field and resolution.
        seed: seed of the cohort.
        workers: processes; 0 uses every core.
    """
    from synth.phantom import write_cohort

    started = time.monotonic()
    folders = write_cohort(
        out, cases=cases, size=size, seed=seed, site=site, workers=workers, progress=True
    )
    print(f"{len(folders)} cases in {out} ({time.monotonic() - started:.0f} s)")
    return 0


def check(
    data_dir: Path, *, split: Path | None = None, scheme: str = "auto", json: bool = False
) -> int:
    """Examine a data folder: one line a case, what is wrong and how to mend it.

    Exits with 2 when a case has a problem.

    Args:
        data_dir: folder with cases in any BraTS naming.
        split: examine what this decathlon-style JSON lists instead of everything in the folder.
        scheme: label scheme (brats2021, brats2023, brats2024, ped2024); auto goes by the case ids.
        json: print one JSON document instead of lines.
    """
    from synth.case import discover
    from synth.check import check as examine
    from synth.split import read_split

    if split is None:
        cases = discover(data_dir, scheme=scheme)
    else:
        listed = read_split(split, data_dir)
        cases = [entry.case for entry in (*listed.training, *listed.testing)]
    findings = []
    for finding in examine(cases):
        findings.append(finding)
        if json:
            continue
        if finding.ok:
            ml = "" if finding.tumour_ml is None else f", tumour {finding.tumour_ml:g} ml"
            shape = "×".join(map(str, finding.shape))
            spacing = "×".join(f"{s:g}" for s in finding.spacing_mm)
            print(f"{finding.id}: ok ({shape} at {spacing} mm{ml})")
        for problem, hint in zip(finding.problems, finding.hints, strict=True):
            print(f"{finding.id}: {problem} → {hint}")
    bad = [f.id for f in findings if not f.ok]
    if json:
        rows = [dataclasses.asdict(f) | {"ok": f.ok} for f in findings]
        print(dumps({"cases": rows, "bad": bad}, indent=1))
    else:
        print(f"{len(findings)} cases, {len(findings) - len(bad)} ok, {len(bad)} with problems")
    return 2 if bad else 0


def demo(*, out: Path = Path("runs/demo"), cases: int = 6, seed: int = 0, workers: int = 0) -> int:
    """Write the demo cohort, check it, and draw it: everything works when this ends well.

    Args:
        out: folder to write into.
        cases: number of cases.
        seed: seed of the cohort.
        workers: processes; 0 uses every core.
    """
    from synth.case import discover
    from synth.picture import cohort_montage

    cohort = out / "cohort"
    phantom(cohort, cases=cases, seed=seed, workers=workers)
    if check(cohort):
        return 2
    folders = [case.path("t1n").parent for case in discover(cohort)]
    picture = cohort_montage(folders, out / "cohort.png", title="demo cohort")
    print(f"\nLook at {picture}: {cases} brains, four contrasts, tumour and healthy mask.")
    print(
        "Next, remove their tumours: bash run.sh MODE=c_sample"
        f" DATA_DIR={cohort} OUTPUT_DIR={out / 'filled'}"
    )
    print("Then your own data: bash run.sh MODE=check DATA_DIR=/path/to/cases; MODE=help lists all")
    return 0
