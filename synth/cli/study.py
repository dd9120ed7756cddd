"""The verbs study and demo."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from synth.base.errors import SynthError
from synth.cli.parser import PROGRAM
from synth.study.stages import DEMO_WEIGHTS, Plan


def study(
    data: Path,
    *,
    out: Path,
    split: Path | None = None,
    fold: int | None = None,
    folds: int = 0,
    preset: Literal["tiny", "brats23"] = "tiny",
    from_scratch: bool = False,
    label_gan: Path | None = None,
    wdm3d: Path | None = None,
    base: Path | None = None,
    launcher: Literal["here", "local", "slurm"] = "here",
    shards: int = 4,
    cluster: tuple[str, ...] = (),
    workers: int = 0,
    seed: int = 0,
    device: str = "auto",
    show: bool = False,
) -> int:
    """Tell the whole story of a cohort: masks, brains without tumour, new scans, do they help.

    Every stage is one command that also runs alone; --show lists them. Folds are tested in turn,
    and what serves a fold never sees it: its generators read a split in which that fold is testing.
    What was done is in OUT/study.json, what was said in OUT/logs, the page in OUT/report.html. The
    same command goes on wherever it was stopped or killed; a finished study is reported anew.

    tiny starts from the weights that come with this package, which know phantoms only; brats23
    trains all that is not given.

    Args:
        data: folder with cases in any BraTS naming.
        out: folder of the study.
        split: decathlon-style JSON of the cases, with folds or without.
        fold: test this fold alone; default all in turn.
        folds: how many to deal where the split has none [5].
        preset: size of every model and training.
        from_scratch: use no weights of this package.
        label_gan: finished weights for shapes; they must not know these patients.
        wdm3d: the same for inpainting.
        base: the same for scans: a ddpm_lora model, which is adapted by LoRA.
        launcher: where trainings and draws run: here, local processes, or slurm.
        shards: shares of what can be shared, with a launcher.
        cluster: submitit's parameters: timeout_min=600 slurm_partition=gpu gpus_per_node=1.
        workers: processes that place masks; 0 uses every core.
        seed: seed of the folds and of every draw.
        device: auto, cpu, cuda, cuda:1 …
        show: list the commands and do nothing.
    """
    from synth.study.presets import SCALES

    if not show and not data.is_dir():
        raise SynthError(f"{data}: no such folder", hint="check the path and its spelling")
    shipped = preset == "tiny" and not from_scratch
    tested, dealt = _folds(split, data, folds)
    if fold is not None and fold not in tested:
        raise SynthError(f"no fold {fold} in this study", hint=f"it has {tested}")
    plan = Plan(
        out=out, data=data, scale=SCALES[preset], folds=tuple(tested) if fold is None else (fold,),
        split=split, dealt=dealt,
        label_gan=label_gan or (_shipped("label_gan") if shipped else None),
        wdm3d=wdm3d or (_shipped("wdm3d") if shipped else None),
        base=base or (_shipped("ddpm_lora") if shipped else None),
        launcher=launcher, shards=shards, cluster=cluster, seed=seed, device=device,
        workers=workers,
    )  # fmt: skip
    return _told(plan, show=show)


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
    """Tell the whole story on made-up patients of a new site, in minutes, to one page.

    Tumours from noise, holes painted with healthy tissue, an adapter to the new site and scans by
    it, segmenters with and without them, a verdict. label_gan and wdm3d are used as shipped; only
    ddpm_lora is fine-tuned, by LoRA. The same command goes on; once all is done, it writes the page
    anew.

    Args:
        out: folder to write into; the page is report.html there.
        cases: number of patients; three sevenths of them are tested.
        from_scratch: train the weights it starts from, too, on patients of another site.
        base: ddpm_lora model to adapt [weights/ddpm_lora].
        seed: seed of the cohort and of every draw.
        workers: processes that make patients and place masks; 0 uses every core.
        device: auto, cpu, cuda, cuda:1 …
        show: list the commands and do nothing.
    """
    from synth.study.presets import demo as scale

    if cases < 10:  # the judges need 4 unseen patients, the comparison some to choose by
        raise SynthError(f"--cases {cases}", hint="10 or more")
    plan = Plan(
        out=out, data=out / "cohort", scale=scale(cases), folds=(1,), from_scratch=from_scratch,
        label_gan=None if from_scratch else _shipped("label_gan"),
        wdm3d=None if from_scratch else _shipped("wdm3d"),
        taught=None if from_scratch else out / "taught",
        base=base or (None if from_scratch else _shipped("ddpm_lora")),
        seed=seed, device=device, workers=workers,
    )  # fmt: skip
    return _told(plan, show=show)


def _told(plan: Plan, *, show: bool) -> int:
    from synth.study.run import run
    from synth.study.stages import stages_of

    stages = stages_of(plan)
    if show:
        for stage in stages:
            print(f"# {stage.name}: {stage.purpose}\n{stage.command}")
        return 0
    _show_cohort(plan)
    run(stages, plan.out, program=PROGRAM, threads=plan.scale.threads)
    print(f"\nLook at {plan.out}/report.html")
    print(f"Each step is a command of its own: they are in {plan.out}/study.json")
    return 0


def _show_cohort(plan: Plan) -> None:
    """Put a link to the cohort where the report looks for it."""
    for folder in {plan.out, *(plan.of_fold(str(fold)) for fold in plan.folds)}:
        link = folder / "cohort"
        if not plan.scale.cases and not link.exists() and plan.data.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)  # one that leads nowhere
            link.symlink_to(plan.data.resolve(), target_is_directory=True)


def _folds(split: Path | None, data: Path, count: int) -> tuple[list[int], int]:
    """Return the folds, and how many have to be dealt."""
    from synth.data.split import DEALT, folds_of, read_split

    own = folds_of(read_split(split, data)) if split else []
    if own and count not in (0, len(own)):
        raise SynthError(f"{split} has folds {own}", hint="leave --folds out")
    dealt = 0 if own else count or DEALT
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
