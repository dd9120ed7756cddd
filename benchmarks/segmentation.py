"""MedNeXt: ours against MONAI's module, and what a whole scan costs.

    python -m benchmarks.segmentation [--device auto|cpu|cuda] [--quick]

First table: milliseconds and peak memory of one call and one training step (forward, backward,
AdamW) at 64³ with deep supervision, float32. MONAI's module runs as it comes, channels first. Both
networks hold the same weights: MONAI's B is narrower in its down blocks, which `synth convert`
widens without changing the function, so that ours does a little more. Their answers at five scales
and their gradients must agree before they are timed, in turn. On a GPU also bf16 at 128³, and each
checkpointing policy. Second table: the sliding window over the brain of a full-size case.

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
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from monai.data.utils import dense_patch_slices
from torch import Tensor, nn

from benchmarks.wdm3d import autocast, seconds, table
from segmentation import legacy
from segmentation.config import CONTRASTS, PRESETS, Config
from segmentation.network import build
from segmentation.predict import probabilities
from synth.data.labels import REGIONS

SIZES = {"mednext_s": "S", "mednext_b": "B"}
EDGE = {"cpu": 64, "cuda": 128}  # of the timed crop, voxels
BRAIN = (144, 176, 144)  # voxels of 1 mm; the box around a large head
TOLERANCE = 1e-4  # relative; float32 sums in another order through some eighty layers
WORKS = ("call", "step")


def monai_net(size: str) -> nn.Module:
    from monai.networks.nets.mednext import create_mednext

    io = {"in_channels": CONTRASTS, "out_channels": len(REGIONS)}
    return create_mednext(SIZES[size], **io, kernel_size=3, deep_supervision=True)


def pair(size: str) -> dict[str, nn.Module]:
    """Both networks, ours with MONAI's weights."""
    torch.manual_seed(0)
    theirs = monai_net(size)
    config, weights = legacy.convert(theirs.state_dict(), "monai")
    ours = build(config)
    ours.load_state_dict(weights)
    return {"synth": ours, "monai": theirs}


def crop(edge: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, CONTRASTS, edge, edge, edge, generator=generator).to(device)


def loss_of(answers: list[Tensor]) -> Tensor:
    return torch.stack([y.float().square().mean() for y in answers]).sum()


def disagreement(networks: dict[str, nn.Module], x: Tensor) -> tuple[float, float]:
    """Largest relative difference (in the norm) of the answers, and of the gradients.

    Gradients are those of the input, which every layer has passed on, and of the first and the last
    depthwise kernels.
    """
    found = {}
    for name, network in networks.items():
        seen = x.clone().requires_grad_()
        answers = list(network.train()(seen))
        kernels = {
            legacy.our_name(key): p
            for key, p in network.named_parameters()
            if legacy.our_name(key) in ("encoder.0.0.depthwise.weight", "up.3.depthwise.weight")
        }
        wanted = [seen, *[kernels[key] for key in sorted(kernels)]]
        found[name] = (answers, torch.autograd.grad(loss_of(answers), wanted))
    (a, da), (b, db) = (found[name] for name in ("synth", "monai"))
    return _apart(a, b), _apart(da, db)


def _apart(ours: list[Tensor] | tuple[Tensor, ...], theirs: list[Tensor] | tuple) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max(float(((a - b).norm() / b.norm()).detach()) for a, b in pairs)


