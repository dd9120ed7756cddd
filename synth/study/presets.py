"""Presets of a study: numbers of the demo and of a real one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, kw_only=True)
class StudyPreset:
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


DEMO = StudyPreset(
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
    draws=("--samples", "3", "--steps", "8", "--end", "1"),
    compare=("--seeds", "0", "1", "2", "--steps", "150", "--warmup-steps", "20",
             "--validate-every", "75", "--save-every", "25", "--preview-every", "0"),
    gate=("z_intensity<=8", "signs>=0.7", "copied==0"),
    threads=2,
)  # fmt: skip
TINY = replace(
    DEMO, title="", cases=0, tested=0, holes=0, drawings=100,
    training=dict.fromkeys(DEMO.training, ()), adapting=(), draws=StudyPreset.draws,
    compare=("--seeds", "0", "1", "2"),
)  # fmt: skip
BRATS23 = StudyPreset(
    preset="brats23",
    compare=("--seeds", "0", "1", "2"),
)  # fmt: skip
PRESETS = {"tiny": TINY, "brats23": BRATS23}


def demo(cases: int) -> StudyPreset:
    """Return the demo's numbers for a cohort of another size, three sevenths of it tested."""
    return replace(DEMO, cases=cases, tested=round(cases * DEMO.tested / DEMO.cases))
