"""The verbs phantom, check and split."""

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
    from synth.phantom.cohort import write_cohort
    from synth.training.log import counted

    started = time.monotonic()
    folders = write_cohort(
        out, cases=cases, size=size, seed=seed, site=site, workers=workers, progress=True
    )
    print(f"{counted(len(folders), 'case')} in {out} ({time.monotonic() - started:.0f} s)")
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
    from synth.data.case import discover
    from synth.data.check import check as examine
    from synth.data.split import read_split
    from synth.training.log import counted

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
        total = counted(len(findings), "case")
        print(f"{total}, {len(findings) - len(bad)} ok, {len(bad)} with problems")
    return 2 if bad else 0


def split(
    data: Path,
    *,
    out: Path,
    split: Path | None = None,
    folds: int = 0,
    sizes: tuple[int, ...] = (),
    testing: tuple[int, ...] = (),
    only: tuple[int, ...] = (),
    join: tuple[Path, ...] = (),
    scheme: str = "auto",
    seed: int = 0,
    force: bool = False,
) -> int:
    """Deal patients into folds, or derive a split from another: without a fold, or of it alone.

    Paths are relative to the folder that holds both data and the split. Made cases of --split are
    left out; a split that is there already with the same real cases is left as it is.

    Args:
        data: folder of cases in any BraTS naming; of a split, what its paths are relative to.
        out: decathlon-style JSON to write.
        split: take the cases of this one, and its folds if it has any.
        folds: how many to deal [5].
        sizes: patients in each fold, in place of folds.
        testing: folds that are put aside as testing.
        only: folds that stay; everybody else is left out.
        join: splits of the same real cases, whose made cases are gathered.
        scheme: label scheme; auto goes by the case ids.
        seed: seed of the dealing.
        force: overwrite another split.
    """
    import os

    from synth.base.errors import SynthError
    from synth.data import split as splits
    from synth.data.case import discover, require_unique

    if sum(map(bool, (testing, only, join))) > 1:
        raise SynthError("--testing, --only and --join", hint="give one of them")
    if join:
        found = splits.joined([splits.read_split(path, data) for path in join])
    elif split is not None:
        found = splits.kept_or_dealt(
            splits.read_split(split, data), count=folds, sizes=sizes, seed=seed
        )
    else:
        cases = [case for case in discover(data, scheme=scheme) if not case.is_made]
        require_unique(cases)
        found = splits.deal(cases, count=folds, sizes=sizes, seed=seed)
    if testing or only:
        found = splits.without(found, testing) if testing else splits.only(found, only)
    root = Path(os.path.commonpath([data.resolve(), out.parent.resolve()]))
    if out.exists() and not join and not force:
        if not splits.same_real(splits.read_split(out, root), found):
            raise SynthError(f"{out} is another split", hint="--force overwrites it")
    else:
        splits.write_split(out, found, root)
    sizes_found = [sum(e.fold == k for e in found.training) for k in splits.folds_of(found)]
    print(
        f"{out}: folds of {', '.join(map(str, sizes_found)) or 'none'} cases, "
        f"{len(found.testing)} for testing; its paths are relative to {root}"
    )
    return 0
