"""A patient's files on disk: naming schemes and discovery.

A *role* is what a file is to us, whatever its project calls it: the modalities `t1n t1c t2w t2f`,
`seg`, and the inpainting files `voided`, `mask`, `healthy`, `unhealthy`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from synth.base.errors import SynthError
from synth.base.files import visible_files
from synth.data.labels import require_scheme, scheme_regions
from synth.data.volume import Volume

MODALITIES = ("t1n", "t1c", "t2w", "t2f")
MASKS = ("mask", "healthy", "unhealthy")
ROLES = (*MODALITIES, "seg", "voided", *MASKS)

# What follows the case id in a file name → role. BraTS 2023+ (GLI, SSA, PED, MEN, MET …) writes
# `<id>-t1n.nii.gz`; BraTS ≤ 2021 `<id>_t1ce.nii.gz`; Local-Synthesis adds the masks; others write
# capitals and Gd.
SUFFIXES = {
    "-t1n": "t1n", "-t1c": "t1c", "-t2w": "t2w", "-t2f": "t2f", "-seg": "seg",
    "-t1n-voided": "voided", "-mask": "mask",
    "-mask-healthy": "healthy", "-mask-unhealthy": "unhealthy",
    "_t1": "t1n", "_t1ce": "t1c", "_t2": "t2w", "_flair": "t2f", "_seg": "seg",
    "_t1n": "t1n", "_t1c": "t1c", "_t1gd": "t1c", "_t2w": "t2w", "_t2f": "t2f", "_mask": "mask",
}  # fmt: skip
# Med-DDPM keeps one folder a modality, the same file name (more or less) in each.
FOLDERS = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f", "seg": "seg", "mask": "seg"}

# BIDS: sub-01[_ses-2][_entity-value …]_T1w; `ce-…` (contrast enhanced) makes a T1w a t1c.
_BIDS = re.compile(
    r"(?P<id>sub-[a-zA-Z0-9]+(_ses-[a-zA-Z0-9]+)?)(?P<entities>(_[a-z]+-[a-zA-Z0-9]+)*)_"
    r"(?P<suffix>T1w|T2w|FLAIR|mask|roi)"
)
_BIDS_ROLES = {"T1w": "t1n", "T2w": "t2w", "FLAIR": "t2f", "mask": "mask", "roi": "mask"}
_LESION = re.compile(r"_(label|desc)-lesion(_|$)", re.IGNORECASE)

# What `synth masks` appends to the id of the real case.
_MADE = re.compile(r"(-(healthy|tumour|synth)\d+)+$")

_ENDINGS = (".nii.gz", ".nii")
MAX_ID_BYTES = 200  # a file name has 255, of which ours take some
_BY_LENGTH = sorted(SUFFIXES, key=len, reverse=True)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One examination: its id, its files by role, and how its labels are numbered."""

    id: str
    files: Mapping[str, Path]
    scheme: str = "brats2023"
    duplicates: tuple[str, ...] = field(default=(), compare=False)
    """Files that claim a role which another file has taken already."""

    @property
    def patient(self) -> str:
        """The id without its time point: `BraTS-GLI-00001-000` → `BraTS-GLI-00001`."""
        return re.sub(r"^(BraTS-\w+-\d+)-\d+$", r"\1", self.origin)

    @property
    def origin(self) -> str:
        """The id of the real case that `synth masks` made this one from; its own if it is real."""
        return _MADE.sub("", self.id)

    @property
    def is_made(self) -> bool:
        """Whether `synth masks` made it."""
        return self.origin != self.id

    def _repr_html_(self) -> str:
        """Show the files of the case with small pictures in a notebook."""
        from synth.pictures.notebook import case_html

        return case_html(self)

    def path(self, role: str) -> Path:
        """Return the file of a role, or say that it is missing."""
        if role not in self.files:
            raise SynthError(
                f"{self.id}: no {role} file", hint=f"it has: {', '.join(self.files) or 'nothing'}"
            )
        return self.files[role]

    def load(self, role: str) -> Volume:
        """Read a role as what it is: an image, a mask, or a label map in this case's scheme."""
        path = self.path(role)
        if role in MASKS:
            return Volume.load_mask(path)
        if role != "seg":
            return Volume.load(path)
        labels = Volume.load_labels(path)
        require_scheme(labels.data, self.scheme, name=str(path))
        return labels

    def load_scans(self, modalities: Sequence[str] = MODALITIES) -> Volume:
        """Read several contrasts as the channels of one image; they must be on one grid."""
        first, *others = (self.load(m) for m in modalities)
        for m, volume in zip(modalities[1:], others, strict=True):
            first.require_same_grid(volume, (modalities[0], m))
        return first.with_data(np.concatenate([v.data for v in (first, *others)]))

    def with_scheme(self, scheme: str) -> Case:
        """Return the case under another label scheme."""
        scheme_regions(scheme)
        return dataclasses.replace(self, scheme=scheme)


