"""The verb sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from synth.base.errors import SynthError
from synth.jobs.cases import BatchOptions

if TYPE_CHECKING:
    from ddpm_lora.provenance import Provenance
    from synth.data.case import Case


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """How scans are drawn."""

    steps: int | None = None
    """network calls of a scan [10; ddpm: as many as in training]."""
    sampler: Literal["dpmpp_2m", "dpmpp_2m_sde", "ddim", "ddpm"] = "dpmpp_2m"
    """solver."""
    guidance: float = 1.0
    """above 1, the labels count more, at twice the cost."""
    temperature: float | None = None
    """size of the first noise [0.5; 1 without tissue]: lower is smoother and varies less."""
    tissue: Literal["drawn", "scans", "none"] = "drawn"
    """anatomy of a whole brain: of a made-up person, of the scans beside the label map, or none."""


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Who is behind the label maps, and where drawn cases are listed."""

    split: Path | None = None
    """split (JSON) with the real cases of the label maps: their folds are recorded."""
    append_to: Path | None = None
    """list the drawn cases in this split as train-only cases (fold -1)."""
    kept: Path | None = None
    """append only the cases of this kept.json of `synth evaluate synthesis --keep`."""
    fold: int | None = None
    """the fold that the model was not trained on; --append-to refuses its label maps."""
    data: Path | None = None
    """folder that the paths of the split are relative to [the split's own]."""

    def __post_init__(self) -> None:
        if self.split and self.append_to:
            hint = "the split that is added to says it all"
            raise SynthError("--split and --append-to", hint=hint)
        if self.kept and not self.append_to:
            hint = "it says which cases are appended"
            raise SynthError("--kept without --append-to", hint=hint)


def sample(
    label_maps: tuple[Path, ...] = (),
    *,
    labels: tuple[Path, ...] = (),
    out: Path = Path("runs/sample"),
    into: Path | None = None,
    mass_effect: bool = False,
    lora: tuple[str, ...] = (),
    model: Path | None = None,
    brain: Path | None = None,
    samples: int = 1,
    draws: DrawOptions,
    listed: SplitOptions,
    batch: BatchOptions,
    scheme: str = "auto",
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Draw t1n, t1c, t2w and t2f for label maps, as an adapter's site would scan them.

    Whole brains are drawn, or with --into the tumour is painted into the scans of a brain: voxels
    farther than 6 mm from it stay bit for bit; contrasts that are not at hand are drawn. A label
    map needs a brain: that of --into; --brain; <case>-brain.nii.gz beside it, as `synth masks
    --kind tumour` writes it; label 4 with --scheme meddpm; or the scans of the case. Writes
    <case>-synth00/ with BraTS-2023 names on the grid of the label map, and pictures/ and records/.
    The same command continues. The same seed gives the same scans; with another number of threads
    about one voxel in 10,000 differs, by one grey level.

    Args:
        label_maps: label maps, or folders of cases in any naming [weights/labels].
        labels: the same, as an option.
        into: scans to paint into: one case, or a folder in which each label map finds its own.
        mass_effect: with --into, brain makes room for the tumour, within 14 mm.
        lora: adapters, as folders, or folder:0.7 to mix several; also a folder that holds one.
        model: ddpm_lora checkpoint, or the base of the adapters if they do not find it
            [weights/ddpm_lora].
        brain: brain mask for all label maps, or a folder with <case>-brain.nii.gz.
        samples: results for each label map.
        steps: network calls of a scan [10; ddpm: as many as in training].
        append_to: list the drawn cases in this split as train-only cases (fold -1); a label map of
            a case in testing is refused.
        scheme: brats2021, brats2023, brats2024, ped2024, or meddpm, where label 4 is the brain;
            auto: from the case ids.
        force: draw finished cases again.
    """
    if samples < 1:
        raise SynthError(f"--samples {samples}", hint="1 or more")
    if mass_effect and not into:
        raise SynthError("--mass-effect without --into", hint="whole brains are drawn with it")
    if into and brain:
        raise SynthError("--into and --brain", hint="the brain is that of the scans")
    if label_maps and labels:
        both = f"{' '.join(map(str, label_maps))} and --labels {' '.join(map(str, labels))}"
        raise SynthError(both, hint="give one of them")

    from ddpm_lora.generate import SamplerOptions, load
    from ddpm_lora.label_maps import find_hosts
    from ddpm_lora.provenance import append
    from ddpm_lora.write_samples import Maker, make
    from synth.base.devices import pick
    from synth.evaluate.quality_filter import read_kept

    kept = read_kept(listed.kept) if listed.kept else None
    cases, scheme = _find_cases(label_maps or labels, scheme, out)
    hosts = find_hosts(into) if into else ()
    provenance, root = _provenance(listed, out)
    maker = Maker(
        out=out, loaded=load(model, lora, pick(device)),
        options=SamplerOptions(**vars(draws), seed=seed), samples=samples, provenance=provenance,
        scheme=scheme, brain=brain, hosts=hosts, mass_effect=mass_effect,
    )  # fmt: skip
    failed = make(maker, batch.share(cases), force=batch.force)
    if listed.append_to and (out / "records").is_dir():
        failed += append(listed.append_to, out, provenance, root, kept=kept)
    return 2 if failed else 0


def _find_cases(given: tuple[Path, ...], scheme: str, out: Path) -> tuple[list[Case], str]:
    """Return the label maps, those of this package if none are given, and their scheme."""
    from ddpm_lora.label_maps import MEDDPM, demo, find, is_demo, require_known
    from synth.data.case import require_unique

    require_known(scheme)
    sources = given or (demo(),)
    if scheme == "auto" and all(map(is_demo, sources)):
        scheme = MEDDPM
    cases = [case for source in sources for case in find(source, but=out)]
    require_unique(cases)
    return cases, scheme


def _provenance(listed: SplitOptions, out: Path) -> tuple[Provenance, Path]:
    """Return who is behind the label maps, and the folder that the split's paths start from."""
    from ddpm_lora.provenance import Provenance, require_within
    from synth.data.split import read_split

    path = listed.split or listed.append_to
    root = listed.data or (path.parent if path else Path())
    if listed.append_to:
        require_within(root, out)
    read = read_split(path, root) if path else None
    return Provenance(split=read, held_out=listed.fold, strict=bool(listed.append_to)), root
