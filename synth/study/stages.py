"""The stages of a study as a list of command lines.

`stages_of` is a pure function of the plan; every stage is one verb that also runs alone. For fold k
every generator reads `without_foldk.json`, in which fold k is testing: what it trains on, draws
shapes from and places tumours in are the other folds. Fold k is what it is judged on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from synth.base.weights import SHIPPED
from synth.study.presets import StudyPreset
from synth.study.progress import Stage

DEMO_WEIGHTS = SHIPPED / "weights"
"""Weights that come with this package."""
FOLD = "{}"
"""Stands for the number of the fold where `synth launch --each` fills it in."""
SHARED = ("masks", "inpaint", "sample")
"""Verbs of a single fold that are done in shares."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is studied, on what, and where it runs."""

    out: Path
    data: Path
    """Folder of the cases; the demo's is below `out`, and made."""
    folds: tuple[int, ...]
    """Folds that are tested in turn; what serves one never sees it."""
    preset: StudyPreset
    split: Path | None = None
    """Folds of the data; without them, the study makes some."""
    dealt: int = 0
    """Number of folds to make."""
    label_gan: Path | None = None
    """Finished weights; None trains them without the tested fold."""
    wdm3d: Path | None = None
    taught: Path | None = None
    """Cases whose lesions `label_gan` learnt from, to look for copies; the demo makes them anew."""
    base: Path | None = None
    """ddpm_lora model to adapt; None trains one from nothing, without an adapter."""
    from_scratch: bool = False
    """Of the demo: train the weights it starts from, on made-up patients of another site."""
    launcher: str = "here"
    shards: int = 4
    cluster: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    workers: int = 0

    @property
    def root(self) -> Path:
        """What the paths of all splits are relative to."""
        if self.data.resolve().is_relative_to(self.out.resolve()):
            return self.out
        return Path(os.path.commonpath([self.data.resolve(), self.out.resolve()]))

    @property
    def spread(self) -> bool:
        """Whether each fold has a folder of its own."""
        return len(self.folds) > 1

    def origin(self, family: str, weights: Path | None) -> str:
        """Say whose weights a family has; only those of ddpm_lora are ever adapted."""
        if weights is None or weights.resolve().is_relative_to(self.out.resolve()):
            return f"{family} as trained here"
        shipped = weights.resolve().is_relative_to(DEMO_WEIGHTS.resolve())
        return f"{family} as shipped, taught by phantoms" if shipped else f"{family} as given"

    def of_fold(self, fold: str) -> Path:
        """Return where the parts of a fold lie."""
        return self.out / f"fold{fold}" if self.spread else self.out


def stages_of(plan: Plan) -> list[Stage]:
    """Return the stages of a study, in order."""
    found = [*_ground(plan)]
    if plan.from_scratch and plan.preset.cases:
        found += _pretraining(plan)
        weights = plan.out / "weights"
        plan = replace(
            plan, label_gan=weights / "label_gan", wdm3d=weights / "wdm3d/last",
            base=weights / "ddpm_lora/last", taught=weights / "cohort",
        )  # fmt: skip
    if plan.launcher == "here":
        for fold in plan.folds:
            own = list(generative(plan, str(fold)))
            prefix = f"fold{fold}-" if plan.spread else ""
            found += [replace(stage, name=prefix + stage.name) for stage in own]
    else:
        found += [_launched(plan, stage) for stage in generative(plan, FOLD)]
    return [*found, *_conclusion(plan)]


