"""Presets of a study: numbers of the demo and of a real one, and their cost.

Seconds are those of the demo on two cores and guesses for one large GPU; the estimate of what is
left corrects them by what it measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from synth.study.progress import Stage

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Numbers of a study."""

    preset: str
    """Of every family that is trained."""
    title: str = ""
    """Heading of the report."""
    cases: int = 0
    """Patients to make up; 0: the data are given."""
    tested: int = 0
    """How many of them are fold 1, which is tested."""
    pretraining: int = 24
    """Made-up patients of another site, where a demo starts from nothing."""
    taught: int = 120
    """Patients of site A whose lesions taught the shipped label_gan: a demo looks for copies."""
    drawings: int = 200
    """Tumours drawn from noise, to be judged."""
    holes: int = 0
    """Tested patients with holes to be painted; 0: all."""
    draws: tuple[str, ...] = ("--samples", "3", "--end", "3")
    """Words of painting some holes several times over: how far draws differ, the report shows."""
    tumours: int = 1
    """New tumours in each brain, each with scans drawn for it."""
    training: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: dict.fromkeys(("label_gan", "wdm3d", "ddpm_lora"), ())
    )
    """Family → further words of its training from nothing."""
    adapting: tuple[str, ...] = ()
    """Further words of the fine-tuning by LoRA."""
    sampling: tuple[str, ...] = ()
    compare: tuple[str, ...] = ()
    gate: tuple[str, ...] = ("z_intensity<=4", "signs>=0.7", "copied==0")
    """What a drawn case has to pass before anything is trained on it. `signs`: the share of tumour
    contrasts that are bright or dark as in real scans; low where the tumour is not where its label
    map says. Real phantoms have 0.78 and more, draws of a network of two steps up to 0.67."""
    threads: int = 0
    """Of each stage; 0 leaves it to the machine."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Stage → expected seconds; a minute where it is not told."""

    def stage(
        self, name: str, words: tuple[str, ...], purpose: str, *, made: Path | None = None
    ) -> Stage:
        """Return a stage with the seconds that are expected of it."""
        seconds = self.seconds.get(name, 60.0)
        return Stage(name=name, words=words, purpose=purpose, seconds=seconds, made=made)


DEMO = Scale(
    preset="tiny",
    title="Demonstration on made-up patients",
    cases=28,
    tested=12,
    drawings=24,
    holes=6,
    training={
        "label_gan": ("--steps", "400"),
        "wdm3d": ("--steps", "400", "--batch-size", "4"),
        "ddpm_lora": ("--steps", "500"),
    },
    adapting=("--steps", "200", "--validate-every", "0", "--save-every", "20"),
    draws=("--samples", "3", "--steps", "8", "--end", "2"),
    compare=("--seeds", "0", "1", "2", "--steps", "150", "--warmup-steps", "20",
             "--validate-every", "75", "--save-every", "25", "--preview-every", "0"),
    gate=("z_intensity<=8", "signs>=0.7", "copied==0"),
    threads=2,
    seconds={
        "cohort": 9, "taught": 30, "check": 3, "folds": 1, "without": 1, "tested": 1, "masks": 3,
        "masks_eval": 12, "healthy": 4, "inpainted": 4, "inpainted_draws": 14, "inpainted_eval": 6,
        "tumours": 4, "lora": 100, "synthetic": 40, "synthetic_eval": 18, "split": 1, "kept": 2,
        "comparison": 425, "report": 7, "pretraining": 10, "label_gan": 200, "wdm3d": 500,
        "ddpm_lora": 600,
    },
)  # fmt: skip
TINY = replace(
    DEMO, title="", cases=0, tested=0, holes=0, drawings=100,
    training=dict.fromkeys(DEMO.training, ()), adapting=(), draws=Scale.draws,
    compare=("--seeds", "0", "1", "2"),
    seconds={**DEMO.seconds, "lora": 1200, "comparison": 4800, "synthetic": 300},
)  # fmt: skip
BRATS23 = Scale(
    preset="brats23",
    compare=("--seeds", "0", "1", "2"),
    seconds={
        "check": HOUR / 4, "masks": HOUR / 10, "masks_eval": HOUR / 2, "holes": HOUR,
        "healthy": HOUR / 4, "inpainted": HOUR / 4, "inpainted_draws": HOUR / 6,
        "inpainted_eval": HOUR / 2, "tumours": HOUR, "lora": 2 * HOUR, "synthetic": 3 * HOUR,
        "synthetic_eval": HOUR, "label_gan": 20 * HOUR, "wdm3d": 70 * HOUR,
        "ddpm_lora": 90 * HOUR, "comparison": 225 * HOUR, "report": 120,
    },
)  # fmt: skip
SCALES = {"tiny": TINY, "brats23": BRATS23}


def demo(cases: int) -> Scale:
    """Return the demo's numbers for a cohort of another size, three sevenths of it tested."""
    return replace(DEMO, cases=cases, tested=round(cases * DEMO.tested / DEMO.cases))
