"""The verb masks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from synth.base.errors import SynthError
from synth.jobs.cases import BatchOptions

if TYPE_CHECKING:
    from synth.data.split import Split

DEFAULT_MODEL = Path("weights/label_gan")


def masks(
    data: Path | None = None,
    *,
    out: Path,
    kind: Literal["healthy", "tumour"] = "healthy",
    per_case: int = 5,
    split: Path | None = None,
    model: Path | None = None,
    only_real: bool = False,
    only_generated: bool = False,
    only_real_seg: str | None = None,
    only_fake_seg: str | None = None,
    components: tuple[float, ...] = (),
    volume_ml: tuple[float, ...] = (),
    truncation: float = 1.0,
    prior: bool = False,
    mass_effect: bool = False,
    count: int = 100,
    batch: BatchOptions,
    workers: int = 0,
    scheme: str = "auto",
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Make new masks: healthy ones or tumours placed in brains, or labels drawn from noise.

    A mask lies by 75 % or more in the brain, is cut to it, and stays 5 mm away from the tumour,
    itself dilated by 5 mm. Shapes are lesions of the cohort or of the model, half and half, turned
    at random; of two random places the farther from the tumour is taken.

    --kind healthy writes <case>-healthy00/ in the challenge's layout (t1n, t1n-voided, mask,
    mask-healthy, mask-unhealthy) and split.json, the cohort with them; wdm3d trains on it as it is.
    --kind tumour writes <case>-tumour00-seg, a label map in the case's scheme without its old
    labels, and <case>-tumour00-brain. Each has a JSON in records/, a given-up one too, with the
    reason. Without DATA, label maps are drawn and written without a brain.

    Finished cases are skipped: the same command goes on. What is made of a case depends on seed,
    its id and the cohort alone.

    Args:
        data: folder of cases in any BraTS naming.
        out: folder to write into.
        kind: masks of healthy tissue for inpainting, or tumours for mask-conditioned scans.
        per_case: new cases of each case.
        split: decathlon-style JSON; its training cases are used, each with shapes of its own fold.
        model: label_gan checkpoint [weights/label_gan, where there is one].
        only_real: shapes of the cohort only, as always where there is no model.
        only_generated: shapes of the model only.
        only_real_seg: the predecessor's word for it: True or False.
        only_fake_seg: the predecessor's word for it: True or False.
        components: probabilities of 1, 2, 3 … components [0.45 0.45 0.1; for tumours 1].
        volume_ml: smallest and largest shape, in millilitres.
        truncation: multiplies the model's code; below 1 shapes are more typical.
        prior: place where tumours of the cohort are, instead of far from the tumour.
        mass_effect: also write the scans with tissue displaced by the tumour (<name>-displaced).
        count: label maps to draw where no DATA is given.
        workers: processes; 0 uses every core.
        scheme: label scheme; auto goes by the case ids.
        seed: seed of every draw, together with the case's id.
        device: where the model runs: auto, cpu, cuda, cuda:1 …
    """
    share = _share(_said(only_real_seg) or only_real, _said(only_fake_seg) or only_generated)
    sizes = _range(volume_ml)
    model = _model(model, share if data else 1.0)
    if data is None:
        from label_gan.write_masks import write_drawings

        assert model is not None
        failed = write_drawings(
            batch.share(range(count)), out, model, device=device, force=batch.force,
            scheme="brats2023" if scheme == "auto" else scheme,
            wish={"seed": seed, "truncation": truncation, "volume_ml": sizes},
        )  # fmt: skip
        return 2 if failed else 0
    if per_case < 1:
        raise SynthError(f"--per-case {per_case}", hint="1 or more")

    from label_gan.placing.cohort import augmented_split, create, creator_of
    from label_gan.placing.place_lesions import LESIONS, Plan

    plan = Plan(kind=kind, lesions=components or LESIONS[kind], mass_effect=mass_effect, seed=seed)
    cohort = _cohort(data, split, scheme)
    shapes = {"model": model, "generated": share, "volume_ml": sizes, "truncation": truncation,
              "device": device}  # fmt: skip
    creator = creator_of(cohort.training, out, plan, per_case=per_case, shapes=shapes, prior=prior)
    cases = batch.share([e.case for e in cohort.training])
    failed = create(creator, cases, workers=workers, force=batch.force)
    if kind == "healthy" and out.exists():
        import os

        root = Path(os.path.commonpath([data.resolve(), out.resolve()]))
        path = augmented_split(cohort, out, root)
        print(f"to train on them: synth train wdm3d --data {root} --split {path} --out runs/made")
    return 2 if failed else 0


def _said(word: str | None) -> bool:
    if word not in (None, "True", "False"):
        raise SynthError(f"{word!r} is neither True nor False", hint="write True or False")
    return word == "True"


def _share(only_real: bool, only_generated: bool) -> float:
    """Return the share of shapes that the model draws."""
    if only_real and only_generated:
        raise SynthError("--only-real and --only-generated", hint="give one of them")
    return 0.0 if only_real else 1.0 if only_generated else 0.5


def _range(volume_ml: tuple[float, ...]) -> tuple[float, float] | None:
    if not volume_ml:
        return None
    if len(volume_ml) != 2 or not 0 <= volume_ml[0] <= volume_ml[1]:
        raise SynthError(
            f"--volume-ml {' '.join(f'{v:g}' for v in volume_ml)}",
            hint="the smallest and the largest volume, e.g. --volume-ml 5 60",
        )
    return volume_ml[0], volume_ml[1]


def _model(model: Path | None, share: float) -> Path | None:
    """Return the model that is to be used; the default one may be absent, a named one may not."""
    if share == 0:
        return None
    from synth.base.weights import or_shipped

    if model is None and not or_shipped(DEFAULT_MODEL).is_dir():
        if share == 1:
            raise SynthError(
                f"no model to draw shapes: there is no {DEFAULT_MODEL}",
                hint="train one (synth train label_gan) and give it as --model",
            )
        return None
    from label_gan.generate import load

    model = model or or_shipped(DEFAULT_MODEL)
    load(model)  # what is wrong with it is said now, not once a case
    return model


def _cohort(data: Path, split: Path | None, scheme: str) -> Split:
    """Return the real cases; what an earlier call made is not made from again."""
    from synth.data.case import discover, require_unique
    from synth.data.split import Entry, Split, read_split

    if split is None:
        cases = [c for c in discover(data, scheme=scheme) if not c.is_made]
        require_unique(cases)
        return Split(training=tuple(Entry(case=c) for c in cases))
    listed = read_split(split, data)
    entries = [e for e in listed.training if e.source is None]
    if scheme != "auto":
        from dataclasses import replace

        entries = [replace(e, case=e.case.with_scheme(scheme)) for e in entries]
    require_unique(e.case for e in entries)
    return Split(training=tuple(entries), testing=listed.testing)