def work_of(network: nn.Module, work: str, x: Tensor, precision: str) -> Callable[[], None]:
    """One call or one training step, ready to run; the step leaves the weights as they are."""

    @torch.no_grad()
    def call() -> None:
        with autocast(precision, x.device.type):
            network.eval()(x)

    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)

    def step() -> None:
        with autocast(precision, x.device.type):
            loss = loss_of(list(network.train()(x)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"call": call, "step": step}[work]


def milliseconds(
    networks: dict[str, nn.Module], work: str, x: Tensor, precision: str, rounds: int
) -> dict[str, float]:
    """Median of each network, in turn; the first round warms up."""
    runs = {name: work_of(network, work, x, precision) for name, network in networks.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            spent = seconds(run, x.device.type)
            if number:
                taken[name].append(1000 * spent)
    return {name: statistics.median(values) for name, values in taken.items()}


def speed_rows(rounds: int, device: str) -> list[list[str]]:
    rows = [["MedNeXt, kernel 3", "synth ms", "monai ms", "ratio", "synth MiB", "monai MiB"]]
    precisions = ("float32", "bf16") if device == "cuda" else ("float32",)
    x = crop(EDGE[device], device)
    torch.backends.cudnn.allow_tf32 = False  # for the comparison alone
    for size in SIZES:
        networks = {name: network.to(device) for name, network in pair(size).items()}
        answers, gradients = disagreement(networks, crop(64, device))
        print(f"{size}: answers differ by {answers:.1e}, gradients by {gradients:.1e}", flush=True)
        if max(answers, gradients) > TOLERANCE:
            sys.exit("not the same network: nothing to compare")
        for precision, work in product(precisions, WORKS):
            taken = milliseconds(networks, work, x, precision, rounds)
            peaks = [peak_mib((name, size, work, precision), device) for name in networks]
            ratio = f"{taken['monai'] / taken['synth']:.2f}"
            row = [f"{SIZES[size]} {work}, {precision}"]
            row += [f"{taken[name]:,.0f}" for name in networks]
            rows.append([*row, ratio, *[f"{peak:,.0f}" for peak in peaks]])
    return rows


def policy_rows(rounds: int, device: str) -> list[list[str]]:
    """What recomputing costs and saves, for B."""
    rows = [["B step, checkpointing", "ms", "MiB"]]
    precision = "bf16" if device == "cuda" else "float32"
    for policy in ("none", "expansion", "block"):
        if device == "cpu" and policy == "expansion":
            continue  # the kernels for CPUs do so anyway
        network = build(Config(network="mednext_b", checkpointing=policy)).to(device)
        x = crop(EDGE[device], device)
        taken = milliseconds({policy: network}, "step", x, precision, rounds)[policy]
        peak = peak_mib((policy, "mednext_b", "step", precision), device)
        rows.append([policy, f"{taken:,.0f}", f"{peak:,.0f}"])
    return rows


def scan_rows(device: str) -> list[list[str]]:
    """A whole brain at 1 mm in the windows of the preset `small`."""
    rows = [["brain of " + "×".join(map(str, BRAIN)), "windows", "s", "MiB"]]
    steps = [n // 2 for n in PRESETS["small"].patch]
    count = len(dense_patch_slices(BRAIN, PRESETS["small"].patch, steps))
    text = _fresh(("scan", "mednext_s", "scan", "float32"), device).split()
    return [*rows, ["mednext_s, overlap 0.5", str(count), f"{float(text[1]):,.1f}", text[0]]]


def scan(device: str) -> float:
    """Seconds to find the probabilities of a whole brain."""
    config = PRESETS["small"]
    model = build(config).to(device).eval()
    image = torch.randn(CONTRASTS, *BRAIN)

    def run() -> None:
        probabilities(model, image, config, device=device)

    return seconds(run, device)


def peak_mib(configuration: tuple[str, str, str, str], device: str) -> float:
    """Run one configuration twice in a fresh process and read its high-water mark."""
    return float(_fresh(configuration, device).split()[0])


def _fresh(configuration: tuple[str, str, str, str], device: str) -> str:
    command = [sys.executable, "-m", "benchmarks.segmentation", "--device", device]
    command += ["--peak-of", *configuration]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def print_peak(name: str, size: str, work: str, precision: str, device: str) -> None:
    """Print MiB, and for a scan its seconds."""
    spent = []
    if work == "scan":
        spent = [scan(device)]
    else:
        baseline = monai_net(size)  # MONAI's import counts for either
        policy = name if name in ("none", "expansion", "block") else "none"
        config = Config(network=size, checkpointing=policy)  # ty: ignore[invalid-argument-type]
        network = (baseline if name == "monai" else build(config)).to(device)
        del baseline
        run = work_of(network, work, crop(EDGE[device], device), precision)
        run(), run()
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20, *spent)
        return
    # Not ru_maxrss: that one starts at the size of the process this one was forked from.
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found
    print(round(int(found[1]) / 1024), *spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="one round in place of five, no scan")
    parser.add_argument("--peak-of", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = found if arguments.device == "auto" else arguments.device
    if arguments.peak_of:
        print_peak(*arguments.peak_of, device=device)
        return
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"
    print(f"{where}, torch {torch.__version__}\n", flush=True)
    rounds = 1 if arguments.quick else 5
    print(f"\n{table(speed_rows(rounds, device))}\n", flush=True)
    print(f"{table(policy_rows(rounds, device))}\n", flush=True)
    if not arguments.quick:
        print(table(scan_rows(device)))


if __name__ == "__main__":
    main()
