"""Haar DWT + IDWT of one 128³ float32 volume: ours against ptwt, in the same process.

The two are timed in turn, so that a busy machine disturbs both; the median of each is printed. The
peak of memory is the largest resident set while one runs, in a process of its own, less what was
resident before, in copies of the volume (8 MiB). Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ptwt
import pywt
import torch
from torch import Tensor

from synth.diffusion.wavelet import dwt3, idwt3

SIZE, ROUNDS = 128, 25
VOLUME_BYTES = 4 * SIZE**3


def by_synth(x: Tensor) -> Tensor:
    return idwt3(dwt3(x))


def by_ptwt(x: Tensor) -> Tensor:
    return ptwt.waverec3(ptwt.wavedec3(x[:, 0], "haar", mode="zero", level=1), "haar")[:, None]


def by_pywt(x: Tensor) -> Tensor:
    volume = x.numpy()[0, 0]
    back = pywt.idwtn(pywt.dwtn(volume, "haar", mode="periodization"), "haar", mode="periodization")
    return torch.from_numpy(back)[None, None]


RIVALS: dict[str, Callable[[Tensor], Tensor]] = {
    "synth": by_synth,
    "ptwt": by_ptwt,
    "pywt": by_pywt,
}


def milliseconds() -> dict[str, float]:
    x = torch.randn(1, 1, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in RIVALS}
    for _ in range(ROUNDS):
        for name, transform in RIVALS.items():
            start = time.perf_counter()
            back = transform(x)
            times[name].append(1000 * (time.perf_counter() - start))
            assert (back - x).abs().max() < 1e-5, name
    return {f"{name}_ms": statistics.median(taken) for name, taken in times.items()}


def peak_copies(name: str) -> float:
    """Run one transform in a fresh process and read its high-water mark."""
    command = [sys.executable, "-m", "benchmarks.wavelet", "--peak-of", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(name: str) -> None:
    small = torch.randn(1, 1, 16, 16, 16)
    RIVALS[name](small)  # libraries, threads and kernels are resident before the count begins
    x = torch.randn(1, 1, SIZE, SIZE, SIZE)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident_kib("VmRSS")
    RIVALS[name](x)
    print((resident_kib("VmHWM") - before) * 1024 / VOLUME_BYTES)


def resident_kib(mark: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(mark))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="figures for a program to read")
    parser.add_argument("--peak-of", choices=RIVALS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak_of:
        print_peak(arguments.peak_of)
        return
    figures = milliseconds()
    figures |= {f"{name}_peak_copies": peak_copies(name) for name in RIVALS}
    if arguments.json:
        print(json.dumps(figures))
        return
    print("DWT + IDWT, 1×1×128³ float32, one thread    ms   peak, copies of the volume   × synth")
    for name in RIVALS:
        taken, peak = figures[f"{name}_ms"], figures[f"{name}_peak_copies"]
        print(f"{name:<38} {taken:8.2f} {peak:19.1f} {taken / figures['synth_ms']:18.1f}")


if __name__ == "__main__":
    main()