def guess_scheme(case_id: str) -> str:
    """Infer the label scheme from a case id: PED, ≤ 2021, post-treatment (time point ≥ 100)."""
    case_id = _MADE.sub("", case_id)
    if case_id.startswith("BraTS-PED"):
        return "ped2024"
    if re.match(r"BraTS(20|21)?\d{2}_", case_id):
        return "brats2021"
    if re.match(r"BraTS-GLI-\d+-1\d\d$", case_id):
        return "brats2024"
    return "brats2023"


def split_name(path: Path) -> tuple[str, str] | None:
    """Split a file name into (case id, role); None when no naming fits."""
    ending = next((e for e in _ENDINGS if path.name.endswith(e)), None)
    if ending is None or path.name.startswith("."):
        return None
    stem = path.name[: -len(ending)]
    if bids := _BIDS.fullmatch(stem):
        return _bids_name(bids)
    for suffix in _BY_LENGTH:
        if stem.lower().endswith(suffix) and len(stem) > len(suffix):
            return stem[: -len(suffix)], SUFFIXES[suffix]
    role = FOLDERS.get(path.parent.name)
    return (stem, role) if role else None


def _bids_name(match: re.Match[str]) -> tuple[str, str] | None:
    """Return (case id, role) of a file of BIDS: a raw scan, or the mask of a lesion."""
    suffix, entities = match["suffix"], match["entities"]
    is_mask = suffix in ("mask", "roi")
    if (is_mask and not _LESION.search(entities)) or (not is_mask and "_desc-" in entities):
        return None  # a `desc` of a scan says that a program made it: it is no input
    role = "t1c" if suffix == "T1w" and "_ce-" in entities else _BIDS_ROLES[suffix]
    return match["id"], role


def discover(root: Path, *, scheme: str = "auto") -> list[Case]:
    """Find every case below a folder (or of one file), in order of id; nothing is opened."""
    if scheme != "auto":
        scheme_regions(scheme)
    if not root.exists():
        raise SynthError(f"{root}: no such file or folder", hint="check the path and its spelling")
    found: dict[str, dict[str, list[Path]]] = {}
    paths = [root] if root.is_file() else visible_files(root, "*.nii*")
    for path in paths:
        name = split_name(path)
        if name:
            found.setdefault(name[0], {}).setdefault(name[1], []).append(path)
    if not found:
        raise SynthError(
            f"{root}: no case found{_unnamed(paths)}",
            hint="names are like BraTS-GLI-00001-000-t1n.nii.gz or BraTS2021_00001_t1ce.nii.gz",
        )
    return [
        Case(
            id=case_id,
            files={r: roles[r][0] for r in ROLES if r in roles},
            scheme=guess_scheme(case_id) if scheme == "auto" else scheme,
            duplicates=tuple(str(p) for paths in roles.values() for p in paths[1:]),
        )
        for case_id, roles in sorted(found.items())
    ]


def find_unrecognised(root: Path) -> list[Path]:
    """Return the NIfTI files below a folder whose names fit no naming."""
    found = visible_files(root, "*.nii*") if root.is_dir() else []
    return [p for p in found if p.name.endswith(_ENDINGS) and not split_name(p)]


def _unnamed(paths: Sequence[Path]) -> str:
    """Say which files were there, all with names that fit no naming."""
    odd = [p.name for p in paths if p.name.endswith(_ENDINGS) and not p.name.startswith(".")]
    if len(odd) < 2:
        return f": 1 NIfTI file, with no name it knows: {odd[0]}" if odd else ""
    return f": {len(odd)} NIfTI files, none with a name it knows, e.g. {odd[0]}"


def is_real(case: Case) -> bool:
    """Say whether a case is neither a made-up patient of `synth phantom` nor made from one."""
    beside = (path.parent.glob("*-phantom.json") for path in case.files.values())
    return not case.is_made and not any(map(any, beside))


def require_file_name(case_id: str, where: str) -> None:
    """Refuse an id that cannot name a file: results are written under it."""
    odd = not case_id.isprintable() or {"/", "\\"} & set(case_id) or case_id.startswith(".")
    if odd or not 0 < len(case_id.encode()) <= MAX_ID_BYTES:
        raise SynthError(
            f"{where}: case id {case_id!r}", hint="letters, digits, - and _ make a file name"
        )


def require_unique(cases: Iterable[Case]) -> None:
    """Refuse cases whose id occurs twice, or whose role has two files."""
    seen: set[str] = set()
    for case in cases:
        if case.id in seen or case.duplicates:
            raise occurs_twice(case)
        seen.add(case.id)


def occurs_twice(case: Case) -> SynthError:
    """Return the error for a case whose id occurs twice, or whose role has two files."""
    other = f": {case.duplicates[0]}" if case.duplicates else ""
    return SynthError(f"case id {case.id} occurs twice{other}", hint="remove or rename one of them")
