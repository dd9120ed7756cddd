"""Twenty errors that nobody may make unnoticed: each is planted in a copy, and a test must fail.

python -m tests.mutations            # all, in some minutes; or numbers of some
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutation:
    """A wrong line, and the tests that must see it."""

    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation("synth/data/labels.py", "classes[et] = ET", "classes[et] = NCR", "test_case"),
    Mutation("synth/data/placement.py", "MIN_DISTANCE_MM = 5.0", "MIN_DISTANCE_MM = 4.0",
             "test_placement"),
    Mutation("synth/data/prepare.py", "HIGH_PERCENTILE = 99.5", "HIGH_PERCENTILE = 99.9",
             "test_prepare test_golden"),
    Mutation("synth/data/fill.py", "tolerance: float = TOLERANCE) -> np.ndarray:",
             "tolerance: float = 1e-2) -> np.ndarray:", "test_fill"),
    Mutation("synth/diffusion/wavelet.py", "[[1.0, 1.0], [1.0, -1.0]]",
             "[[1.0, 1.0], [-1.0, 1.0]]", "test_wavelet"),
    Mutation("synth/diffusion/sampling.py", "renewed = -math.expm1(-2 * pair.h)",
             "renewed = -math.expm1(-pair.h)", "test_sampling"),
    Mutation("synth/diffusion/sampling.py", "kept * (x - pair.alpha_t * x0)",
             "kept * (x - pair.alpha_s * x0)", "test_sampling"),
    Mutation("synth/training/ema.py", "1 - min(decay, (1 + n) / (10 + n))",
             "1 - min(decay, (1 + n) / (100 + n))", "test_train"),
    Mutation("synth/metrics/statistics.py", 'zero_method="pratt"', 'zero_method="wilcox"',
             "test_statistics"),
    Mutation("synth/metrics/statistics.py", "worst = max(worst, min(1.0, (len(tested) - rank)",
             "worst = max(worst, min(1.0, (len(tested) - rank - 1)", "test_statistics"),
    Mutation("synth/metrics/surface.py", "np.concatenate((self.pred_mm, self.ref_mm)), 95)",
             "self.pred_mm, 95)", "test_overlap test_lesions"),
    Mutation("synth/metrics/reference.py", "found.mean() + 4 * found.std()",
             "found.mean() + 0 * found.std()", "test_judge_masks test_synthesis_regions"),
    Mutation("synth/jobs/cases.py", "all((out / name).exists() for name in files)",
             "True", "test_batch"),
    Mutation("synth/base/files.py", "os.replace(temporary, path)", "os.link(temporary, path)",
             "test_batch"),
    Mutation("wdm3d/generate.py", "touched=mask).data, image.data)", "touched=mask).data, 0)",
             "test_wdm3d_generate"),
    Mutation("wdm3d/guides.py", "known - guess, 0)", "guess - known, 0)", "test_guided"),
    Mutation("ddpm_lora/lora/merging.py", "return alpha / math.sqrt(rank) if",
             "return alpha / rank if", "test_ddpm_lora_adapters"),
    Mutation("label_gan/distance_maps.py", "tc = torch.maximum(tc, wt)",
             "tc = torch.minimum(tc, wt)", "test_label_gan_shape test_label_gan_recipe"),
    Mutation("segmentation/comparison/leakage.py", "if fold in entry.seen_folds:",
             "if fold not in entry.seen_folds:", "test_compare"),
    Mutation("synth/cli/__init__.py", "return 2", "return 0", "test_cli"),
)  # fmt: skip


def plant(mutation: Mutation, root: Path) -> None:
    """Write the wrong line."""
    path = root / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.old, mutation.new, 1), encoding="utf-8")


def is_caught(mutation: Mutation, root: Path) -> bool:
    """Plant an error, run the tests that should fail, and take the error out again."""
    plant(mutation, root)
    names = [f"tests/{name}.py" for name in mutation.tests.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-m", "not slow", *names]
    code = subprocess.run(command, cwd=root, capture_output=True, check=False).returncode
    shutil.copy2(ROOT / mutation.file, root / mutation.file)
    return code == 1


def main() -> None:
    """Print what was caught; the exit code is the number of errors that were not."""
    chosen = [int(word) for word in sys.argv[1:]] or range(len(MUTATIONS))
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in listed:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
        for number in chosen:
            mutation = MUTATIONS[number]
            caught = is_caught(mutation, root)
            missed += not caught
            said = "caught" if caught else "MISSED"
            print(f"{number:2} {said} {mutation.file}: {mutation.new}", flush=True)
    sys.exit(missed)


if __name__ == "__main__":
    main()
