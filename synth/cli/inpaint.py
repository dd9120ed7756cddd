"""The verb inpaint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from synth.jobs.cases import BatchOptions

if TYPE_CHECKING:
    from synth.data.case import Case
    from synth.data.volume import Volume
    from wdm3d.config import SamplerOptions

# The predecessor's STEPS_SCHEDULER words → (sampler, spacing)
SCHEDULERS = {
    "DPM_plus_plus_2M_Karras": ("dpmpp_2m", "karras"),
    "linear": ("ddpm", "uniform"),
    "None": ("ddpm", "uniform"),
}


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
    grain: bool = False,
    estimate: Literal["mean", "sample"] | None = None,
    samples: int = 1,
    steps: int | None = None,
    sampler: Literal["dpmpp_2m", "ddim", "ddpm"] | None = None,
    spacing: Literal["logsnr", "karras", "uniform"] | None = None,
    steps_scheduler: str | None = None,
    mode: str | None = None,
    noise_schedule: str | None = None,
    batch: BatchOptions,
    scheme: str = "auto",
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Paint healthy tissue where a mask or a tumour is; every other voxel stays bit for bit.

    A case needs t1n or t1n-voided, and a mask; where it has only a segmentation, the mask is the
    whole tumour, holes filled, dilated by 5 mm. Finished cases are skipped: the same command goes
    on. Writes <case>-t1n-inference.nii.gz, with several samples also <case>-t1n-sd.nii.gz, and
    a JSON record of each case into records/.

    Args:
        data: folder of cases in any BraTS naming, or one scan (then with --mask or --seg).
        out: folder to write into.
        model: wdm3d checkpoint folder.
        mask: the mask of a single scan.
        seg: the segmentation of a single scan.
        brain: mask of the brain in a single scan with skull; default: it is found.
        contrasts: what to paint, t1n,t2f …, by a model for any contrast; default the model's own.
        tta: average the mean over all flips of the scan; default yes, if the model can (guided).
        grain: add noise as the scan has it to what is painted; leave it out to measure.
        estimate: mean is the posterior mean in one network call, sample a draw of the sampler;
            default sample where a flag of the sampler is given, else what suits the model.
        samples: calls to average (mean), or draws whose spread is written (sample).
        steps: network calls of a draw [20].
        sampler: solver of a draw [dpmpp_2m].
        spacing: where its noise levels lie [logsnr].
        steps_scheduler: the predecessor's word for sampler and spacing.
        mode: refuse a model of another mode (it knows its own).
        noise_schedule: refuse a model of another noise schedule (it knows its own).
        scheme: label scheme; auto goes by the case ids.
        seed: seed of every draw, together with the case's id.
        device: auto, cpu, cuda, cuda:1 …
    """
    from synth.base.devices import pick
    from synth.base.files import file_hash
    from synth.jobs.cases import Output, run_cases
    from wdm3d.cases import sources_of
    from wdm3d.generate import load

    solver = {"steps": steps, "sampler": sampler, "spacing": spacing}
    options = _plan(estimate, samples, solver | _scheduler(steps_scheduler))
    if brain is not None and not data.is_file():
        raise SynthError("--brain goes with a single scan", hint=f"{data} is not a file")
    cases = batch.share(_cases(data, mask, seg, scheme))
    loaded = load(model, pick(device))
    _require_trained_as(loaded.config, model, mode, noise_schedule)
    flips = None if tta is None else 3 * tta
    options = replace(options, flips=flips, grain=grain).suited_to(loaded.config)
    names = contrasts or loaded.config.modalities
    settings = {"seed": seed, "weights": file_hash(loaded.path), **vars(options)}
    arguments = {"model": str(model), "device": device, **settings}
    arguments |= {"brain": brain} if brain else {}

    def target(case: Case) -> Path:
        return out / f"{case.id}-{names[0]}-inference.nii.gz"

    def outputs(case: Case) -> list[Output]:
        path = target(case)
        return [Output(path=path, record=_record(path, case), settings=settings,
                       inputs=lambda: sources_of(case, names))]  # fmt: skip

    def work(case: Case) -> str:
        return _paint(case, target(case), loaded, options, names, arguments)

    return 2 if run_cases(cases, work, outputs, force=batch.force) else 0


