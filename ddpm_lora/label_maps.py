"""Finds label maps, checks them, and completes them with their brain.

Where the brain is, is said by a given mask, by label 4 in Med-DDPM's scheme, by the file
`<case>-brain.nii.gz` that `synth masks` writes beside a tumour, or by the case's own scans. A
tumour that is painted into a *host*, the scans of a brain, has the brain of that host.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ddpm_lora.conditioning import BRAIN, LABEL_SCHEMES, MEDDPM, class_map
from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from synth.base.weights import SHIPPED, or_shipped
from synth.data.case import MODALITIES, Case, discover, guess_scheme, split_name
from synth.data.check import require_brain
from synth.data.labels import scheme_labels
from synth.data.prepare import brain_mask
from synth.data.volume import Volume

DEMO = Path("weights/labels")
"""Four label maps of phantoms that no shipped model has seen, in Med-DDPM's scheme."""
INPAINTED = "-t1n-inference.nii.gz"
DRAWN = re.compile(r"-synth\d+$")
"""What is appended to the id of a label map for the scans drawn for it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelMap:
    """Tumour and brain on their own grid, and scans where they are wanted."""

    id: str
    classes: np.ndarray
    """(X, Y, Z) uint8, the numbers of `conditioning`."""
    grid: Volume
    """The label map as it was read."""
    files: tuple[Path, ...] = ()
    """What was read, the label map first."""
    scans: Mapping[str, Volume] = field(default_factory=dict)
    """Contrasts at hand, on the same grid: those of the host, or the label map's own."""

    own: np.ndarray | None = None
    """(X, Y, Z) bool: tumour that the scans show already, and that stays."""

    @property
    def painted(self) -> np.ndarray:
        """Where a tumour is to be painted, (X, Y, Z) bool."""
        tumour = (self.classes > 0) & (self.classes != BRAIN)
        return tumour if self.own is None else tumour & ~self.own


def demo() -> Path:
    """Return the folder of the label maps that are shipped."""
    place = or_shipped(DEMO)
    if not place.is_dir():
        raise SynthError(f"no label map given, and there is no {DEMO}", hint="synth sample LABELS")
    return place


def is_demo(path: Path) -> bool:
    """Whether these are the label maps that are shipped."""
    return any(p.is_dir() and path.resolve() == p.resolve() for p in (DEMO, SHIPPED / DEMO))


def find(path: Path, *, but: Path) -> list[Case]:
    """Return the cases of a folder, or that of a file with what lies beside it.

    Cases without a label map are kept, to be reported; what was made is not, when it is not a
    tumour: scans drawn earlier, whatever lies in the folder `but`, and healthy masks.
    """
    if not path.is_file():
        cases = discover(path)
        return [c for c in cases if not _is_output(c, but.resolve())]
    named = split_name(path)
    case_id = named[0] if named else path.name.removesuffix(".gz").removesuffix(".nii")
    beside = ((split_name(p), p) for p in sorted(path.parent.glob(f"{glob.escape(case_id)}*")))
    files = {name[1]: p for name, p in beside if name and name[0] == case_id} | {"seg": path}
    return [Case(id=case_id, files=files, scheme=guess_scheme(case_id))]


def read(case: Case, *, scheme: str = "auto", brain: Path | None = None) -> LabelMap:
    """Read a case's label map and complete it with its brain.

    Args:
        case: its label map, and its scans if any.
        scheme: how labels are numbered; auto goes by the case's id.
        brain: a mask, or a folder with <case>-brain.nii.gz.
    """
    path = case.path("seg")
    labels = Volume.load_labels(path)
    own = case.scheme if scheme == "auto" else scheme
    if scheme == "auto" and BRAIN not in scheme_labels(own) and (labels.data == BRAIN).any():
        raise SynthError(
            f"{path}: label 4 is outside the scheme {own}, which the name suggests",
            hint="--scheme meddpm where 4 is the brain; brats2021, brats2024 or ped2024 are others",
        )
    source = [mask] if (mask := _mask_file(case, brain)) else []
    says_itself = own == MEDDPM and (labels.data == BRAIN).any()
    if mask:
        volume = Volume.load_mask(mask)
        labels.require_same_grid(volume, (str(path), str(mask)))
        inside = volume.data[0]
    else:
        source = [] if says_itself else [case.path(m) for m in MODALITIES if m in case.files]
        inside = _brain_of(source, labels, path) if source else None
    classes = class_map(labels.data[0], own, inside, name=str(path))
    return LabelMap(id=case.id, classes=classes, grid=labels, files=(path, *source))


def with_scans(labels: LabelMap, case: Case) -> LabelMap:
    """Add the scans that lie beside a label map."""
    scans, files = _scans_of(case, labels.grid, labels.files[0])
    return replace(labels, scans=scans, files=tuple(dict.fromkeys((*labels.files, *files))))