def generative(plan: Plan, fold: str) -> Iterator[Stage]:
    """Yield what serves one fold: masks, inpainting, and scans that may train its segmenters."""
    here, root, preset = plan.of_fold(fold), str(plan.root), plan.preset
    folds, rest = f"{plan.out}/folds.json", f"{plan.out}/without_fold{fold}.json"
    tested = f"{plan.out}/only_fold{fold}.json"
    device = _device(plan)
    pool = (*_seed(plan), "--workers", str(plan.workers))
    deal = ("split", root, "--split", folds, "--out")
    yield Stage("without", (*deal, rest, "--testing", fold), f"put fold {fold} aside for testing")
    yield Stage("tested", (*deal, tested, "--only", fold), f"list fold {fold} alone")

    shapes, truth = plan.label_gan, (str(plan.data),)
    if shapes is None:
        truth = (root, "--split", rest)
        shapes = here / "label_gan"  # its best: a GAN does not end where it was best
        words = (
            "train",
            "label_gan",
            "--data",
            root,
            "--split",
            rest,
            "--out",
            f"{here}/label_gan",
        )
        words += ("--preset", preset.preset, *preset.training["label_gan"])
        yield Stage("label_gan", words + device, "learn shapes of tumours")
    drawn = f"{here}/masks/drawn"
    model = ("--model", str(shapes))
    words = (
        "masks",
        "--out",
        drawn,
        "--count",
        str(preset.drawings),
        *model,
        *_seed(plan),
        *device,
    )
    whose = plan.origin("label_gan", plan.label_gan)
    yield Stage("masks", words, f"draw {preset.drawings} tumours from noise: {whose}",
                made=Path(drawn))  # fmt: skip
    words = ("evaluate", "masks", drawn, *truth, "--out", f"{here}/masks_eval", "--force")
    words += ("--train", str(plan.taught)) if plan.taught else ()
    yield Stage("masks_eval", words, "judge their shapes beside real ones")

    painter = plan.wdm3d
    if painter is None:
        painter, holes = here / "wdm3d/last", f"{here}/masks/without_fold{fold}"
        words = ("masks", root, "--split", rest, "--out", holes, "--per-case", "2", *model)
        yield Stage("holes", words + pool + device, "place masks of healthy tissue to train on")
        words = ("train", "wdm3d", "--data", root, "--split", f"{holes}/split.json")
        words += ("--out", f"{here}/wdm3d", "--preset", preset.preset, *preset.training["wdm3d"])
        yield Stage("wdm3d", words + device, "learn to paint healthy tissue")
    holes = f"{here}/masks/healthy"
    some = ("--end", str(preset.holes)) if preset.holes else ()
    words = ("masks", root, "--split", tested, "--out", holes, "--per-case", "1", *model, *some)
    yield Stage("healthy", words + pool + device, f"place masks of healthy tissue in fold {fold}")
    painted, drawn = f"{here}/inpainted", f"{here}/inpainted_draws"
    paint = ("inpaint", holes, "--model", str(painter), *_seed(plan), *device, "--out")
    whose = plan.origin("wdm3d", plan.wdm3d)
    yield Stage("inpainted", (*paint, painted), f"paint healthy tissue there: {whose}",
                made=Path(painted))  # fmt: skip
    words = (*paint, drawn, "--estimate", "sample", *preset.draws)
    yield Stage("inpainted_draws", words, "draw some of it several times: how sure is it?",
                made=Path(drawn))  # fmt: skip
    words = ("evaluate", "inpainting", painted, holes, "--out", f"{here}/inpainted_eval", "--force")
    yield Stage("inpainted_eval", words, "judge it beside classical fills")
    yield from _scans(plan, fold, model, pool)


def _scans(plan: Plan, fold: str, model: Sequence[str], pool: Sequence[str]) -> Iterator[Stage]:
    """Yield new tumours for brains of the other folds, painted into the scans of those brains."""
    here, root, preset = plan.of_fold(fold), str(plan.root), plan.preset
    folds, rest = f"{plan.out}/folds.json", f"{plan.out}/without_fold{fold}.json"
    device = _device(plan)
    tumours, lora, out = f"{here}/tumours", f"{here}/lora", f"{here}/synthetic"
    words = ("masks", root, "--kind", "tumour", "--split", rest, "--out", tumours, *model)
    words += ("--per-case", str(preset.tumours))
    yield Stage("tumours", (*words, *pool, *device), "place tumours in brains of the other folds")
    words = ("train", "ddpm_lora", "--data", root, "--split", rest, "--out", lora)
    if plan.base is None:
        words += ("--preset", preset.preset, *preset.training["ddpm_lora"])
        yield Stage("ddpm_lora", words + device, "learn scans from label maps")
        drawer = ("--model", f"{lora}/last")
    else:
        words += ("--lora-from", str(plan.base), *preset.adapting)
        whose = plan.origin("ddpm_lora", plan.base).partition(",")[0]
        yield Stage("lora", words + device, f"fine-tune to this site, by LoRA: {whose}")
        drawer = ("--model", str(plan.base), "--lora", f"{lora}/last")
    draw = ("sample", tumours, "--into", str(plan.data), *drawer, "--out", out)
    draw += ("--data", root, "--fold", fold)
    draw += (*preset.sampling, *_seed(plan), *device)
    yield Stage("synthetic", (*draw, "--split", folds), "paint the tumours into those brains",
                made=Path(out))  # fmt: skip
    words = ("evaluate", "synthesis", out, root, "--split", rest, "--out", f"{out}_eval")
    words += ("--keep", *preset.gate, "--force")
    yield Stage("synthetic_eval", words, f"judge them beside fold {fold}, and sort out bad ones")
    split = f"{here}/split.json"
    yield Stage("split", ("split", root, "--split", folds, "--out", split), "list real cases")
    kept = ("--append-to", split, "--kept", f"{out}_eval/kept.json")
    yield Stage("kept", (*draw, *kept), "list the scans that passed, for training only")
    if plan.spread:
        yield Stage("page", ("report", str(here), "--title", f"Fold {fold}"), "write its page")


