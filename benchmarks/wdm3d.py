"""The wavelet denoiser: ours against a plain transcription, and a case against the published one.

    python -m benchmarks.wdm3d [--device auto|cpu|cuda] [--quick]

First table: floating-point operations of a whole case at the published setting and at ours; on a
GPU, or without --quick, also seconds a case in float32: one timed call times the calls. Second:
milliseconds and peak memory of one denoiser call and one training step (forward, backward, AdamW)
at the published width for a 64³ volume, which is 32³ wavelet coefficients. Both networks hold the
same weights and must answer alike before they are timed, in turn.

On a CPU one thread runs and its processor time counts, which other programs hardly disturb; memory
is the process's largest resident set, torch and weights included (Linux only). On a GPU the clock
on the wall counts, and memory is what torch allocated.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_unet import PlainUNet, pair
from synth.diffusion.unet import UNet
from wdm3d.config import PRESETS, PUBLISHED, Config, SamplerOptions
from wdm3d.network import build

VOLUME = 64  # edge of the timed volume, voxels
PUBLISHED_CALLS = 5000
REGIONS = 2  # a BraTS case has a healthy and an unhealthy hole
WARM = 32  # edge of the grid that warms up, a multiple of every stride
NETWORKS = ("synth", "plain")
PRECISIONS = ("float32", "bf16")
WORKS = ("call", "step")
TOLERANCE = 1e-5  # float32 rounding through some eighty layers; answers are of order one


@torch.no_grad()
def disagreement(networks: dict[str, nn.Module], x: Tensor, t: Tensor) -> float:
    """Largest difference between the two answers, in units of the answer's largest value."""
    ours, plain = networks["synth"](x, t), networks["plain"](x, t)
    return float((ours - plain).abs().max() / plain.abs().max())


# --- Arithmetic of a case ---


@dataclass(frozen=True)
class Setting:
    """A way to paint one case."""

    name: str
    config: Config
    calls: int

    @property
    def grid(self) -> int:
        """Edge of the coefficient grid the network sees."""
        return self.config.crop // 2**self.config.wavelet_levels

    def inputs(self, device: str) -> tuple[Tensor, Tensor]:
        """What one call takes: (1, channels, n, n, n) and a timestep."""
        channels = self.config.bands + self.config.condition_channels
        x = torch.randn(1, channels, self.grid, self.grid, self.grid, device=device)
        return x, torch.full((1,), 500.0, device=device)

    def flops(self) -> int:
        """Operations of one call, two for each multiply-add, counted without computing any."""
        with torch.device("meta"), torch.no_grad():
            network = build(self.config)
            with FlopCounterMode(display=False) as counter:
                network(*self.inputs("meta"))
        return counter.get_total_flops()


def settings() -> list[Setting]:
    """The published way, then ours: the mean of one call, and a draw of the default length."""
    ours = [
        Setting(f"{preset}, {estimate}", PRESETS[preset], calls * REGIONS)
        for preset in ("brats23", "fast")
        for estimate, calls in (("mean", 1), ("sample", SamplerOptions().steps))
    ]
    return [Setting("published", PUBLISHED, PUBLISHED_CALLS), *ours]


def case_rows(device: str | None) -> list[list[str]]:
    """One line a setting; seconds only where there is a device to time a call on."""
    first, *_ = every = settings()
    published = first.flops() * first.calls
    rows = [["setting", "grid", "calls", "TFLOP a call", "PFLOP a case", "ratio"]]
    rows[0] += ["s a case"] * (device is not None)
    for setting in every:
        a_call = setting.flops()
        total = a_call * setting.calls
        grid, ratio = f"{setting.grid}³", f"{published / total:,.0f}"
        row = [setting.name, grid, f"{setting.calls}", f"{a_call / 1e12:.3f}"]
        row += [f"{total / 1e15:.4f}", ratio]
        if device is not None:
            row.append(f"{seconds_a_call(setting, device) * setting.calls:,.1f}")
        rows.append(row)
    return rows


