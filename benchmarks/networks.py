"""Our networks against those they replace: arithmetic, seconds and memory of a call and a step.

    python -m benchmarks.networks wdm3d|ddpm_lora|segmentation [--device auto|cpu|cuda] [--quick]

- wdm3d: the published U-Net as we have it, against a plain transcription with the same weights.
- ddpm_lora: Med-DDPM in voxels, against the same width on Haar bands.
- segmentation: MedNeXt as we have it, against MONAI's with the same weights. MONAI's B is narrower
  in its down blocks, which `synth convert` widens without a change of the function.

Networks with the same weights must answer alike before they are timed. Both run in turn in one
process, so that the ratios mean something; a step is forward, backward and AdamW. On a CPU one
thread runs and its processor time counts; memory is the largest resident set of a process of its
own, torch and weights included (Linux only). On a GPU the wall clock counts, and memory is what
torch allocated.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_unet import pair
from ddpm_lora import network as ddpm_lora_network
from ddpm_lora.config import PRESETS as DDPM_LORA
from ddpm_lora.config import Config as DdpmLoraConfig
from segmentation import legacy
from segmentation.config import CONTRASTS
from segmentation.config import Config as SegmentationConfig
from segmentation.network import build as build_segmenter
from synth.data.labels import REGIONS
from wdm3d.config import PRESETS, PUBLISHED, Config, SamplerOptions
from wdm3d.network import build

PUBLISHED_CALLS = 5000
REGIONS_A_CASE = 2  # a BraTS case has a healthy and an unhealthy hole
VOLUME = 64  # edge of the timed volume, voxels
GRID = (192, 192, 144)  # Med-DDPM's box
SPACES = {"pixel": DDPM_LORA["meddpm"], "wavelet": DDPM_LORA["brats23"]}
LAYOUTS = ("float32", "bf16", "bf16 channels-last")
WORKS = ("call", "step")
GIB = 2**30
TOLERANCE = {"wdm3d": 1e-5, "segmentation": 1e-4}
"""Relative: float32 sums in another order through some eighty layers."""

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Two rivals, and on what they are timed."""

    rivals: tuple[str, str]
    build: Callable[[str, str], nn.Module]
    """Of a rival and a size."""
    inputs: Callable[[str, str], Inputs]
    sizes: Sequence[str]
    layouts: Sequence[str]


# --- The rivals ---


