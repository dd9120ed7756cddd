"""Writes a cohort of made-up patients in the layout of BraTS.

Each case is a function of (seed, site, index) alone: the same whether made singly or among many,
first or last, by one process or by twenty. These are made-up brains, for demonstration.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from synth.base.errors import SynthError
from synth.base.files import atomic_folder, cannot_write, read_json, write_json, write_text
from synth.base.version import __version__
from synth.data.case import MODALITIES
from synth.data.tumour_mask import dilated_tumour
from synth.data.volume import Volume
from synth.jobs.cases import in_processes
from synth.phantom.anatomy import MNI_NOTICE, Grid, Person, depth_mm, largest_component
from synth.phantom.scanner import SITES, Subject, scan
from synth.phantom.tumour import Tumour, healthy_mask

Size = Literal["small", "full"]
SiteName = Literal["A", "B"]

RECIPE = 1  # raised whenever the same seed would make other patients
SITE_OFFSET = {"A": 0, "B": 50_000}
ANATOMY_SPACING_MM = 3.0  # the tumour's place is chosen on a coarse grid
FILES = (*MODALITIES, "seg", "t1n-voided", "mask", "mask-healthy", "mask-unhealthy")
COHORT_NOTICE = f"""\
These images are synthetic. They were derived from the ICBM152 2009a templates as shipped with
nilearn (BSD-3-Clause code; the maps carry the notice below) and show no patient.

