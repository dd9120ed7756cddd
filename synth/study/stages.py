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
from synth.study.presets import Scale
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
    scale: Scale
    split: Path | None = None
    """Folds of the data; else they are dealt."""
    dealt: int = 0
    """Number of folds to deal."""
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
    if plan.from_scratch and plan.scale.cases:
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
    here, root, scale = plan.of_fold(fold), str(plan.root), plan.scale
    folds, rest = f"{plan.out}/folds.json", f"{plan.out}/without_fold{fold}.json"
    tested = f"{plan.out}/only_fold{fold}.json"
    stage, device = scale.stage, _device(plan)
    pool = (*_seed(plan), "--workers", str(plan.workers))
    deal = ("split", root, "--split", folds, "--out")
    yield stage("without", (*deal, rest, "--testing", fold), f"put fold {fold} aside for testing")
    yield stage("tested", (*deal, tested, "--only", fold), f"list fold {fold} alone")

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
        words += ("--preset", scale.preset, *scale.training["label_gan"])
        yield stage("label_gan", words + device, "learn shapes of tumours")
    drawn = f"{here}/masks/drawn"
    model = ("--model", str(shapes))
    words = ("masks", "--out", drawn, "--count", str(scale.drawings), *model, *_seed(plan), *device)
    whose = plan.origin("label_gan", plan.label_gan)
    yield stage("masks", words, f"draw {scale.drawings} tumours from noise: {whose}",
                made=Path(drawn))  # fmt: skip
    words = ("evaluate", "masks", drawn, *truth, "--out", f"{here}/masks_eval", "--force")
    words += ("--train", str(plan.taught)) if plan.taught else ()
    yield stage("masks_eval", words, "judge their shapes beside real ones")

    painter = plan.wdm3d
    if painter is None:
        painter, holes = here / "wdm3d/last", f"{here}/masks/without_fold{fold}"
        words = ("masks", root, "--split", rest, "--out", holes, "--per-case", "2", *model)
        yield stage("holes", words + pool + device, "place masks of healthy tissue to train on")
        words = ("train", "wdm3d", "--data", root, "--split", f"{holes}/split.json")
        words += ("--out", f"{here}/wdm3d", "--preset", scale.preset, *scale.training["wdm3d"])
        yield stage("wdm3d", words + device, "learn to paint healthy tissue")
    holes = f"{here}/masks/healthy"
    some = ("--end", str(scale.holes)) if scale.holes else ()
    words = ("masks", root, "--split", tested, "--out", holes, "--per-case", "1", *model, *some)
    yield stage("healthy", words + pool + device, f"place masks of healthy tissue in fold {fold}")
    painted, drawn = f"{here}/inpainted", f"{here}/inpainted_draws"
    paint = ("inpaint", holes, "--model", str(painter), *_seed(plan), *device, "--out")
    whose = plan.origin("wdm3d", plan.wdm3d)
    yield stage("inpainted", (*paint, painted), f"paint healthy tissue there: {whose}",
                made=Path(painted))  # fmt: skip
    words = (*paint, drawn, "--estimate", "sample", *scale.draws)
    yield stage("inpainted_draws", words, "draw some of it several times: how sure is it?",
                made=Path(drawn))  # fmt: skip
    words = ("evaluate", "inpainting", painted, holes, "--out", f"{here}/inpainted_eval", "--force")
    yield stage("inpainted_eval", words, "judge it beside classical fills")
    yield from _scans(plan, fold, model, pool)


