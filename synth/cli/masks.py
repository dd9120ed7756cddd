"""The verb masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synth.base.errors import SynthError
from synth.jobs.cases import BatchOptions

if TYPE_CHECKING:
    from synth.data.split import Split

DEFAULT_MODEL = Path("weights/label_gan")


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """Where shapes come from: the cohort, the model, or half of each."""

    model: Path | None = None
    """label_gan checkpoint."""
    only_real: bool = False
    """only shapes of the cohort."""
    only_generated: bool = False
    """only shapes of the model."""
    only_real_seg: Literal["True", "False"] | None = None
    """word of Local-Synthesis for --only-real."""
    only_fake_seg: Literal["True", "False"] | None = None
    """word of Local-Synthesis for --only-generated."""
    volume_ml: tuple[float, ...] = ()
    """smallest and largest shape, in millilitres."""
    components: tuple[float, ...] = ()
    """probabilities of 1, 2, 3 … components [0.45 0.45 0.1; tumours: 1]."""
    truncation: float = 1.0
    """multiplies the model's code; below 1, shapes are more typical."""

    @property
    def generated(self) -> float:
        """Return the share of shapes that the model draws."""
        only_real = self.only_real or self.only_real_seg == "True"
        only_generated = self.only_generated or self.only_fake_seg == "True"
        if only_real and only_generated:
            raise SynthError("--only-real and --only-generated", hint="give one of them")
        return 0.0 if only_real else 1.0 if only_generated else 0.5

    def read(self, *, cohort: bool) -> dict[str, Any]:
        """Return model, generated, volume_ml and truncation; without a cohort all are drawn."""
        low_high = tuple(self.volume_ml) or None
        if low_high and (len(low_high) != 2 or not 0 <= low_high[0] <= low_high[1]):
            raise SynthError(
                f"--volume-ml {' '.join(f'{v:g}' for v in low_high)}",
                hint="the smallest and the largest volume, e.g. --volume-ml 5 60",
            )
        return {
            "model": self._find_model(self.generated if cohort else 1.0),
            "generated": self.generated,
            "volume_ml": low_high,
            "truncation": self.truncation,
        }

    def _find_model(self, share: float) -> Path | None:
        """Return the model to use; the default one may be absent, a named one may not."""
        if share == 0:
            return None
        from synth.base.weights import or_shipped

        model = self.model or or_shipped(DEFAULT_MODEL)
        if self.model is None and not model.is_dir():
            if share == 1:
                raise SynthError(
                    f"no model to draw shapes: there is no {DEFAULT_MODEL}",
                    hint="train one (synth train label_gan) and give it as --model",
                )
            return None
        from label_gan.generate import load

        load(model)  # refuses a mistake now, not once for each case
        return model


def masks(
    data: Path | None = None,
    *,
    out: Path,
    kind: Literal["healthy", "tumour"] = "healthy",
    per_case: int = 5,
    split: Path | None = None,
    shapes: ShapeOptions,
    prior: bool = False,
    mass_effect: bool = False,
    count: int = 100,
    batch: BatchOptions,
    workers: int = 0,
    scheme: str = "auto",
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Draw label maps, or place healthy masks or tumours in brains.

    Without DATA, label maps are drawn, without a brain. With DATA, each new mask lies in a brain:
    at least 75 % of it inside, and 5 mm away from the tumour and its 5 mm margin. --kind healthy
    writes <case>-healthy00/ in the challenge's layout, and split.json to train wdm3d on. --kind
    tumour writes <case>-tumour00-seg and -brain. Each has a record (JSON) in records/. Finished
    cases are skipped: the same command continues.

    Args:
        data: folder of cases in any BraTS naming.
        kind: healthy masks for inpainting, or tumours for drawing scans.
        per_case: new cases from each case.
        count: label maps to draw where no DATA is given.
        split: split (JSON); its training cases are used, each with shapes of its own fold.
        model: label_gan checkpoint [weights/label_gan, where it exists].
        only_real: only shapes of the cohort [half of each].
        only_generated: only shapes of the model.
        volume_ml: smallest and largest shape, in millilitres.
        components: probabilities of 1, 2, 3 … components [0.45 0.45 0.1; tumours: 1].
        prior: place where tumours of the cohort are, not far from them.
        mass_effect: also write scans with displaced tissue (<name>-displaced).
        force: make finished cases again.
    """
    source = shapes.read(cohort=data is not None)
    if data is None:
        from label_gan.write_masks import write_masks

        drawn = {"seed": seed, "truncation": shapes.truncation, "volume_ml": source["volume_ml"]}
        failed = write_masks(
            batch.share(range(count)), out, source["model"], options=drawn, device=device,
            scheme="brats2023" if scheme == "auto" else scheme, force=batch.force,
        )  # fmt: skip
        return 2 if failed else 0
    if per_case < 1:
        raise SynthError(f"--per-case {per_case}", hint="1 or more")

    from label_gan.placing.cohort import CohortWriter, write_new_split
    from label_gan.placing.place_lesions import LESIONS, MaskOptions

    lesions = shapes.components or LESIONS[kind]
    options = MaskOptions(kind=kind, lesions=lesions, mass_effect=mass_effect, seed=seed)
    cohort = _cohort(data, split, scheme)
    source["device"] = device
    writer = CohortWriter(
        cohort.training, out, options, per_case=per_case, shapes=source, prior=prior
    )
    cases = batch.share([e.case for e in cohort.training])
    failed = writer.write(cases, workers=workers, force=batch.force)
    if kind == "healthy" and out.exists():
        import os

        root = Path(os.path.commonpath([data.resolve(), out.resolve()]))
        path = write_new_split(cohort, out, root)
        print(f"to train on them: synth train wdm3d --data {root} --split {path} --out runs/made")
    return 2 if failed else 0


def _cohort(data: Path, split: Path | None, scheme: str) -> Split:
    """Return the real cases; what an earlier call made is not made from again."""
    from dataclasses import replace

    from synth.data.case import discover, require_unique
    from synth.data.split import Entry, Split, read_split

    if split is None:
        cases = [c for c in discover(data, scheme=scheme) if not c.is_made]
        require_unique(cases)
        return Split(training=tuple(Entry(case=c) for c in cases))
    listed = read_split(split, data)
    entries = listed.real
    if scheme != "auto":
        entries = [replace(e, case=e.case.with_scheme(scheme)) for e in entries]
    require_unique(e.case for e in entries)
    return replace(listed, training=tuple(entries))
