"""The challenge's entry point, with the arguments of the 2024 solution.

    python testing/inference.py --data_path DATA --output_path OUT --model_path MODEL

MODEL is a checkpoint folder of ours, or a public .pt, which is converted beside itself once. The
scans are written as OUT/<case>-t1n-inference.nii.gz; the predecessor put one more folder in
between, named after the data, and failed where it did not exist. Without arguments it follows the
container contract of 2025 and later: /input → /output, one scan a case and nothing else on top.
How it samples suits the model: one call for a context model, 20 calls of DPM-Solver++ for the
published weights. Any flag of `synth inpaint` may follow, such as --steps 50 or --device cpu.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout, installed or not

from synth.cli import main as synth  # noqa: E402


def main(words: list[str]) -> int:
    """Convert public weights if that is what there is, and inpaint; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data_path", default="/input", help="[/input]")
    parser.add_argument("--output_path", default="/output", help="[/output]")
    parser.add_argument("--model_path", type=Path, default=ROOT / "weights" / "wdm3d")
    parser.add_argument("--beg_case", default="0", help="first case [0]")
    parser.add_argument("--end_case", default="end", help="case to stop before, or end [end]")
    given, more = parser.parse_known_args(words)
    model = given.model_path
    if model.suffix in (".pt", ".pth"):
        source, model = model, model.with_suffix("")
        if not is_newer(model / "model.safetensors", source):
            code = synth(["convert", str(source), "-o", str(model), "--family", "wdm3d"])
            if code:
                return code
    places = [given.data_path, "-o", given.output_path, "--model", str(model)]
    return synth(["inpaint", *places, "--begin", given.beg_case, "--end", given.end_case, *more])


def is_newer(made: Path, source: Path) -> bool:
    """Whether `made` is there and not older than what it was made of, or that is gone."""
    return made.exists() and (not source.exists() or made.stat().st_mtime >= source.stat().st_mtime)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