def _scans(plan: Plan, fold: str, model: Sequence[str], pool: Sequence[str]) -> Iterator[Stage]:
    """Yield new tumours in brains of the other folds, and scans drawn for them."""
    here, root, scale = plan.of_fold(fold), str(plan.root), plan.scale
    folds, rest = f"{plan.out}/folds.json", f"{plan.out}/without_fold{fold}.json"
    stage, device = scale.stage, _device(plan)
    tumours, lora, out = f"{here}/tumours", f"{here}/lora", f"{here}/synthetic"
    words = ("masks", root, "--kind", "tumour", "--split", rest, "--out", tumours, *model)
    words += ("--per-case", str(scale.tumours))
    yield stage("tumours", (*words, *pool, *device), "place tumours in brains of the other folds")
    words = ("train", "ddpm_lora", "--data", root, "--split", rest, "--out", lora)
    if plan.base is None:
        words += ("--preset", scale.preset, *scale.training["ddpm_lora"])
        yield stage("ddpm_lora", words + device, "learn scans from label maps")
        drawer = ("--model", f"{lora}/last")
    else:
        words += ("--lora-from", str(plan.base), *scale.adapting)
        whose = plan.origin("ddpm_lora", plan.base).partition(",")[0]
        yield stage("lora", words + device, f"fine-tune to this site, by LoRA: {whose}")
        drawer = ("--model", str(plan.base), "--lora", f"{lora}/last")
    draw = ("sample", tumours, *drawer, "--out", out, "--data", root, "--fold", fold)
    draw += (*scale.sampling, *_seed(plan), *device)
    yield stage("synthetic", (*draw, "--split", folds), "draw scans for the tumours",
                made=Path(out))  # fmt: skip
    words = ("evaluate", "synthesis", out, root, "--split", rest, "--out", f"{out}_eval")
    words += ("--keep", *scale.gate, "--force")
    yield stage("synthetic_eval", words, f"judge them beside fold {fold}, and sort out bad ones")
    split = f"{here}/split.json"
    yield stage("split", ("split", root, "--split", folds, "--out", split), "list real cases")
    kept = ("--append-to", split, "--kept", f"{out}_eval/kept.json")
    yield stage("kept", (*draw, *kept), "list the scans that passed, for training only")
    if plan.spread:
        yield stage("page", ("report", str(here), "--title", f"Fold {fold}"), "write its page")


def _ground(plan: Plan) -> Iterator[Stage]:
    """Yield the cohort and its folds."""
    scale, out = plan.scale, plan.out
    if scale.cases:
        words = ("phantom", str(plan.data), "--cases", str(scale.cases), "--site", "B")
        words += (*_seed(plan), "--workers", str(plan.workers))
        yield scale.stage("cohort", words, f"make {scale.cases} patients of a new site")
    if plan.taught:
        words = ("phantom", str(plan.taught), "--cases", str(scale.taught))
        words += ("--workers", str(plan.workers))
        yield scale.stage(
            "taught", words, "make the patients again who taught label_gan, to look for copies"
        )
    given = ("--split", str(plan.split)) if plan.split else ()
    words = ("check", str(plan.data), *given)
    yield scale.stage("check", words, "examine every file")
    words = ("split", str(plan.data), "--out", f"{out}/folds.json", *given)
    if scale.cases:
        words += ("--sizes", str(scale.cases - scale.tested), str(scale.tested))
    elif plan.dealt:
        words += ("--folds", str(plan.dealt))
    yield scale.stage("folds", (*words, *_seed(plan)), "deal patients into folds")


def _pretraining(plan: Plan) -> Iterator[Stage]:
    """Yield the weights that the demo starts from, trained on other patients of another site."""
    scale, weights, device = plan.scale, f"{plan.out}/weights", _device(plan)
    cohort = f"{weights}/cohort"
    words = ("phantom", cohort, "--cases", str(scale.pretraining), "--site", "A", *_seed(plan))
    words += ("--workers", str(plan.workers))
    yield scale.stage("pretraining", words, f"make {scale.pretraining} patients of another site")
    for family, purpose in (("label_gan", "learn shapes of tumours"),
                            ("wdm3d", "learn to paint healthy tissue"),
                            ("ddpm_lora", "learn scans from label maps")):  # fmt: skip
        words = ("train", family, "--data", cohort, "--out", f"{weights}/{family}")
        words += ("--preset", scale.preset, *scale.training[family], *device)
        yield scale.stage(family, words, purpose)


def _conclusion(plan: Plan) -> Iterator[Stage]:
    scale, root, split = plan.scale, str(plan.root), f"{plan.out}/split.json"
    if plan.spread:
        parts = [f"{plan.of_fold(str(fold))}/split.json" for fold in plan.folds]
        words = ("split", root, "--out", split, "--join", *parts)
        yield scale.stage("joined", words, "gather the scans of all folds")
    words = ("compare", root, "--split", split, "--out", f"{plan.out}/comparison")
    words += ("--folds", *map(str, plan.folds), "--preset", scale.preset, *scale.compare)
    words += _device(plan)
    stage = scale.stage("comparison", words, "train segmenters with and without synthetic scans")
    stage = replace(stage, seconds=stage.seconds * len(plan.folds))
    yield stage if plan.launcher == "here" else _in_shares(plan, stage)
    words = ("report", str(plan.out), "--title", scale.title)
    yield replace(scale.stage("report", words, "write the page"), always=True)


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
