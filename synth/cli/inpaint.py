"""The verb that removes tumours: inpaint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synth.errors import SynthError

if TYPE_CHECKING:
    from synth.case import Case
    from synth.volume import Volume

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
    estimate: Literal["mean", "sample"] = "mean",
    samples: int = 1,
    steps: int = 16,
    sampler: Literal["dpmpp_2m", "ddim", "ddpm"] = "dpmpp_2m",
    spacing: Literal["logsnr", "karras", "uniform"] = "logsnr",
    steps_scheduler: str | None = None,
    begin: int = 0,
    end: str = "end",
    shard: str = "0/1",
    scheme: str = "auto",
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
) -> int:
    """Paint healthy tissue where a mask or a tumour is; every other voxel stays bit for bit.

    A case needs t1n or t1n-voided, and a mask; where it has only a segmentation, the mask is the
    whole tumour, holes filled, dilated by 5 mm. Finished cases are skipped: the same command goes
    on. Writes <case>-t1n-inference.nii.gz and a JSON record beside it; with several samples also
    <case>-t1n-sd.nii.gz.

    Args:
        data: folder of cases in any BraTS naming, or one scan (then with --mask or --seg).
        out: folder to write into.
        model: wdm3d checkpoint folder.
        mask: the mask of a single scan.
        seg: the segmentation of a single scan.
        estimate: mean is the posterior mean in one network call, sample a draw of the sampler.
        samples: calls to average (mean), or draws whose spread is written (sample).
        steps: network calls of a draw.
        sampler: solver of a draw.
        spacing: where its noise levels lie.
        steps_scheduler: the predecessor's word for sampler and spacing.
        begin: first case.
        end: case to stop before, or end.
        shard: i/n, the i-th of n equal shares, for arrays of jobs.
        scheme: label scheme; auto goes by the case ids.
        seed: seed of every draw, together with the case's id.
        device: auto, cpu, cuda, cuda:1 …
        force: make finished cases again.
    """
    from synth.batch import chosen, run_batch
    from synth.devices import pick
    from wdm3d.generate import Plan, load

    if steps_scheduler is not None:
        if steps_scheduler not in SCHEDULERS:
            from synth.config import did_you_mean

            raise SynthError(
                f"STEPS_SCHEDULER {steps_scheduler} never worked and is not taken over",
                hint=did_you_mean(steps_scheduler, SCHEDULERS),
            )
        sampler, spacing = SCHEDULERS[steps_scheduler]  # ty: ignore[invalid-assignment]
        estimate = "sample"
    plan = Plan(estimate=estimate, samples=samples, steps=steps, sampler=sampler, spacing=spacing)
    loaded = load(model, pick(device))
    last = None if end == "end" else int(end) if end.isdigit() else _bad_end(end)
    cases = chosen(_cases(data, mask, seg, scheme), begin=begin, end=last, shard=shard)
    arguments = {"seed": seed, "model": str(model), "device": device, **vars(plan)}

    def target(case: Case) -> Path:
        return out / f"{case.id}-t1n-inference.nii.gz"

    failed = run_batch(
        cases,
        lambda case: _paint(case, target(case), loaded, plan, arguments),
        name=lambda case: case.id,
        done=lambda case: not force and target(case).exists(),
    )
    return 2 if failed else 0


def _bad_end(end: str) -> int:
    raise SynthError(f"--end {end}", hint="a whole number, or end")


def _cases(data: Path, mask: Path | None, seg: Path | None, scheme: str) -> list[Case]:
    from synth.case import Case, discover, guess_scheme, require_unique, split_name

    if mask is None and seg is None:
        cases = discover(data, scheme=scheme)
        require_unique(cases)
        return cases
    if not data.is_file():
        raise SynthError("--mask and --seg go with a single scan", hint=f"{data} is not a file")
    named = split_name(data)
    case_id = named[0] if named else data.name.removesuffix(".gz").removesuffix(".nii")
    files = {"t1n": data} | {r: p for r, p in (("mask", mask), ("seg", seg)) if p}
    chosen = guess_scheme(case_id) if scheme == "auto" else scheme
    return [Case(id=case_id, files=files).with_scheme(chosen)]


def _paint(case: Case, target: Path, loaded: Any, plan: Any, arguments: dict[str, Any]) -> str:
    from synth.config import write_json
    from synth.manifest import manifest
    from wdm3d.generate import hole_of, scans_of
    from wdm3d.generate import inpaint as paint

    image, sources = scans_of(case, loaded.config)
    mask, mask_source = hole_of(case, image)
    result = paint(image, mask, model=loaded, seed=arguments["seed"], plan=plan, name=case.id)
    names = loaded.config.modalities
    record = manifest("inpaint", arguments, [*sources, mask_source], **result.facts)
    if result.spread is not None:
        _save(result.spread, target, names, "sd")
    write_json(target.with_name(f"{case.id}-inference.json"), record)
    _save(result.image, target, names, "inference")  # last: its presence means done
    return f"{result.facts['network_calls']} calls, {result.facts['seconds']} s"


def _save(volume: Volume, target: Path, modalities: tuple[str, ...], kind: str) -> None:
    for channel, modality in reversed(list(zip(volume.data, modalities, strict=True))):
        name = target.name.replace("-t1n-inference", f"-{modality}-{kind}")
        volume.with_data(channel).save(target.with_name(name))
