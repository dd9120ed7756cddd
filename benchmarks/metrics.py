"""Time and compare our nine inpainting metrics with the official package.

    python -m benchmarks.metrics [--cases 3] [--shape 240 240 155]

Prints one line a case: seconds of both (ours: best of three), the ratio, and which numbers differ
(none should). The official call takes half a minute a full-size case.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from synth.metrics.image import METRICS, inpainting_metrics

FILLS = ("noisy", "mean", "zero")


def make_case(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, ...]:
    """A smooth ellipsoid brain with a ball-shaped hole, and one of three fills of it."""
    rng = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    texture = gaussian_filter(rng.normal(size=shape).astype(np.float32), 2)
    tissue = 700 + 250 * texture / texture.std()
    truth = np.where((grid**2).sum(0) < 0.7, np.rint(tissue).clip(1), 0).astype(np.float32)
    centre = rng.uniform(-0.5, 0.5, 3)[:, None, None, None]
    mask = ((grid - centre) ** 2).sum(0) < rng.uniform(0.15, 0.25) ** 2
    fills = {
        "noisy": truth + rng.normal(scale=100, size=shape).astype(np.float32),
        "mean": np.full_like(truth, truth[truth > 0].mean()),
        "zero": truth * ~mask,
    }
    return fills[FILLS[seed % len(FILLS)]], truth, truth * ~mask, mask


def official(*arrays: np.ndarray) -> dict[str, float]:
    import torch
    from inpainting.challenge_metrics_2023 import generate_metrics

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generate_metrics(*(torch.from_numpy(a)[None] for a in arrays))


def timed(function: Callable, *arguments: np.ndarray) -> tuple[dict[str, float], float]:
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155))
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    warm_up = make_case((32, 32, 32), 0)
    inpainting_metrics(*warm_up)  # torch's import is not our speed
    official(*warm_up)
    print(f"{'case':<6}{'hole':>8}{'ours s':>10}{'official s':>12}{'ratio':>8}  different")
    for seed in range(arguments.cases):
        case = make_case(shape, seed)
        runs = [timed(inpainting_metrics, *case) for _ in range(3)]
        ours, our_seconds = min(runs, key=lambda run: run[1])
        theirs, their_seconds = timed(official, *case)
        different = [name for name in METRICS if ours[name] != theirs[name]]
        print(
            f"{FILLS[seed % len(FILLS)]:<6}{case[3].sum():>8}{our_seconds:>10.3f}"
            f"{their_seconds:>12.1f}{their_seconds / our_seconds:>8.0f}"
            f"  {', '.join(different) or 'none'}"
        )


if __name__ == "__main__":
    main()
