"""The verb view."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from synth.base.config import did_you_mean
from synth.base.errors import SynthError

if TYPE_CHECKING:
    from synth.data.case import Case


def view(
    case: Path,
    *,
    id: str | None = None,
    save: Path | None = None,
    plane: Literal["axial", "coronal", "sagittal"] = "axial",
    slice: int | None = None,
    no_labels: bool = False,
    scheme: str = "auto",
    force: bool = False,
) -> int:
    """Scroll through the four contrasts of a case with its labels on top.

    Wheel, slider and arrow keys change the slice; 1, 2, 3 choose axial, coronal, sagittal; space
    hides the labels. --save writes a file and needs no display: .png is one slice, .gif runs
    through all. Labels: necrotic core red, oedema green, enhancing tumour yellow, a mask outlined
    in blue.

    Args:
        case: folder of a case, or one of its files; a folder of many needs --id.
        id: which case of a folder of many.
        save: PNG or GIF to write.
        plane: axial, coronal or sagittal.
        slice: number of the slice, from 1 [where most of the tumour is].
        no_labels: show only the scans.
        force: overwrite the file.
    """
    from synth.pictures import viewer

    if save and save.exists() and not force:
        raise SynthError(f"{save} is there already", hint="--force overwrites it")
    shown = viewer.open_case(_find_case(case, id, scheme), plane=plane)
    if slice is not None:
        if not 1 <= slice <= shown.slices:
            raise SynthError(f"--slice {slice}", hint=f"1 to {shown.slices}")
        shown.move(slice - 1)
    shown.labels_on = not no_labels
    if save is None:
        viewer.show_window(shown)
    else:
        print(viewer.save_picture(shown, save))
    return 0


def _find_case(path: Path, wanted: str | None, scheme: str) -> Case:
    from synth.data.case import discover

    cases = {found.id: found for found in discover(path, scheme=scheme)}
    if wanted is None and len(cases) > 1:
        hint = f"--id says which, e.g. --id {next(iter(cases))}"
        raise SynthError(f"{path} holds {len(cases)} cases", hint=hint)
    if wanted is not None and wanted not in cases:
        raise SynthError(f"{path}: no case {wanted}", hint=did_you_mean(wanted, cases))
    return cases[wanted or next(iter(cases))]
