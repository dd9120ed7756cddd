"""The verbs study, demo and report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from synth.base.errors import SynthError
from synth.cli.parser import PROGRAM
from synth.study.stages import DEMO_WEIGHTS, Plan


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """Finished weights, in place of those that are trained; they must not know these patients."""

    label_gan: Path | None = None
    """finished label_gan checkpoint; it must not have seen these patients."""
    wdm3d: Path | None = None
    """the same for inpainting."""
    base: Path | None = None
    """the same for scans: a ddpm_lora model, which LoRA adapts."""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """Where trainings and draws run."""

    launcher: Literal["here", "local", "slurm"] = "here"
    """where trainings and draws run: here, in local processes, or on SLURM."""
    shards: int = 4
    """parts of what can be divided, with a launcher."""
    cluster: tuple[str, ...] = ()
    """submitit's parameters: timeout_min=600 slurm_partition=gpu gpus_per_node=1."""


def study(
    data: Path,
    *,
    out: Path,
    split: Path | None = None,
    fold: int | None = None,
    folds: int = 0,
    preset: Literal["tiny", "brats23"] = "tiny",
    from_scratch: bool = False,
    weights: WeightOptions,
    launch: LaunchOptions,
    workers: int = 0,
    seed: int = 0,
    device: str = "auto",
    show: bool = False,
) -> int:
    """Run all steps on your patients: masks, inpainting, new scans, and whether they help.

    Each stage is one command that also runs alone; --show lists them. Folds are tested in turn. No
    model that serves a fold has seen it: its generators read a split in which that fold is testing.

    OUT/study.json says what is done, OUT/logs what was printed, and OUT/report.html is the page.
    The same command continues after a stop; for a finished study it writes the page again. tiny
    starts from the weights that come with this package, which know made-up patients only; brats23
    trains all models.

    Args:
        data: folder with cases in any BraTS naming.
        out: folder of the study.
        split: split (JSON) of the cases, with or without folds.
        fold: test only this fold [all in turn].
        folds: number of folds to make where the split has none [5].
        preset: size of every model and training.
        from_scratch: use no weights of this package.
        launcher: where trainings and draws run: here, in local processes, or on SLURM.
        seed: seed of the folds and of every random draw.
        show: list the commands and do nothing.
    """
    from synth.study.presets import PRESETS

    if not show and not data.is_dir():
        raise SynthError(f"{data}: no such folder", hint="check the path and its spelling")
    shipped = preset == "tiny" and not from_scratch
    tested, dealt = _folds(split, data, folds)
    if fold is not None and fold not in tested:
        raise SynthError(f"no fold {fold} in this study", hint=f"it has {tested}")
    plan = Plan(
        out=out, data=data, preset=PRESETS[preset], split=split, dealt=dealt,
        folds=tuple(tested) if fold is None else (fold,),
        label_gan=weights.label_gan or (_shipped("label_gan") if shipped else None),
        wdm3d=weights.wdm3d or (_shipped("wdm3d") if shipped else None),
        base=weights.base or (_shipped("ddpm_lora") if shipped else None),
        **vars(launch), seed=seed, device=device, workers=workers,
    )  # fmt: skip
    return _run(plan, show=show)


def demo(
    *,
    out: Path = Path("runs/demo"),
    cases: int = 28,
    from_scratch: bool = False,
    base: Path | None = None,
    seed: int = 0,
    workers: int = 0,
    device: str = "auto",
    show: bool = False,
) -> int:
    """Run all steps on made-up patients of a new site, in minutes, to one page.

    Tumours from noise, holes painted with healthy tissue, an adapter to the new site and scans from
    it, segmenters trained with and without these scans, and the answer. label_gan and wdm3d are
    used as they are; only ddpm_lora is adapted, with LoRA. The same command continues after a stop;
    when all is done, it writes the page again.

    Args:
        out: folder to write into; the page is report.html there.
        cases: number of patients; three of seven are tested.
        from_scratch: also train the weights it starts from, on patients of another site.
        base: ddpm_lora model to adapt [weights/ddpm_lora].
        seed: seed of the cohort and of every random draw.
        show: list the commands and do nothing.
    """
    from synth.study.presets import demo as demo_preset

    if cases < 10:  # the judges need 4 unseen patients, the comparison some to choose by
        raise SynthError(f"--cases {cases}", hint="10 or more")
    plan = Plan(
        out=out, data=out / "cohort", preset=demo_preset(cases), folds=(1,),
        from_scratch=from_scratch,
        label_gan=None if from_scratch else _shipped("label_gan"),
        wdm3d=None if from_scratch else _shipped("wdm3d"),
        taught=None if from_scratch else out / "taught",
        base=base or (None if from_scratch else _shipped("ddpm_lora")),
        seed=seed, device=device, workers=workers,
    )  # fmt: skip
    return _run(plan, show=show)


def report(study: Path, *, out: Path | None = None, title: str = "") -> int:
    """Write one self-contained page about a study: pictures, numbers, answer, methods, cost.

    Reads what the other verbs wrote into the folders cohort, masks, masks_eval, tumours, inpainted,
    inpainted_draws, inpainted_eval, lora, synthetic, synthetic_eval and comparison of STUDY, and
    study.json. Each of them is optional: the page says which command makes what is missing. The
    page needs no network. The exit code is 2 when a section could not be written.

    Args:
        study: folder of the study.
        out: HTML file to write; an earlier one is replaced [STUDY/report.html].
        title: heading of the page [the folder's name].
    """
    from synth.study.report.page import write_report

    found = write_report(study, out or study / "report.html", title=title)
    print(f"{found.path} ({found.path.stat().st_size / 2**20:.1f} MB)")
    for problem in found.problems:
        print(problem)
    return 2 if found.problems else 0


def _run(plan: Plan, *, show: bool) -> int:
    from synth.study.run import run
    from synth.study.stages import stages_of

    stages = stages_of(plan)
    if show:
        for stage in stages:
            print(f"# {stage.name}: {stage.purpose}\n{stage.command}")
        return 0
    _show_cohort(plan)
    run(stages, plan.out, program=PROGRAM, threads=plan.preset.threads)
    print(f"\nLook at {plan.out}/report.html")
    print(f"Each step is a command of its own: they are in {plan.out}/study.json")
    return 0


def _show_cohort(plan: Plan) -> None:
    """Put a link to the cohort where the report looks for it."""
    for folder in {plan.out, *(plan.of_fold(str(fold)) for fold in plan.folds)}:
        link = folder / "cohort"
        if not plan.preset.cases and not link.exists() and plan.data.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)  # one that leads nowhere
            link.symlink_to(plan.data.resolve(), target_is_directory=True)


def _folds(split: Path | None, data: Path, count: int) -> tuple[list[int], int]:
    """Return the folds, and how many have to be dealt."""
    from synth.data.split import DEFAULT_FOLDS, read_split

    own = read_split(split, data).folds if split else []
    if own and count not in (0, len(own)):
        raise SynthError(f"{split} has folds {own}", hint="leave --folds out")
    dealt = 0 if own else count or DEFAULT_FOLDS
    if not own and dealt < 2:
        raise SynthError(f"--folds {dealt}", hint="2 or more; --fold 0 tests one of them alone")
    return own or list(range(dealt)), dealt


def _shipped(family: str) -> Path:
    folder = DEMO_WEIGHTS / family
    if not folder.is_dir():
        raise SynthError(
            f"no weights of {family} come with this package", hint="--from-scratch trains some"
        )
    return folder
