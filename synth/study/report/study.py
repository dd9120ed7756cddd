"""The folder of a study: its parts, and the command that makes each."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from synth.base.errors import SynthError
from synth.base.files import read_json
from synth.data.case import Case, discover
from synth.study.report.html import Source

# part → the command that makes it, in the order of the story
PARTS = {
    "cohort": "synth phantom {0}/cohort",
    "masks": "synth masks -o {0}/masks",
    "masks_eval": "synth evaluate masks {0}/masks {0}/cohort -o {0}/masks_eval",
    "tumours": "synth masks {0}/cohort --kind tumour -o {0}/tumours",
    "inpainted": "synth inpaint {0}/cohort -o {0}/inpainted",
    "inpainted_draws": "synth inpaint {0}/cohort --estimate sample --samples 3 --end 3 "
    "-o {0}/inpainted_draws",
    "inpainted_eval": "synth evaluate inpainting {0}/inpainted {0}/cohort -o {0}/inpainted_eval",
    "lora": "synth train ddpm_lora --data {0}/cohort -o {0}/lora",
    "synthetic": "synth sample {0}/tumours --lora {0}/lora -o {0}/synthetic",
    "synthetic_eval": "synth evaluate synthesis {0}/synthetic {0}/cohort -o {0}/synthetic_eval",
    "comparison": "synth compare {0} --split {0}/split.json -o {0}/comparison",
}
SUMMARY, STAGES = "summary.json", "study.json"
CONFIG = "config.json"
MADE_FROM = ("cohort", "masks", "tumours")
"""Where cases are looked for that something was made from."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A folder with some of the parts; none is needed."""

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise SynthError(f"{self.root}: no such folder", hint="check the path and its spelling")
        if not any(self.has(part) for part in PARTS):
            raise SynthError(
                f"{self.root} is not a study", hint=f"it has folders {', '.join(PARTS)}"
            )

    def has(self, part: str) -> bool:
        """Whether a part is there, with something in it."""
        folder = self.root / part
        return folder.is_dir() and any(folder.iterdir())

    def command(self, part: str) -> str:
        """Return the command that makes a part: the study's own, if it lists one."""
        return self.stage(part).get("command") or PARTS[part].format(shlex.quote(str(self.root)))

    def stage(self, part: str) -> Mapping[str, Any]:
        """Return what `study.json` says of the stage that makes a part; nothing if it is silent."""
        return next((stage for stage in self.stages if stage.get("name") == part), {})

    def summary(self, part: str) -> Source | None:
        """Return the summary of an evaluation; None until it is finished."""
        return self.source(f"{part}/{SUMMARY}")

    def source(self, name: str) -> Source | None:
        """Return a JSON file, None if there is none."""
        path = self.root / name
        return Source(name=name, values=read_json(path, dict)) if path.is_file() else None

    def tables(self, part: str) -> list[tuple[str, list[list[str]]]]:
        """Return title and rows of each table of an evaluation."""
        found = self.summary(part)
        listed = found.values.get("tables", ()) if found else ()
        return [(table["title"], table["rows"]) for table in listed]

    def records(self, part: str) -> list[Source]:
        """Return the manifests of the single cases of a part, in whichever folder of it."""
        folder = self.root / part
        names = sorted(p.relative_to(self.root).as_posix() for p in folder.rglob("records/*.json"))
        return [Source(name=name, values=read_json(self.root / name, dict)) for name in names]

    @cached_property
    def stages(self) -> Sequence[Mapping[str, Any]]:
        """Return what ran, as `study.json` lists it."""
        listed = self.source(STAGES)
        return listed.get("stages") if listed else ()

    @cached_property
    def models(self) -> list[Source]:
        """Return the descriptions of the checkpoints that were trained here; best before last."""
        found: dict[Path, Source] = {}
        for path in sorted(self.root.rglob(f"best/{CONFIG}")) + sorted(
            self.root.rglob(f"last/{CONFIG}")
        ):
            run = path.parents[1]
            if run not in found:
                name = path.relative_to(self.root).as_posix()
                found[run] = Source(name=name, values=read_json(path, dict))
        return [source for _, source in sorted(found.items())]

    def cases(self, part: str) -> list[Case]:
        """Return the cases below a part, in order of id; none if there is no image."""
        folder = self.root / part
        if not folder.is_dir() or not any(folder.rglob("*.nii*")):
            return []
        return discover(folder)

    @cached_property
    def known(self) -> dict[str, Case]:
        """Return id → case of all that something may have been made from."""
        return {case.id: case for part in reversed(MADE_FROM) for case in self.cases(part)}

    def file(self, part: str, name: str) -> Path | None:
        """Return a file of a part, wherever below it lies."""
        return next(iter(sorted((self.root / part).rglob(name))), None)


def settings(sources: Sequence[Source]) -> dict[str, list[Any]]:
    """Return every argument of some manifests with its values: one, if all agree."""
    found: dict[str, list[Any]] = {}
    for source in sources:
        for key, value in source.values.get("arguments", {}).items():
            values = found.setdefault(key, [])
            if value not in values:
                values.append(value)
    return found


def inputs(sources: Sequence[Source]) -> list[tuple[str, str]]:
    """Return (file, SHA-256) of everything that some manifests were made from, each once."""
    return sorted(set(_hashes(sources)))


def _hashes(sources: Sequence[Source]) -> Iterator[tuple[str, str]]:
    for source in sources:
        yield from source.values.get("inputs", {}).items()
        for kind, files in source.values.get("files", {}).items():
            yield from ((f"{kind} {name}", digest) for name, digest in files.items())


def digest(hashes: Sequence[tuple[str, str]]) -> str:
    """Return one SHA-256 for many files: of their lines as `sha256sum` writes them."""
    lines = "".join(f"{value}  {name}\n" for name, value in hashes)
    return hashlib.sha256(lines.encode()).hexdigest()
