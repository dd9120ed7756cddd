"""The verbs inpaint and bids."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synth.base.errors import SynthError
from synth.jobs.cases import BatchOptions

if TYPE_CHECKING:
    from synth.data.case import Case
    from wdm3d.config import Config, SamplerOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PaintOptions:
    """The mean or a random result, and how it is drawn; None is left to the model."""

    estimate: Literal["mean", "sharp", "sample"] | None = None
    """mean, sharp or sample."""
    samples: int = 1
    """How many."""
    steps: int | None = None
    """network calls of a random result [20]."""
    sampler: Literal["dpmpp_2m", "ddim", "ddpm"] | None = None
    """solver of a random result [dpmpp_2m]."""
    spacing: Literal["logsnr", "karras", "uniform"] | None = None
    """how its noise levels are spaced [logsnr]."""
    grain: bool = False
    """add noise."""
    keep_header: bool = False
    """keep the header's text."""
    mgz: bool = False
    """write .mgz for FreeSurfer, too."""
    conform: bool = False
    """the same, conformed to 256³ voxels of 1 mm."""
    steps_scheduler: str | None = None
    """word of Local-Synthesis for sampler and spacing."""

    def solver(self) -> dict[str, Any]:
        """Return what is given of steps, sampler and spacing."""
        from wdm3d.legacy import read_scheduler

        names = ("steps", "sampler", "spacing")
        given = {name: getattr(self, name) for name in names} | read_scheduler(self.steps_scheduler)
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrainedAs:
    """How the model must have been trained; it is refused otherwise."""

    mode: str | None = None
    """refuse a model of another mode."""
    noise_schedule: str | None = None
    """refuse a model of another noise schedule."""


