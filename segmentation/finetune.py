"""Fine-tuning: the start from other weights; which parts are loaded, reset, or frozen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from segmentation.config import Config, require_segmentation
from segmentation.network import build
from segmentation.networks.segmenter import Segmenter
from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint

SAME = ("network", "width", "deep_supervision")
"""Settings that a network shares with the one it begins from; its kernel may grow."""
ORDER = ("enc", "bot", "dec", "hea")  # how parts begin, from the input to the output


def start_network(config: Config) -> Segmenter:
    """Build a network; with `init_from`, load it, reset what is to be reset, freeze the frozen."""
    model = build(config)
    if not config.init_from:
        if config.freeze or config.reset:
            raise SynthError("freeze and reset without init_from", hint="--init-from CHECKPOINT")
        return model
    reset, frozen = select_parameters(model, config.reset), select_parameters(model, config.freeze)
    if both := sorted(reset & frozen):
        raise SynthError(
            f"'{both[0]}' is both frozen and reset", hint="a new part has to be trained"
        )
    own, loaded = model.state_dict(), _load_weights(config)
    fresh = {name: own[name] for name in reset}
    checkpoint.load_strictly(model, loaded | fresh, name=config.init_from)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(p.requires_grad for p in model.parameters()):
        raise SynthError("every part is frozen", hint="leave the heads, at least")
    return model


def select_parameters(model: Segmenter, words: Iterable[str]) -> set[str]:
    """Return the names of parameters: of parts, or those that match a regular expression."""
    parts, names = model.parts(), [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for word in words:
        try:
            matches = parts.get(word) or [name for name in names if re.search(word, name)]
        except re.error as error:
            raise SynthError(f"freeze or reset '{word}': {error}", hint="name a part") from error
        if not matches:
            raise SynthError(f"no part '{word}' in this network", hint=did_you_mean(word, parts))
        found.update(matches)
    return found


def parts_table(model: Segmenter, config: Config) -> str:
    """Return a row for each part: its parameters, and whether they are trained, frozen or reset."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    reset, frozen = select_parameters(model, config.reset), select_parameters(model, config.freeze)
    parts, rows = model.parts(), []
    levels = {name: model.part_of(name) for name in sizes}
    for part in sorted(set(levels.values()), key=lambda p: (ORDER.index(p[:3]), p)):
        names = parts[part]
        what = "frozen" if frozen >= {*names} else "reset" if reset >= {*names} else "trained"
        rows.append((part, sum(sizes[n] for n in names), what))
    trained = sum(size for name, size in sizes.items() if name not in frozen)
    rows.append(("all", sum(sizes.values()), f"{trained:,} trained"))
    return "\n".join(f"{part:<12}{size:>14,}  {what}" for part, size, what in rows)


def grow_kernels(
    weights: Mapping[str, Tensor], kernel: int, method: Literal["trilinear", "zeros"] = "trilinear"
) -> dict[str, Tensor]:
    """Return a MedNeXt's weights with depthwise kernels of another edge (UpKern, Roy et al. 2023).

    trilinear: stretched, as published: a start, not the same function (a sum of 27 taps becomes one
    of 125, which the norm that follows scales back). zeros: padded; answers exactly as before.
    """
    grown = dict(weights)
    for name, weight in weights.items():
        if not name.endswith("depthwise.weight"):
            continue
        margin, odd = divmod(kernel - weight.shape[-1], 2)
        if margin < 0 or odd:
            raise SynthError(
                f"{name}: a kernel of {weight.shape[-1]} cannot grow to {kernel}",
                hint="UpKern goes from kernel 3 to kernel 5",
            )
        if method == "zeros" or margin == 0:
            grown[name] = F.pad(weight, (margin,) * 6)
        else:
            grown[name] = F.interpolate(weight, size=(kernel,) * 3, mode="trilinear")
    return grown


def _load_weights(config: Config) -> dict[str, Tensor]:
    """Return the weights of `init_from`, or say why they do not fit this configuration."""
    base = checkpoint.load(config.init_from)
    require_segmentation(config.init_from, base.family)
    for name in SAME:
        mine, theirs = getattr(config, name), getattr(base.config, name)
        if mine != theirs:
            raise SynthError(
                f"{name} = {mine!r}, but {config.init_from} has {theirs!r}",
                hint="leave that flag out: fine-tuning keeps the network",
            )
    return grow_kernels(base.model.state_dict(), config.kernel, config.upkern)
