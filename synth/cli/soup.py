"""The verb soup."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from synth.base.errors import SynthError

if TYPE_CHECKING:
    from segmentation.soup.averaging import Soup
    from synth.data.case import Case


def soup(
    checkpoints: tuple[Path, ...],
    *,
    data: Path,
    out: Path,
    kind: Literal["greedy", "uniform"] = "greedy",
    split: Path | None = None,
    fold: int | None = None,
    scheme: str = "auto",
    tta: bool = False,
    overlap: float = 0.5,
    scores: Path | None = None,
    device: str = "auto",
    force: bool = False,
) -> int:
    """Average the weights of segmentation checkpoints where that is better on given cases.

    A greedy soup starts with the best checkpoint and adds each next one only if the mean Dice of
    the cases rises; a uniform one averages all. If no soup is better than the best checkpoint, that
    checkpoint is written. Do not report results on the cases that chose.

    Args:
        checkpoints: folders or runs of one network, trained with other settings or seeds.
        data: folder with the cases that choose, or that the paths of the split are relative to.
        out: checkpoint folder to write.
        kind: greedy or uniform.
        split: split (JSON); with --fold, its held-out cases choose.
        fold: the fold, which none of the checkpoints was trained on.
        scores: JSON that keeps scores between runs [OUT/scores.json].
        force: overwrite the checkpoint in OUT.
    """
    from synth.checkpoints.checkpoint import WEIGHTS

    if (split is None) != (fold is None):
        raise SynthError("--split and --fold go together", hint="the cases of that fold choose")
    if (out / WEIGHTS).exists() and not force:
        raise SynthError(f"{out} holds a checkpoint", hint="--force writes over it")
    cases = _read_cases(data, split, fold, scheme)

    from segmentation.inference.segment import SegmentOptions
    from segmentation.soup.selection import make_soup
    from synth.base.devices import pick

    made = make_soup(
        checkpoints, cases, out, kind=kind, options=SegmentOptions(tta=tta, overlap=overlap),
        device=pick(device), scores=scores,
    )  # fmt: skip
    _print_summary(made, kind, len(cases), out)
    return 0


def _read_cases(data: Path, split: Path | None, fold: int | None, scheme: str) -> list[Case]:
    from synth.data.case import discover, require_unique
    from synth.data.split import read_split

    if split is not None and fold is not None:
        _, cases = read_split(split, data).fold(fold)
    else:
        cases = discover(data, scheme=scheme)
        require_unique(cases)
    for case in cases:
        case.path("seg")  # refuses a missing one before an hour of work
    return cases


def _print_summary(made: Soup, kind: str, cases: int, out: Path) -> None:
    from synth.evaluate.tables import plain_table

    rows = [["checkpoint", "Dice alone", "soup with it", "kept"]]
    rows += [
        [r.name, f"{r.alone:.4f}", "" if r.soup is None else f"{r.soup:.4f}", "yes" * r.kept]
        for r in made.rows
    ]
    print(plain_table(rows))
    if made.gain > 0:
        print(
            f"{kind} soup of {len(made.kept)}: Dice {made.score:.4f}, {made.gain:+.4f} against the "
            f"best alone, {made.best} → {out}"
        )
    else:
        print(f"no soup was better than {made.best} alone: {out} holds that one, unchanged")
    print(f"these {cases} cases chose it: do not report on them, expect less on others")