def table(rows: list[list[str]]) -> str:
    """Align columns: the first to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures in rows:
        cells = [f"{f:>{w}}" for f, w in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *cells]))
    return "\n".join(lines)


# --- Clock and memory ---


def autocast(precision: str, device: str) -> AbstractContextManager:
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def work_of(network: nn.Module, precision: str, work: str, device: str) -> Callable[[], None]:
    """One denoiser call or one training step, ready to run."""
    channels, grid = PUBLISHED.unet().in_channels, VOLUME // 2
    x = torch.randn(1, channels, grid, grid, grid, device=device)
    t = torch.full((1,), 500.0, device=device)

    @torch.no_grad()
    def call() -> None:
        with autocast(precision, device):
            network(x, t)

    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)  # both keep their equal weights

    def step() -> None:
        with autocast(precision, device):
            loss = network(x, t).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"call": call, "step": step}[work]


def seconds(run: Callable[[], None], device: str) -> float:
    """Processor time of one run on a CPU, wall time on a GPU."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def milliseconds(rounds: int, device: str) -> dict[tuple[str, str, str], float]:
    """Median of every (network, precision, work), the networks in turn."""
    networks = {name: network.to(device) for name, network in pair(PUBLISHED.unet()).items()}
    x, t = torch.randn(1, 16, 32, 32, 32, device=device), torch.full((1,), 500.0, device=device)
    torch.backends.cudnn.allow_tf32 = False  # for the comparison alone
    apart = disagreement(networks, x, t)
    torch.backends.cudnn.allow_tf32 = True
    print(f"same weights, largest relative difference of the answers: {apart:.1e}")
    if apart > TOLERANCE:
        sys.exit("the transcription is another network: nothing to compare")
    medians = {}
    for precision, work in product(PRECISIONS, WORKS):
        runs = {n: work_of(network, precision, work, device) for n, network in networks.items()}
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            for name, run in runs.items():
                spent = seconds(run, device)
                if number:  # the first round warms up
                    taken[name].append(1000 * spent)
        medians |= {(n, precision, work): statistics.median(v) for n, v in taken.items()}
    return medians


def peak_mib(configuration: tuple[str, str, str], device: str) -> float:
    """Run one configuration twice in a fresh process and read its high-water mark."""
    command = [sys.executable, "-m", "benchmarks.wdm3d", "--device", device]
    command += ["--peak-of", *configuration]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(name: str, precision: str, work: str, device: str) -> None:
    builder = {
        "synth": lambda: UNet(PUBLISHED.unet()),
        "plain": lambda: PlainUNet(PUBLISHED.unet()),
    }
    run = work_of(builder[name]().to(device), precision, work, device)
    run(), run()
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
        return
    # Not ru_maxrss: that one starts at the size of the process this one was forked from.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)


def speed_rows(rounds: int, device: str) -> list[list[str]]:
    medians = milliseconds(rounds, device)
    rows = [["64³ volume, width 64", "synth ms", "plain ms", "ratio", "synth MiB", "plain MiB"]]
    for precision, work in product(PRECISIONS, WORKS):
        ours, plain = (medians[name, precision, work] for name in NETWORKS)
        peaks = [f"{peak_mib((name, precision, work), device):,.0f}" for name in NETWORKS]
        row = [f"{work}, {precision}", f"{ours:,.1f}", f"{plain:,.1f}", f"{plain / ours:.2f}"]
        rows.append(row + peaks)
    return rows


def seconds_a_call(setting: Setting, device: str) -> float:
    """Time one float32 call of a setting at its own size."""
    network, (x, t) = build(setting.config).to(device), setting.inputs(device)
    with torch.no_grad():
        network(x[..., :WARM, :WARM, :WARM], t)
        return seconds(lambda: network(x, t), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="two rounds in place of five")
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = found if arguments.device == "auto" else arguments.device
    if arguments.peak_of:
        print_peak(*arguments.peak_of, device=device)
        return
    timed = device == "cuda" or not arguments.quick
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"
    print(f"{where}, torch {torch.__version__}\n")
    print(table(case_rows(device if timed else None)), "\n")
    print(table(speed_rows(2 if arguments.quick else 5, device)))


if __name__ == "__main__":
    main()