def _scheduler(word: str | None) -> dict[str, str]:
    if word is None:
        return {}
    if word not in SCHEDULERS:
        raise SynthError(
            f"STEPS_SCHEDULER {word} never worked and is not taken over",
            hint=did_you_mean(word, SCHEDULERS),
        )
    sampler, spacing = SCHEDULERS[word]
    return {"sampler": sampler, "spacing": spacing}


def _plan(estimate: str | None, samples: int, solver: dict[str, Any]) -> SamplerOptions:
    from wdm3d.config import SamplerOptions

    given = {k: v for k, v in solver.items() if v is not None}
    if given and estimate == "mean":
        raise SynthError(
            f"--{next(iter(given))} has no meaning for the mean, which is one network call",
            hint="--estimate sample draws in several steps; --samples averages several means",
        )
    chosen: Any = "sample" if given else estimate
    return SamplerOptions(estimate=chosen, samples=samples, **given)


def _require_trained_as(config: Any, model: Path, mode: str | None, schedule: str | None) -> None:
    """Refuse a model of another mode or schedule: neither can be changed after training."""
    from wdm3d.legacy import translate

    wanted = translate({"mode": mode, "schedule": schedule})
    for name in ("mode", "schedule"):
        own = getattr(config, name)
        if wanted.get(name) not in (None, own):
            raise SynthError(
                f"{model} was trained with {name} {own}, not {wanted[name]}",
                hint="leave it out: a checkpoint knows what it was trained as",
            )


def _cases(data: Path, mask: Path | None, seg: Path | None, scheme: str) -> list[Case]:
    from synth.data.case import discover, require_unique
    from wdm3d.cases import case_of

    if mask is None and seg is None:
        if data.is_file():
            raise SynthError(f"{data}: no mask", hint="--mask or --seg says where to paint")
        cases = discover(data, scheme=scheme)
        require_unique(cases)
        return cases
    if not data.is_file():
        raise SynthError("--mask and --seg go with a single scan", hint=f"{data} is not a file")
    return [case_of(data, mask=mask, seg=seg, scheme=scheme)]


def _record(target: Path, case: Case) -> Path:
    # A folder of its own: challenge containers may put nothing beside the scans.
    return target.parent / "records" / f"{case.id}.json"


def _paint(
    case: Case,
    target: Path,
    loaded: Any,
    options: Any,
    names: Sequence[str],
    arguments: dict[str, Any],
) -> str:
    from synth.base.files import write_json
    from synth.base.manifest import manifest
    from synth.training.log import counted
    from wdm3d.cases import hole_of, scans_of, sources_of
    from wdm3d.generate import inpaint as paint

    image = scans_of(case, names)
    mask = hole_of(case, image)
    result = paint(
        image,
        mask,
        model=loaded,
        seed=arguments["seed"],
        options=options,
        name=case.id,
        brain=arguments.get("brain"),
    )
    record = manifest("inpaint", arguments, sources_of(case, names), **result.facts)
    if result.spread is not None:
        _save(result.spread, target, names, "sd")
    write_json(_record(target, case), record)
    _save(result.image, target, names, "inference")  # last: its presence means done
    holes, calls = counted(result.facts["regions"], "hole"), result.facts["network_calls"]
    found = f", brain {result.facts['brain']}" if "brain" in result.facts else ""
    return f"{holes}, {counted(calls, 'call')}{found}, {result.facts['seconds']} s"


def _save(volume: Volume, target: Path, modalities: Sequence[str], kind: str) -> None:
    for channel, modality in reversed(list(zip(volume.data, modalities, strict=True))):
        name = target.name.replace(f"-{modalities[0]}-inference", f"-{modality}-{kind}")
        volume.with_data(channel).save(target.with_name(name))