{MNI_NOTICE}"""


@dataclass(frozen=True)
class FileGrid:
    """The file's grid, and the part of it that a head fills."""

    shape: tuple[int, int, int]
    affine: np.ndarray
    window: tuple[slice, slice, slice]
    grid: Grid

    @classmethod
    def of(cls, size: Size) -> FileGrid:
        """Official BraTS space at full size; the same axes with 2.8 mm voxels when small."""
        spacing = {"full": 1.0, "small": 2.8}[size]
        shape = {"full": (240, 240, 155), "small": (64, 64, 64)}[size]
        affine = np.diag([-spacing, -spacing, spacing, 1.0])
        affine[1, 3] = spacing * (shape[1] - 1)
        parts, axes = [], []
        for n, extent, step in zip(shape, (160, 200, 180), np.diag(affine), strict=False):
            kept = min(n, round(extent / spacing) // 2 * 2)  # even, so that left mirrors right
            start = (n - kept) // 2
            parts.append(slice(start, start + kept))
            axes.append(torch.arange(kept).sub((kept - 1) / 2).mul(float(step)))
        return cls(shape, affine, (parts[0], parts[1], parts[2]), Grid((axes[0], axes[1], axes[2])))

    def volume(self, data: np.ndarray) -> Volume:
        """Put a window's voxels into a whole file."""
        whole = np.zeros((1, *self.shape), data.dtype)
        whole[0][self.window] = data
        return Volume(data=whole, affine=self.affine.copy())


@dataclass(frozen=True, kw_only=True, eq=False)
class Phantom:
    """One made patient: images int16, labels BraTS 2023 (1 NCR, 2 ED, 3 ET), masks bool."""

    id: str
    volumes: dict[str, Volume]
    """The challenge's files by suffix. Inpainting is scored in mask-healthy, a hole whose content
    is known; mask-unhealthy is the tumour and 5 mm around it; mask is both."""
    parameters: dict
    """Everything that was sampled, JSON-ready."""

    def save(self, folder: Path) -> None:
        """Write `{id}-{suffix}.nii.gz` and the record of what was sampled into a folder."""
        for suffix, volume in self.volumes.items():
            volume.save(folder / f"{self.id}-{suffix}.nii.gz")
        write_json(folder / f"{self.id}-phantom.json", self.parameters)


def case_id(index: int, site: SiteName = "A") -> str:
    """Name of a case in BraTS's manner; site B counts from 50001."""
    return f"BraTS-GLI-{SITE_OFFSET[site] + index + 1:05d}-000"


def make_phantom(
    index: int, *, seed: int = 0, size: Size = "small", site: SiteName = "A"
) -> Phantom:
    """Make one patient; the same arguments give the same voxels."""
    _require_in_range(seed, index)
    # One thread: small grids run faster, and sums in one order make the voxels the same anywhere.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _make(index, seed, size, site)
    finally:
        torch.set_num_threads(threads)


def _make(index: int, seed: int, size: Size, site: SiteName) -> Phantom:
    streams = np.random.SeedSequence((seed, SITE_OFFSET[site], index)).spawn(4)
    person, lesion, scanner, hole = map(np.random.default_rng, streams)
    frame = FileGrid.of(size)
    grid = frame.grid

    head = Person.draw(person, grid.spacing_mm)
    coarse = grid.coarser(max(ANATOMY_SPACING_MM, grid.spacing_mm))
    before = head.maps(coarse)
    coarse_depth = depth_mm(before.brain, coarse)
    tumour = Tumour.draw(lesion, before, coarse_depth, coarse)
    depth = functional.interpolate(
        coarse_depth[None, None], size=grid.shape, mode="trilinear", align_corners=True
    )[0, 0]

    maps = head.maps(grid, tumour.displace(grid.points(), depth))
    brain = largest_component((maps.brain > 0.5).numpy())
    window = grid.window(tumour.core.centre_mm, tumour.reach_mm)
    labels = np.zeros(grid.shape, np.uint8)
    labels[window] = tumour.labels(maps.part(window), grid[window])
    labels[~brain] = 0
    subject = Subject(grid, head.tissue(maps, grid), maps.residual, brain, depth, labels, window)
    images, acquisition = scan(scanner, subject, SITES[site])
    unhealthy = np.zeros_like(brain)
    unhealthy[window] = dilated_tumour(labels[window] > 0, (grid.spacing_mm,) * 3)
    healthy, placed = healthy_mask(hole, brain, unhealthy, grid, tumour.whole_mm)

    parameters = {
        "recipe": RECIPE, "seed": seed, "index": index, "size": size, "site": site,
        "head": {"scale": head.scale.tolist(), "atrophy": head.atrophy},
        "tumour": tumour.parameters(), "acquisition": acquisition, "healthy": placed,
    }  # fmt: skip
    mask = healthy | unhealthy
    voided = np.where(mask, 0, images["t1n"]).astype(np.int16)
    made = (*(images[m] for m in MODALITIES), labels, voided, mask, healthy, unhealthy)
    volumes = {name: frame.volume(data) for name, data in zip(FILES, made, strict=True)}
    return Phantom(id=case_id(index, site), volumes=volumes, parameters=parameters)


def write_cohort(
    out: str | Path,
    *,
    cases: int,
    size: Size = "small",
    seed: int = 0,
    site: SiteName = "A",
    workers: int = 0,
    progress: bool = True,
) -> list[Path]:
    """Write a cohort in the challenge's layout and return the case folders.

    Complete cases are kept: the same call resumes. A case appears whole or not at all. 0 workers
    means one a processor. The result does not depend on their number.
    """
    from tqdm import tqdm

    _require_in_range(seed, cases - 1)
    out = Path(out)
    wanted = {"recipe": RECIPE, "seed": seed, "size": size, "site": site}
    folders = [out / case_id(index, site) for index in range(cases)]
    missing = [i for i, folder in enumerate(folders) if not _is_complete(folder, wanted)]
    started = time.perf_counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out / "cohort.json", error) from error
    quiet = None if progress else True  # None: quiet unless on a terminal
    with tqdm(total=cases, initial=cases - len(missing), unit="case", disable=quiet) as bar:
        write = partial(_write_case, out=out, wanted=wanted)
        with in_processes(write, missing, workers) as written:
            for index in missing:
                written(index)
                bar.update()
    write_text(out / "NOTICE", COHORT_NOTICE)
    cohort = {"format": 1, "generator": "synth.phantom", "version": __version__, **wanted}
    effort = {"made_now": len(missing), "seconds": round(time.perf_counter() - started, 2)}
    records = [{"id": folder.name, **_read_record(folder)} for folder in folders]
    write_json(out / "cohort.json", {**cohort, **effort, "cases": records})
    return folders


def _write_case(index: int, out: Path, wanted: dict) -> None:
    """Make one case; its folder appears complete, in place of what an interrupted writer left."""
    made = make_phantom(index, seed=wanted["seed"], size=wanted["size"], site=wanted["site"])
    with atomic_folder(out / made.id) as folder:
        made.save(folder)


def _is_complete(folder: Path, wanted: dict) -> bool:
    """Whether every file is there; a case of another cohort is refused, not overwritten."""
    if not (folder / f"{folder.name}-phantom.json").is_file():
        return False
    record = _read_record(folder)
    for key, value in wanted.items():
        if record.get(key) != value:
            raise SynthError(
                f"{folder} was made with {key} {record.get(key)}, not {value}",
                hint="choose another folder, or delete this one first",
            )
    return all((folder / f"{folder.name}-{suffix}.nii.gz").is_file() for suffix in FILES)


def _read_record(folder: Path) -> dict:
    return read_json(folder / f"{folder.name}-phantom.json", dict)


def _require_in_range(seed: int, index: int) -> None:
    if seed < 0 or not 0 <= index < 49_999:
        raise SynthError(
            f"seed {seed}, case {index + 1}: out of range", hint="seed ≥ 0, cases 1 to 49999"
        )