def wdm3d_inputs(rival: str, size: str) -> Inputs:
    """The published input for a cube of voxels, and a timestep."""
    del rival
    grid = (int(size) // 2,) * 3
    return torch.randn(1, PUBLISHED.unet().in_channels, *grid), torch.full((1,), 500.0)


def space_inputs(config: DdpmLoraConfig, grid: tuple[int, ...], device: str = "cpu") -> Inputs:
    """What one call on a volume takes: state and condition, and a timestep."""
    shape = [n // 2 for n in grid] if config.space == "wavelet" else list(reversed(grid))
    channels = config.state_channels + config.condition_channels
    return torch.randn(1, channels, *shape, device=device), torch.full((1,), 99.0, device=device)


def build_mednext(rival: str, size: str) -> nn.Module:
    """MedNeXt of MONAI, or ours with its weights; `S block` recomputes its blocks."""
    from monai.networks.nets.mednext import create_mednext

    torch.manual_seed(0)
    letter, policy = size[0], size[2:] or "none"
    theirs = create_mednext(
        letter, in_channels=CONTRASTS, out_channels=len(REGIONS), kernel_size=3,
        deep_supervision=True,
    )  # fmt: skip
    if rival == "monai":
        return theirs
    config, weights = legacy.convert(theirs.state_dict(), "monai")
    assert isinstance(config, SegmentationConfig)
    ours = build_segmenter(replace(config, checkpointing=policy))  # ty: ignore[invalid-argument-type]
    ours.load_state_dict(weights)
    return ours


CONTESTS = {
    "wdm3d": Contest(
        rivals=("synth", "plain"),
        build=lambda rival, _: pair(PUBLISHED.unet())[rival],
        inputs=wdm3d_inputs,
        sizes=(str(VOLUME),),
        layouts=LAYOUTS[:2],
    ),
    "ddpm_lora": Contest(
        rivals=("wavelet", "pixel"),
        build=lambda rival, _: ddpm_lora_network.build(replace(SPACES[rival], checkpointing=False)),
        inputs=lambda rival, size: space_inputs(SPACES[rival], (int(size),) * 3),
        sizes=("48", str(VOLUME)),
        layouts=LAYOUTS,
    ),
    "segmentation": Contest(
        rivals=("synth", "monai"),
        build=build_mednext,
        inputs=lambda _, __: (torch.randn(1, CONTRASTS, *(VOLUME,) * 3),),
        sizes=("S", "B", "B block"),
        layouts=LAYOUTS[:1],
    ),
}


# --- Counted ---


@dataclass(frozen=True)
class Setting:
    """A way to inpaint one case."""

    name: str
    config: Config
    calls: int

    @property
    def grid(self) -> int:
        """Edge of the coefficient grid that the network sees."""
        return self.config.crop // 2**self.config.wavelet_levels

    def flops(self) -> int:
        """Return the operations of one call."""
        channels = self.config.bands + self.config.condition_channels
        shape = (1, channels, *(self.grid,) * 3)
        return count_flops(lambda: build(self.config), lambda: (meta(shape), meta((1,))))


def meta(shape: Sequence[int]) -> Tensor:
    """Return a tensor that has a shape and no values."""
    return torch.zeros(*shape, device="meta")


def count_flops(make: Callable[[], nn.Module], inputs: Callable[[], Inputs]) -> int:
    """Return the operations of one call, two for each multiply-add, without computing any."""
    with torch.device("meta"), torch.no_grad():
        network = make()
        with FlopCounterMode(display=False) as counter:
            network(*inputs())
    return counter.get_total_flops()


def settings() -> list[Setting]:
    """The published way, then ours: the mean of one call, and a draw of the default length."""
    ours = [
        Setting(f"{preset}, {estimate}", PRESETS[preset], calls * REGIONS_A_CASE)
        for preset in ("brats23", "fast")
        for estimate, calls in (("mean", 1), ("sample", SamplerOptions().steps))
    ]
    return [Setting("published", PUBLISHED, PUBLISHED_CALLS), *ours]


def case_rows() -> list[list[str]]:
    """Return the arithmetic of inpainting a case, one line a setting."""
    first, *_ = every = settings()
    published = first.flops() * first.calls
    rows = [["setting", "grid", "calls", "TFLOP a call", "PFLOP a case", "ratio"]]
    for setting in every:
        a_call = setting.flops()
        total = a_call * setting.calls
        rows.append([
            setting.name, f"{setting.grid}³", f"{setting.calls}", f"{a_call / 1e12:.3f}",
            f"{total / 1e15:.4f}", f"{published / total:,.0f}",
        ])  # fmt: skip
    return rows


def flops(config: DdpmLoraConfig, grid: tuple[int, ...] = GRID) -> int:
    """Return the operations of one call of a space."""
    return count_flops(
        lambda: ddpm_lora_network.build(config), lambda: space_inputs(config, grid, "meta")
    )


def kept_bytes(run: Callable[[], object], network: nn.Module) -> int:
    """Return the bytes that autograd keeps of `run`, weights apart, each storage once."""
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
    config: DdpmLoraConfig,
    *,
    grid: tuple[int, ...] = GRID,
    blocks: bool = False,
    half: bool = False,
) -> int:
    """Return the bytes kept for the backward pass of one step on one volume."""
    dtype = torch.bfloat16 if half else torch.float32
    with torch.device("meta"):
        network = ddpm_lora_network.build(replace(config, checkpointing=False)).to(dtype)
    x, t = space_inputs(config, grid, "meta")
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
    features = {}
    network.out.register_forward_pre_hook(lambda _, given: features.update(out=given[0]))
    network(x, t)
    for hook in hooks:
        hook.remove()
    head = kept_bytes(lambda: network.out(features["out"].detach().requires_grad_()), network)
    return entering + head + max(costs)


def space_rows() -> list[list[str]]:
    """Return arithmetic and memory of both spaces at Med-DDPM's box."""
    rows = [["at " + "×".join(map(str, GRID)), *SPACES, "ratio"]]

    def add(name: str, measure: Callable[[DdpmLoraConfig], float]) -> None:
        pixel, wavelet = (measure(config) for config in SPACES.values())
        rows.append([name, f"{pixel:.2f}", f"{wavelet:.2f}", f"{pixel / wavelet:.2f}"])

    add("TFLOP a call", lambda c: flops(c) / 1e12)
    for blocks, half in product((False, True), (False, True)):
        name = f"GiB kept, {'bf16' if half else 'float32'}{', block checkpoints' * blocks}"
        keeps = {"blocks": blocks, "half": half}
        add(name, lambda c, keeps=keeps: activation_bytes(c, **keeps) / GIB)
    return rows


# --- Measured ---


def disagreement(networks: Sequence[nn.Module], inputs: Inputs) -> float:
    """Return the largest relative difference (in the norm) of answers and of input gradients."""
    found = []
    for network in networks:
        seen = inputs[0].clone().requires_grad_()
        answers = answers_of(network.train(), (seen, *inputs[1:]))
        found.append([*answers, *torch.autograd.grad(loss_of(answers), seen)])
    pairs = zip(*found, strict=True)
    return max(float(((a - b).norm() / b.norm()).detach()) for a, b in pairs)


def answers_of(network: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return all answers of a network: some give one, some one a scale."""
    answer = network(*inputs)
    return [answer] if isinstance(answer, Tensor) else list(answer)


def loss_of(answers: Sequence[Tensor]) -> Tensor:
    """Return a loss that every answer has a part in."""
    return torch.stack([a.float().square().mean() for a in answers]).sum()


def work_of(
    network: nn.Module, inputs: Inputs, layout: str, work: str, device: str
) -> Callable[[], None]:
    """Return one call or one training step, ready to run; the weights stay as they are."""
    network = network.to(device)
    x, *others = (v.to(device) for v in inputs)
    if layout.endswith("channels-last"):
        for parameter in network.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.to(memory_format=torch.channels_last_3d)
        x = x.to(memory_format=torch.channels_last_3d)

    def autocast() -> AbstractContextManager:
        return torch.autocast(device, dtype=torch.bfloat16, enabled=layout.startswith("bf16"))

    @torch.no_grad()
    def call() -> None:
        with autocast():
            network.eval()(x, *others)

    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)

    def step() -> None:
        with autocast():
            loss = loss_of(answers_of(network.train(), (x, *others)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"call": call, "step": step}[work]


def seconds(run: Callable[[], None], device: str) -> float:
    """Return the processor time of one run on a CPU, the wall time on a GPU."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mib(words: Sequence[str], device: str) -> float:
    """Run one work twice in a fresh process and read its high-water mark."""
    command = [sys.executable, "-m", "benchmarks.networks", words[0], "--device", device]
    command += ["--peak-of", *words[1:]]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(contest: Contest, words: Sequence[str], device: str) -> None:
    """Print the MiB of a rival, a size, a layout and a work."""
    rival, size, layout, work = words
    run = work_of(contest.build(rival, size), contest.inputs(rival, size), layout, work, device)
    run(), run()
    if device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
        return
    # Not ru_maxrss: that one starts at the size of the process this one was forked from.
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    print(int(found[1]) / 1024)


def speed_rows(family: str, rounds: int, device: str) -> list[list[str]]:
    """Return the medians of both rivals, in turn, and their memory."""
    contest = CONTESTS[family]
    ours, theirs = contest.rivals
    rows = [[family, f"{ours} ms", f"{theirs} ms", "ratio", f"{ours} MiB", f"{theirs} MiB"]]
    for size in contest.sizes:
        networks = {name: contest.build(name, size).to(device) for name in contest.rivals}
        inputs = {name: contest.inputs(name, size) for name in contest.rivals}
        if family in TOLERANCE:
            require_same(list(networks.values()), inputs[ours], TOLERANCE[family], device)
        for layout, work in product(contest.layouts, WORKS):
            taken: dict[str, list[float]] = {name: [] for name in contest.rivals}
            runs = {n: work_of(networks[n], inputs[n], layout, work, device) for n in networks}
            for number in range(rounds + 1):
                for name, run in runs.items():
                    spent = 1000 * seconds(run, device)
                    taken[name] += [spent] * (number > 0)  # the first round warms up
            a, b = (statistics.median(taken[name]) for name in contest.rivals)
            peaks = [peak_mib((family, n, size, layout, work), device) for n in contest.rivals]
            rows.append([f"{size} {work}, {layout}", f"{a:,.1f}", f"{b:,.1f}", f"{b / a:.2f}",
                         *(f"{p:,.0f}" for p in peaks)])  # fmt: skip
    return rows


def require_same(networks: Sequence[nn.Module], inputs: Inputs, within: float, device: str) -> None:
    """Stop unless both answer alike."""
    torch.backends.cudnn.allow_tf32 = False  # for the comparison alone
    apart = disagreement(networks, tuple(v.to(device) for v in inputs))
    torch.backends.cudnn.allow_tf32 = True
    print(f"same weights, largest relative difference: {apart:.1e}", flush=True)
    if apart > within:
        sys.exit("not the same network: nothing to compare")


def table(rows: list[list[str]]) -> str:
    """Align columns: the first to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures in rows:
        cells = [f"{f:>{w}}" for f, w in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *cells]))
    return "\n".join(lines)


def main() -> None:
    """Print what is counted, and what is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=CONTESTS)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--quick", action="store_true", help="one round in place of five")
    parser.add_argument("--peak-of", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = found if given.device == "auto" else given.device
    if given.peak_of:
        print_peak(CONTESTS[given.family], given.peak_of, device)
        return
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"
    print(f"{where}, torch {torch.__version__}\n")
    if given.family == "wdm3d":
        print(table(case_rows()), "\n")
    if given.family == "ddpm_lora":
        print(table(space_rows()), "\n")
    print(table(speed_rows(given.family, 1 if given.quick else 5, device)))


if __name__ == "__main__":
    main()