def inpaint(
    data: Path,
    *,
    out: Path,
    model: Path = Path("weights/wdm3d"),
    mask: Path | None = None,
    seg: Path | None = None,
    brain: Path | None = None,
    contrasts: tuple[str, ...] = (),
    tta: bool | None = None,
    draws: PaintOptions,
    trained_as: TrainedAs,
    batch: BatchOptions,
    scheme: str = "auto",
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Paint healthy tissue where a mask or a tumour is.

    All other voxels stay the same, bit for bit. A case needs t1n or t1n-voided, and a mask; without
    a mask, the tumour of its segmentation is painted, with holes filled and 5 mm wider. Writes
    <case>-t1n-inference.nii.gz, with several samples also <case>-t1n-sd.nii.gz, and a record (JSON)
    of each case into records/. Finished cases are skipped: the same command continues.

    Args:
        data: folder of cases, or one scan with --mask or --seg: NIfTI, .mgz or a DICOM folder.
        model: wdm3d checkpoint folder.
        mask: mask of a single scan.
        seg: segmentation of a single scan.
        brain: brain mask of a single scan with skull; default: the brain is found.
        contrasts: what to paint: t1n,t2f …, with a model for any contrast; default: the model's.
        tta: average the mean over all flips of the scan; default: yes, if the model can (guided).
        grain: add noise like that of the scan; leave it out when you measure.
        keep_header: keep free text and extensions of the scan's header, which may name a patient.
        estimate: mean: the mean of all plausible tissues; sharp: with the other side's fine detail,
            for other programs and for the eye; sample: a random one; default: the model decides.
        samples: network calls to average (mean), or random results, whose spread is written.
        steps: network calls of a random result [20].
        force: paint finished cases again.
    """
    from synth.base.devices import pick
    from synth.data.exchange.scans import as_nifti
    from wdm3d.cases import paint_cases
    from wdm3d.generate import load
    from wdm3d.legacy import require_trained_as

    options = _sampler_options(draws)
    data = as_nifti(data, out, "t1n")
    mask, seg, brain = (p and as_nifti(p, out) for p in (mask, seg, brain))
    if brain is not None and not data.is_file():
        raise SynthError("--brain goes with a single scan", hint=f"{data} is not a file")
    cases = batch.share(_cases(data, mask, seg, scheme))
    loaded = load(model, pick(device))
    require_trained_as(
        loaded.config, str(model), mode=trained_as.mode, schedule=trained_as.noise_schedule
    )
    options = replace(options, flips=None if tta is None else 3 * tta, grain=draws.grain)
    arguments: dict[str, Any] = {"model": model, "device": device} | (
        {"brain": brain} if brain else {}
    )
    arguments |= {"keep_header": True} if draws.keep_header else {}
    failed = paint_cases(
        cases, out, loaded, options.suited_to(loaded.config),
        contrasts=contrasts or _contrasts(cases, loaded.config), seed=seed, arguments=arguments,
        force=batch.force,
    )  # fmt: skip
    if draws.mgz or draws.conform:
        _write_mgz(cases, out, conform=draws.conform)
    return 2 if failed else 0


def _write_mgz(cases: Sequence[Case], out: Path, *, conform: bool) -> None:
    """Write what was painted for FreeSurfer, beside it."""
    from synth.data.exchange.freesurfer import write
    from synth.data.volume import Volume

    for case in cases:
        for path in sorted(out.glob(f"{glob.escape(case.id)}-*-inference.nii.gz")):
            write(Volume.load(path), out / f"{path.name[:-7]}.mgz", conform=conform)


def _sampler_options(draws: PaintOptions) -> SamplerOptions:
    from wdm3d.config import SamplerOptions

    given = draws.solver()
    if given and draws.estimate in ("mean", "sharp"):
        raise SynthError(
            f"--{next(iter(given))} is for random results, not for --estimate {draws.estimate}",
            hint="--estimate sample draws in several steps; --samples averages several means",
        )
    estimate = "sample" if given else draws.estimate
    return SamplerOptions(estimate=estimate, samples=draws.samples, **given)


def _contrasts(cases: Sequence[Case], config: Config) -> tuple[str, ...]:
    """Return the model's contrasts; of a single scan of another contrast, that one."""
    from synth.data.case import MODALITIES

    own = tuple(role for role in MODALITIES if cases and role in cases[0].files)
    if len(cases) != 1 or len(own) != 1 or own[0] in config.modalities:
        return config.modalities
    if config.mode != "guided":
        log.warning("the model knows %s, the scan is %s", ", ".join(config.modalities), own[0])
    return own


def _cases(data: Path, mask: Path | None, seg: Path | None, scheme: str) -> list[Case]:
    from synth.data.case import discover, require_unique
    from wdm3d.cases import case_of

    if mask is not None and seg is not None:
        raise SynthError("--mask and --seg", hint="give one of them: what to paint")
    if not data.exists():
        raise SynthError(f"{data}: no such file or folder", hint="check the path and its spelling")
    if mask is None and seg is None:
        if data.is_file():
            raise SynthError(f"{data}: no mask", hint="--mask or --seg says where to paint")
        cases = discover(data, scheme=scheme)
        require_unique(cases)
        return cases
    if not data.is_file():
        raise SynthError("--mask and --seg go with a single scan", hint=f"{data} is not a file")
    return [case_of(data, mask=mask, seg=seg, scheme=scheme)]


def bids(
    bids_dir: Path,
    output_dir: Path,
    level: Literal["participant"] = "participant",
    *,
    participant_label: tuple[str, ...] = (),
    lesions: Path | None = None,
    model: Path = Path("weights/wdm3d"),
    contrasts: tuple[str, ...] = ("t1n",),
    estimate: Literal["mean", "sharp"] = "sharp",
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Paint healthy tissue where the lesions of a BIDS data set are: a BIDS app.

    Reads sub-*/[ses-*/]anat and lesion masks (label-lesion_mask, label-lesion_roi or
    desc-lesion_mask); writes a derivative data set with sidecars. Whole heads need the extra bet.

    Args:
        bids_dir: BIDS data set.
        output_dir: derivative data set to write, such as BIDS_DIR/derivatives/synth.
        level: participant is the only one.
        participant_label: participants to do, with or without sub- [all].
        lesions: folder of the masks, if they are not in BIDS_DIR.
        model: wdm3d checkpoint folder.
        contrasts: scans to paint: t1n,t2f …
        estimate: sharp has the texture of the other side, mean is smooth.
    """
    from synth.base.devices import pick
    from synth.base.files import read_json
    from synth.data.exchange.bids import WORK, describe, participants, put
    from wdm3d.cases import paint_cases
    from wdm3d.config import SamplerOptions
    from wdm3d.generate import load

    assert level == "participant"
    cases = participants(bids_dir, lesions, participant_label)
    describe(output_dir)
    loaded, work = load(model, pick(device)), output_dir / WORK
    failed = paint_cases(
        cases, work, loaded, SamplerOptions(estimate=estimate).suited_to(loaded.config),
        contrasts=contrasts, seed=seed, arguments={"model": model, "device": device},
    )  # fmt: skip
    for case in cases:
        record = work / "records" / f"{case.id}.json"
        for contrast in contrasts if record.is_file() else ():
            painted = work / f"{case.id}-{contrast}-inference.nii.gz"
            put(case, contrast, painted, read_json(record, dict), output_dir)
    return 2 if failed else 0
