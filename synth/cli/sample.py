"""The verb sample."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from synth.base.errors import SynthError
from synth.jobs.cases import BatchOptions


def sample(
    label_maps: tuple[Path, ...] = (),
    *,
    labels: tuple[Path, ...] = (),
    out: Path = Path("runs/sample"),
    lora: tuple[str, ...] = (),
    model: Path | None = None,
    brain: Path | None = None,
    scheme: str = "auto",
    samples: int = 1,
    steps: int | None = None,
    sampler: Literal["dpmpp_2m", "dpmpp_2m_sde", "ddim", "ddpm"] = "dpmpp_2m",
    guidance: float = 1.0,
    temperature: float = 1.0,
    split: Path | None = None,
    append_to: Path | None = None,
    kept: Path | None = None,
    fold: int | None = None,
    data: Path | None = None,
    batch: BatchOptions,
    seed: int = 0,
    device: str = "auto",
) -> int:
    """Draw t1n, t1c, t2w and t2f for label maps, as they would look at the site of an adapter.

    A label map needs a brain: --brain; <case>-brain.nii.gz beside it, as `synth masks --kind
    tumour` writes it; label 4 with --scheme meddpm; or the case's own scans. One without tumour is
    a healthy brain. Writes <case>-synth00/ with BraTS-2023 names on the label map's grid,
    background exactly 0, a picture of each case into pictures/, and a JSON record of each into
    records/. Finished cases are skipped: the same command goes on. What is drawn depends on the
    model, seed, case id and number of the sample alone.

    Args:
        label_maps: label maps, or folders of cases in any naming [weights/labels].
        labels: the same; a flag may follow others that take several words.
        out: folder to write into.
        lora: adapters, as folders, or folder:0.7 to weigh several; also a parent that holds one.
        model: ddpm_lora checkpoint, or the base of the adapters, which find it themselves if they
            can [weights/ddpm_lora].
        brain: brain mask for all label maps, or a folder with <case>-brain.nii.gz.
        scheme: how labels are numbered: brats2021, brats2023, brats2024, ped2024, or meddpm, where
            4 is the brain; auto goes by the case ids.
        samples: draws for each label map.
        steps: network calls of a draw [10; ddpm as many as trained].
        sampler: solver.
        guidance: above 1 labels count for more, at twice the cost.
        temperature: size of the first noise; below 1 brains are smoother and less varied.
        split: decathlon-style JSON of the label maps' real cases: their folds go on record.
        append_to: list what is drawn in this split as train-only cases (fold -1); a label map of a
            case in testing is refused.
        kept: append only what this kept.json of `synth evaluate synthesis --keep` lists.
        fold: the fold that the model was not trained on; --append-to refuses its label maps.
        data: folder that the paths of the split are relative to [the split's own].
        begin: first label map.
        end: label map to stop before, or end.
        seed: seed of every draw, together with the case's id.
        device: auto, cpu, cuda, cuda:1 …
        force: draw finished cases again.
    """
    if samples < 1:
        raise SynthError(f"--samples {samples}", hint="1 or more")

    if label_maps and labels:
        both = f"{' '.join(map(str, label_maps))} and --labels {' '.join(map(str, labels))}"
        raise SynthError(both, hint="give one of them")
    if split and append_to:
        raise SynthError("--split and --append-to", hint="the split that is added to says it all")

    from ddpm_lora.generate import Plan, load
    from ddpm_lora.label_maps import MEDDPM, demo, find, is_demo, require_known
    from ddpm_lora.provenance import Pedigree, append, require_within
    from ddpm_lora.write_samples import Maker, make
    from synth.base.devices import pick
    from synth.data.case import require_unique
    from synth.data.split import read_split

    passed = _passed(kept, append_to)
    require_known(scheme)
    sources = label_maps or labels or (demo(),)
    if scheme == "auto" and all(map(is_demo, sources)):
        scheme = MEDDPM
    plan = Plan(steps=steps, sampler=sampler, guidance=guidance, temperature=temperature, seed=seed)
    cases = [case for source in sources for case in find(source, but=out)]
    require_unique(cases)
    cases = batch.share(cases)
    listed = split or append_to
    root = data or (listed.parent if listed else Path())
    if append_to:
        require_within(root, out)
    pedigree = Pedigree(
        split=read_split(listed, root) if listed else None, held_out=fold, strict=bool(append_to)
    )
    maker = Maker(
        out=out, loaded=load(model, lora, pick(device)), plan=plan, samples=samples,
        pedigree=pedigree, scheme=scheme, brain=brain,
    )  # fmt: skip
    failed = make(maker, cases, force=batch.force)
    if append_to and (out / "records").is_dir():
        failed += append(append_to, out, pedigree, root, kept=passed)
    return 2 if failed else 0


def _passed(kept: Path | None, append_to: Path | None) -> dict[str, str] | None:
    """Return the cases that may be appended, with the hashes of their scans; None is all."""
    if kept is None:
        return None
    if append_to is None:
        raise SynthError("--kept without --append-to", hint="it says which cases are appended")
    from synth.evaluate.quality_filter import read_kept

    return read_kept(kept)