def _ground(plan: Plan) -> Iterator[Stage]:
    """Yield the cohort and its folds."""
    preset, out = plan.preset, plan.out
    if preset.cases:
        words = ("phantom", str(plan.data), "--cases", str(preset.cases), "--site", "B")
        words += (*_seed(plan), "--workers", str(plan.workers))
        yield Stage("cohort", words, f"make {preset.cases} patients of a new site")
    if plan.taught:
        words = ("phantom", str(plan.taught), "--cases", str(preset.taught))
        words += ("--workers", str(plan.workers))
        yield Stage(
            "taught", words, "make the patients again who taught label_gan, to look for copies"
        )
    given = ("--split", str(plan.split)) if plan.split else ()
    words = ("check", str(plan.data), *given)
    yield Stage("check", words, "examine every file")
    words = ("split", str(plan.data), "--out", f"{out}/folds.json", *given)
    if preset.cases:
        words += ("--sizes", str(preset.cases - preset.tested), str(preset.tested))
    elif plan.dealt:
        words += ("--folds", str(plan.dealt))
    yield Stage("folds", (*words, *_seed(plan)), "put patients into folds")


def _pretraining(plan: Plan) -> Iterator[Stage]:
    """Yield the weights that the demo starts from, trained on other patients of another site."""
    preset, weights, device = plan.preset, f"{plan.out}/weights", _device(plan)
    cohort = f"{weights}/cohort"
    words = ("phantom", cohort, "--cases", str(preset.pretraining), "--site", "A", *_seed(plan))
    words += ("--workers", str(plan.workers))
    yield Stage("pretraining", words, f"make {preset.pretraining} patients of another site")
    for family, purpose in (("label_gan", "learn shapes of tumours"),
                            ("wdm3d", "learn to paint healthy tissue"),
                            ("ddpm_lora", "learn scans from label maps")):  # fmt: skip
        words = ("train", family, "--data", cohort, "--out", f"{weights}/{family}")
        words += ("--preset", preset.preset, *preset.training[family], *device)
        yield Stage(family, words, purpose)


def _conclusion(plan: Plan) -> Iterator[Stage]:
    preset, root, split = plan.preset, str(plan.root), f"{plan.out}/split.json"
    if plan.spread:
        parts = [f"{plan.of_fold(str(fold))}/split.json" for fold in plan.folds]
        words = ("split", root, "--out", split, "--join", *parts)
        yield Stage("joined", words, "gather the scans of all folds")
    words = ("compare", root, "--split", split, "--out", f"{plan.out}/comparison")
    words += ("--folds", *map(str, plan.folds), "--preset", preset.preset, *preset.compare)
    if plan.launcher == "here":
        words += ("--at-once", str(plan.workers or os.cpu_count() or 1))
    words += _device(plan)
    stage = Stage("comparison", words, "train segmenters with and without synthetic scans")
    yield stage if plan.launcher == "here" else _in_shares(plan, stage)
    words = ("report", str(plan.out), "--title", preset.title)
    yield replace(Stage("report", words, "write the page"), always=True)


def _launched(plan: Plan, stage: Stage) -> Stage:
    """Hand a stage to `synth launch`: a job a fold, or of a single fold shares of it."""
    if plan.spread:
        return _with_launch(plan, stage, ("--each", *map(str, plan.folds)))
    (fold,) = plan.folds
    alone = replace(stage, words=tuple(w.replace(FOLD, str(fold)) for w in stage.words))
    if stage.words[0] in SHARED and "--append-to" not in stage.words:
        return _in_shares(plan, alone)
    if stage.words[0] == "train":
        return _with_launch(plan, stage, ("--each", str(fold)))
    return alone


def _in_shares(plan: Plan, stage: Stage) -> Stage:
    return _with_launch(plan, stage, ("--shards", str(plan.shards)))


def _with_launch(plan: Plan, stage: Stage, how: Sequence[str]) -> Stage:
    cluster = ("--cluster", *plan.cluster) if plan.cluster else ()
    jobs = ("launch", f"{plan.out}/jobs/{stage.name}", "--where", plan.launcher)
    return replace(stage, words=(*jobs, *how, *cluster, "--", *stage.words))


def _seed(plan: Plan) -> tuple[str, ...]:
    return ("--seed", str(plan.seed))


def _device(plan: Plan) -> tuple[str, ...]:
    return ("--device", plan.device)
