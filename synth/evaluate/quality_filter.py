"""Rules that decide which generated cases are good enough to train on.

    rules = [Rule.parse(text) for text in ("seg_dice>=0.6", "z_intensity<=4", "copied==0")]

A number that is not known passes no rule.
"""

from __future__ import annotations

import hashlib
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from synth.base.files import file_hash, read_json, write_json
from synth.data.case import MODALITIES, Case
from synth.evaluate.tables import write_csv

KEPT, DROPPED = "kept.json", "dropped.csv"
FORMAT = 1
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_FORM = re.compile(r"\s*(\w+)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A number, how it is compared, and with what."""

    name: str
    comparison: str
    limit: float

    def __str__(self) -> str:
        return f"{self.name}{self.comparison}{self.limit:g}"

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read seg_dice>=0.6."""
        match = _FORM.fullmatch(text)
        try:
            name, comparison, number = match.groups() if match else ("", "", "")
            limit = float(number)
        except ValueError:
            limit = math.nan
        if not match or math.isnan(limit):
            raise SynthError(
                f"--keep '{text}' is not a rule", hint="write it as 'seg_dice>=0.6', in quotes"
            )
        return cls(name=name, comparison=comparison, limit=limit)

    def broken_by(self, row: Mapping[str, float]) -> str | None:
        """Return why a case does not pass, or None."""
        value = row.get(self.name, math.nan)
        if math.isnan(value):
            return f"{self.name} is not known"
        if COMPARISONS[self.comparison](value, self.limit):
            return None
        return f"{self.name} is {value:.4g}, not {self.comparison} {self.limit:g}"


def parse_rules(texts: Sequence[str]) -> list[Rule]:
    """Read all rules."""
    return [Rule.parse(text) for text in texts]


def require_columns(
    rules: Sequence[Rule], columns: Collection[str], needs: Mapping[str, str]
) -> None:
    """Refuse a rule on a number that this evaluation does not have.

    `needs` says which flag would give a number.
    """
    for rule in rules:
        if rule.name in columns:
            continue
        if rule.name in needs:
            raise SynthError(f"--keep '{rule}' without {needs[rule.name]}", hint="give both")
        raise SynthError(
            f"--keep '{rule}': no number '{rule.name}'",
            hint=did_you_mean(rule.name, sorted({*columns, *needs})),
        )


def judge_rows(
    rules: Sequence[Rule], rows: Mapping[str, Mapping[str, float]]
) -> dict[str, list[str]]:
    """Return of each case why it is dropped; an empty list means that it is kept."""
    return {
        case: [why for rule in rules if (why := rule.broken_by(row))] for case, row in rows.items()
    }


def write_gate(
    out: Path,
    rules: Sequence[Rule],
    reasons: Mapping[str, Sequence[str]],
    cases: Mapping[str, Case],
) -> dict[str, Any]:
    """Write kept.json and dropped.csv; return what is kept, by id, with a hash of its scans."""
    dropped = {case: list(why) for case, why in reasons.items() if why}
    lines = ([case, "; ".join(why)] for case, why in dropped.items())
    write_csv(out / DROPPED, ["case", "reason"], lines)
    kept = {case: scans_hash(cases[case]) for case, why in reasons.items() if not why}
    values = {
        "format": FORMAT,
        "rules": [str(rule) for rule in rules],
        "kept": kept,
        "dropped": dropped,
    }
    write_json(out / KEPT, values)
    return values


class KeptFile(TypedDict):
    """kept.json, as far as it is read."""

    format: int
    kept: dict[str, str]


def read_kept(path: Path) -> dict[str, str]:
    """Return the ids of kept cases, each with the hash of the scans that were judged."""
    file = path / KEPT if path.is_dir() else path
    values = read_json(file, KeptFile)
    if values["format"] != FORMAT:
        raise SynthError(f"{file}: format {values['format']}, this version reads {FORMAT}")
    return values["kept"]


def scans_hash(case: Case) -> str:
    """Return one hash of a case's four scans and labels."""
    roles = [role for role in (*MODALITIES, "seg") if role in case.files]
    digest = hashlib.sha256("".join(file_hash(case.files[r]) for r in roles).encode())
    return digest.hexdigest()
