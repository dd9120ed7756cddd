"""Two spaces of the mask-conditioned model: voxels as Med-DDPM has them, and Haar bands.

    python -m benchmarks.ddpm_lora [--device auto|cpu|cuda] [--quick] [--edges 48 64]

First table, counted without computing anything (meta device), at Med-DDPM's own 192×192×144:
floating-point operations of a call, and bytes that the forward pass keeps for the backward pass,
plain, and with block checkpoints (kept inputs and the costliest block), in float32 and in bf16.

Second: seconds and peak memory of one call and one training step (forward, backward, AdamW) at
published width for small cubes, in float32, bf16 autocast, and bf16 with channels-last layout;
all in one process, in turn, so that ratios mean something. On a CPU one thread runs and its
processor time counts; memory is the largest resident set of a process of its own (Linux only). On a
GPU the clock on the wall counts, and memory is what torch allocated.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.wdm3d import autocast, seconds, table
from ddpm_lora.config import PRESETS, Config
from ddpm_lora.network import build

GRID = (192, 192, 144)  # Med-DDPM's box
SPACES = {"pixel": PRESETS["meddpm"], "wavelet": PRESETS["brats23"]}
LAYOUTS = ("float32", "bf16", "bf16 channels-last")
WORKS = ("call", "step")
GIB = 2**30


def inputs(config: Config, grid: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    """What one call on a volume takes: state and condition, and a timestep."""
    shape = [n // 2 for n in grid] if config.space == "wavelet" else list(reversed(grid))
    channels = config.state_channels + config.condition_channels
    return torch.randn(1, channels, *shape, device=device), torch.full((1,), 99.0, device=device)


# --- Counted ---------------------------------------------------------------------------------


def flops(config: Config, grid: tuple[int, ...] = GRID) -> int:
    """Operations of one call, two for each multiply-add."""
    with torch.device("meta"), torch.no_grad():
        network = build(config)
        with FlopCounterMode(display=False) as counter:
            network(*inputs(config, grid, "meta"))
    return counter.get_total_flops()


def kept_bytes(run: Callable[[], object], network: nn.Module) -> int:
    """Bytes that autograd keeps of `run`, weights apart, each storage once."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # held, so that no other takes its place
        if storage._cdata not in own:
            kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(size for _, size in kept.values())


def activation_bytes(
    config: Config, *, grid: tuple[int, ...] = GRID, blocks: bool = False, half: bool = False
) -> int:
    """Bytes kept for the backward pass of one step on one volume."""
    dtype = torch.bfloat16 if half else torch.float32
    with torch.device("meta"):
        network = build(replace(config, checkpointing=False)).to(dtype)
    x, t = inputs(config, grid, "meta")
    x = x.to(dtype)
    if not blocks:
        return kept_bytes(lambda: network(x, t), network)
    entering, costs = 0, []
    stages = [*network.input_blocks, network.middle_block, *network.output_blocks]

    def watch(stage: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal entering
        entering += given[0].nbytes  # checkpoint keeps it; recomputing the block costs the rest
        emb = given[1].detach()
        again = given[0].detach().requires_grad_()
        costs.append(kept_bytes(lambda: type(stage).forward(stage, again, emb), network))

    hooks = [stage.register_forward_pre_hook(watch) for stage in stages]
    with torch.no_grad():
        features = {}
        network.out.register_forward_pre_hook(lambda _, given: features.update(out=given[0]))
        with torch.enable_grad():
            network(x, t)
    for hook in hooks:
        hook.remove()
    head = kept_bytes(lambda: network.out(features["out"].detach().requires_grad_()), network)
    return entering + head + max(costs)


def counted_rows(grid: tuple[int, ...] = GRID) -> list[list[str]]:
    """One line a quantity: pixel, wavelet, ratio."""
    rows = [["at " + "×".join(map(str, grid)), "pixel", "wavelet", "ratio"]]

    def add(name: str, measure: Callable[[Config], float], form: str) -> None:
        pixel, wavelet = (measure(config) for config in SPACES.values())
        rows.append([name, form.format(pixel), form.format(wavelet), f"{pixel / wavelet:.2f}"])

    add("million parameters", parameters, "{:.2f}")
    add("TFLOP a call", lambda c: flops(c, grid) / 1e12, "{:.2f}")
    for blocks, half in product((False, True), (False, True)):
        name = f"GiB kept, {'bf16' if half else 'float32'}{', block checkpoints' * blocks}"
        settings = {"grid": grid, "blocks": blocks, "half": half}
        add(name, lambda c, s=settings: activation_bytes(c, **s) / GIB, "{:.2f}")
    return rows


def parameters(config: Config) -> float:
    with torch.device("meta"):
        return sum(p.numel() for p in build(config).parameters()) / 1e6


# --- Timed -----------------------------------------------------------------------------------


def work_of(space: str, layout: str, work: str, edge: int, device: str) -> Callable[[], None]:
    """One call or one training step on a cube of `edge` voxels, ready to run."""
    config = replace(SPACES[space], checkpointing=False)
    network = build(config).to(device)
    x, t = inputs(config, (edge, edge, edge), device)
    if layout.endswith("channels-last"):
        for parameter in network.parameters():  # the mean brain, a buffer, has four axes
            if parameter.ndim == 5:
                parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
        x = x.to(memory_format=torch.channels_last_3d)
    precision = "bf16" if layout.startswith("bf16") else "float32"

    @torch.no_grad()
    def call() -> None:
        with autocast(precision, device):
            network(x, t)

    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)

    def step() -> None:
        with autocast(precision, device):
            loss = network(x, t).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"call": call, "step": step}[work]


def peak_mib(configuration: tuple[str, str, str, str], device: str) -> float:
    """Run one configuration twice in a fresh process and read its high-water mark."""
    command = [sys.executable, "-m", "benchmarks.ddpm_lora", "--device", device]
    command += ["--peak-of", *configuration]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(space: str, layout: str, work: str, edge: str, device: str) -> None:
    run = work_of(space, layout, work, int(edge), device)
    run(), run()
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
        return
    # Not ru_maxrss: that one starts at the size of the process this one was forked from.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)


def timed_rows(edges: list[int], rounds: int, device: str) -> list[list[str]]:
    rows = [["cube", "pixel s", "wavelet s", "ratio", "pixel MiB", "wavelet MiB"]]
    for edge, work, layout in product(edges, WORKS, LAYOUTS):
        runs = {space: work_of(space, layout, work, edge, device) for space in SPACES}
        taken: dict[str, list[float]] = {space: [] for space in SPACES}
        for number in range(rounds + 1):
            for space, run in runs.items():
                spent = seconds(run, device)
                if number:  # the first round warms up
                    taken[space].append(spent)
        pixel, wavelet = (statistics.median(taken[space]) for space in SPACES)
        peaks = [f"{peak_mib((s, layout, work, str(edge)), device):,.0f}" for s in SPACES]
        name = f"{edge}³ {work}, {layout}"
        rows.append([name, f"{pixel:.3f}", f"{wavelet:.3f}", f"{pixel / wavelet:.2f}", *peaks])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="one round in place of three")
    parser.add_argument("--edges", type=int, nargs="*", default=[48, 64])
    parser.add_argument("--peak-of", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = found if arguments.device == "auto" else arguments.device
    if arguments.peak_of:
        print_peak(*arguments.peak_of, device=device)
        return
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"
    print(f"{where}, torch {torch.__version__}\n")
    print(table(counted_rows()), "\n")
    if arguments.edges:
        print(table(timed_rows(arguments.edges, 1 if arguments.quick else 3, device)))


if __name__ == "__main__":
    main()
