"""The verbs phantom, check, split and export."""

from __future__ import annotations

import dataclasses
import time
from json import dumps
from pathlib import Path
from typing import Literal

MOST_NAMED = 5
"""Files that `check` names one by one."""


def phantom(
    out: Path,
    *,
    cases: int = 8,
    size: Literal["small", "full"] = "small",
    site: Literal["A", "B"] = "A",
    seed: int = 0,
    workers: int = 0,
) -> int:
    """Write a cohort of made-up patients with tumours, in the layout of the challenge.

    Case k is the same, however many cases are made. Finished cases are skipped.

    Args:
        cases: number of cases.
        size: full is 240×240×155 at 1 mm, small is 64³ at 2.8 mm.
        site: B is another hospital: other patients, contrast, noise, bias field and resolution.
        seed: seed of the cohort.
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
    """Check a data folder: one line for each case, with its problems and how to solve them.

    The exit code is 2 when a case has a problem.

    Args:
        data_dir: folder with cases in any BraTS naming.
        split: check only the cases of this split (JSON).
        json: print one JSON document instead of lines.
    """
    from synth.base.errors import printable
    from synth.data.case import discover, find_unrecognised
    from synth.data.check import check as examine
    from synth.data.split import read_split
    from synth.training.log import counted

    odd: list[Path] = []
    if split is None:
        cases, odd = discover(data_dir, scheme=scheme), find_unrecognised(data_dir)
    else:
        listed = read_split(split, data_dir)
        cases = [entry.case for entry in (*listed.training, *listed.testing)]
    findings = []
    for finding in examine(cases):
        findings.append(finding)
        if not json:
            print(printable("\n".join(finding.lines())))
    bad = [f.id for f in findings if not f.ok]
    if json:
        rows = [dataclasses.asdict(f) | {"ok": f.ok} for f in findings]
        unrecognised = [str(path) for path in odd]
        print(dumps({"cases": rows, "bad": bad, "unrecognised": unrecognised}, indent=1))
    else:
        for path in odd[:MOST_NAMED]:
            shown = printable(str(path.relative_to(data_dir)))
            print(f"{shown}: not read: no naming fits its name")
        if len(odd) > MOST_NAMED:
            print(f"… and {len(odd) - MOST_NAMED} more files")
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
    """Divide patients into folds, or make a split from another one, with or without some folds.

    Paths in a split are relative to the folder that holds both the data and the split. Generated
    cases of --split are left out. An existing split with the same real cases is not changed.

    Args:
        data: folder of cases in any BraTS naming; of a split, what its paths are relative to.
        out: split (JSON) to write.
        split: take the cases of this split, and its folds if it has any.
        folds: number of folds [5].
        sizes: number of patients in each fold; instead of --folds.
        testing: folds that become testing cases.
        only: folds that stay; all others are left out.
        join: splits of the same real cases, whose generated cases are collected.
        seed: seed of the random order of patients.
        force: overwrite another split.
    """
    import os

    from synth.base.errors import SynthError
    from synth.data import split as splits
    from synth.data.case import discover, require_unique

    if sum(map(bool, (testing, only, join))) > 1:
        raise SynthError("--testing, --only and --join", hint="give one of them")
    if join:
        found = splits.join([splits.read_split(path, data) for path in join])
    elif split is not None:
        found = splits.assign_folds(
            splits.read_split(split, data), count=folds, sizes=sizes, seed=seed
        )
    else:
        cases = [case for case in discover(data, scheme=scheme) if not case.is_made]
        require_unique(cases)
        found = splits.split_cases(cases, count=folds, sizes=sizes, seed=seed)
    if testing:
        found = splits.set_folds_aside(found, testing)
    if only:
        found = splits.keep_folds(found, only)
    root = Path(os.path.commonpath([data.resolve(), out.parent.resolve()]))
    if out.exists() and not join and not force:
        if not splits.has_same_real(splits.read_split(out, root), found):
            raise SynthError(f"{out} is another split", hint="--force overwrites it")
    else:
        splits.write_split(out, found, root)
    sizes_found = [sum(e.fold == k for e in found.training) for k in found.folds]
    print(
        f"{out}: folds of {', '.join(map(str, sizes_found)) or 'none'} cases, "
        f"{len(found.testing)} for testing; its paths are relative to {root}"
    )
    return 0


def nnunet(
    split: Path, *, out: Path, data: Path | None = None, link: bool = False, force: bool = False
) -> int:
    """Write a split as a data set of nnU-Net v2, with its folds.

    Made cases train and never validate. Labels are those of BraTS 2023, trained as regions: what
    nnU-Net predicts is read by `synth evaluate segmentation`.

    Args:
        split: split (JSON), as `synth split` and `synth sample --append-to` write it.
        out: folder to write, in nnUNet_raw, named like Dataset501_Tumours.
        data: folder that the paths of the split are relative to [the split's own].
        link: link scans instead of copying them.
        force: write into a folder that is there already.
    """
    from synth.base.errors import SynthError
    from synth.data.exchange.nnunet import export
    from synth.data.split import read_split

    if out.exists() and not force:
        raise SynthError(f"{out} is there already", hint="--force writes into it")
    found = export(read_split(split, data or split.parent), out, link=link)
    print(
        f"{found}: {len(list((found / 'labelsTr').iterdir()))} training cases. nnU-Net goes on "
        f"with: nnUNetv2_plan_and_preprocess -d {found.name[7:10]} --verify_dataset_integrity; its "
        "folds: copy splits_final.json into nnUNet_preprocessed beside the plans"
    )
    return 0