def find_hosts(path: Path) -> list[Case]:
    """Return the cases of a folder, or below it, whose scans can be painted into.

    What `synth inpaint` wrote counts as well: a t1n without its tumour.
    """
    files = sorted(path.rglob(f"*{INPAINTED}"))
    hosts = [Case(id=p.name.removesuffix(INPAINTED), files={"t1n": p}) for p in files]
    hosts = hosts or [c for c in discover(path) if c.files.keys() & set(MODALITIES)]
    if not hosts:
        hint = "give a folder with files like <case>-t1n.nii.gz"
        raise SynthError(f"--into {path}: no scans there", hint=hint)
    return hosts


def host_of(case: Case, hosts: Sequence[Case]) -> Case:
    """Return the scans that a label map is painted into: those of its brain, or the only ones."""
    for wanted in (case.id, case.origin, case.patient):
        for host in hosts:
            if wanted in (host.id, host.patient):
                return host
    if len(hosts) == 1:
        return hosts[0]
    raise SynthError(
        f"{case.id}: none of the {len(hosts)} cases to paint into is its brain",
        hint="ids must agree, as `synth masks --kind tumour` makes them; or name one case",
    )


def files_into(case: Case, host: Case) -> list[Path]:
    """Return what a painted case is made from: the label map, the scans, and their own labels."""
    own = [case.path("seg"), *(host.path(m) for m in MODALITIES if m in host.files)]
    other = "seg" in host.files and host.path("seg").resolve() != own[0].resolve()
    return [*own, host.path("seg")] if other else own


def read_into(case: Case, host: Case, *, scheme: str = "auto") -> LabelMap:
    """Read a label map, and the scans it is painted into: the brain is that of the scans.

    The host's own tumour, if it has a label map, stays where the new one is not.
    """
    path = case.path("seg")
    labels = Volume.load_labels(path)
    own = case.scheme if scheme == "auto" else scheme
    scans, _ = _scans_of(host, labels, path)
    brain = brain_mask(labels.with_data(np.concatenate([v.data for v in scans.values()])))
    classes = class_map(labels.data[0], own, brain, name=str(path))
    classes[~brain] = 0
    stays = None
    files = files_into(case, host)
    if host.files.get("seg") in files[1:]:
        there = host.load("seg")
        there.require_same_grid(labels, (str(host.path("seg")), str(path)))
        before = class_map(there.data[0], host.scheme, brain)
        stays = (classes == BRAIN) & (before > 0) & (before != BRAIN)
        classes[stays] = before[stays]
    return LabelMap(
        id=case.id, classes=classes, grid=labels, files=tuple(files), scans=scans, own=stays
    )


def _scans_of(case: Case, labels: Volume, name: Path) -> tuple[dict[str, Volume], list[Path]]:
    """Read the contrasts that a case has."""
    scans, files = {}, []
    for contrast in MODALITIES:
        if contrast in case.files:
            path = case.path(contrast)
            volume = Volume.load(path)
            volume.require_same_grid(labels, (str(path), str(name)))
            require_brain(volume, str(path))
            scans[contrast] = volume
            files.append(path)
    return scans, files


def require_known(scheme: str) -> None:
    """Refuse the name of a scheme that is none."""
    if scheme not in ("auto", *LABEL_SCHEMES):
        hint = did_you_mean(scheme, LABEL_SCHEMES)
        raise SynthError(f"unknown label scheme '{scheme}'", hint=hint)


def _is_output(case: Case, folder: Path) -> bool:
    if DRAWN.search(case.id) or (case.is_made and "seg" not in case.files):
        return True
    return any(p.resolve().is_relative_to(folder) for p in case.files.values())


def _mask_file(case: Case, given: Path | None) -> Path | None:
    """Return the file that says where the brain is, if there is one."""
    folder = case.path("seg").parent if given is None else given
    if given is not None and not given.is_dir():
        return given
    name = f"{glob.escape(case.id)}-brain.nii*"
    masks = sorted(folder.glob(name) if given is None else folder.rglob(name))
    if given is not None and not masks:
        raise SynthError(f"{given} holds no {case.id}-brain.nii.gz", hint="or give one mask")
    return masks[0] if masks else None


def _brain_of(scans: list[Path], labels: Volume, name: Path) -> np.ndarray:
    """Return the brain that scans show together, as training sees it."""
    volumes = [Volume.load(path) for path in scans]
    for path, volume in zip(scans, volumes, strict=True):
        volume.require_same_grid(labels, (str(path), str(name)))
        require_brain(volume, str(path))
    return brain_mask(volumes[0].with_data(np.concatenate([v.data for v in volumes])))
