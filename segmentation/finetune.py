"""Fine-tuning: which parts are loaded, reset, or frozen."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from segmentation.config import Config
from segmentation.network import build
from segmentation.networks.segmenter import Segmenter
from segmentation.networks.upkern import grown
from synth.base.config import did_you_mean
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint

SAME = ("network", "width", "deep_supervision")
"""Settings that a network shares with the one it begins from; its kernel may grow."""
ALONG = ("enc", "bot", "dec", "hea")  # how parts begin, from the input to the output


def begin(config: Config) -> Segmenter:
    """Build a network; with `init_from`, load it, renew what is reset and freeze what is frozen."""
    model = build(config)
    if not config.init_from:
        if config.freeze or config.reset:
            raise SynthError("freeze and reset without init_from", hint="--init-from CHECKPOINT")
        return model
    renewed, frozen = chosen(model, config.reset), chosen(model, config.freeze)
    if both := sorted(renewed & frozen):
        raise SynthError(
            f"'{both[0]}' is both frozen and reset", hint="a new part has to be trained"
        )
    own, loaded = model.state_dict(), weights(config)
    kept = {name: own[name] for name in renewed}
    checkpoint.load_strictly(model, loaded | kept, name=config.init_from)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(p.requires_grad for p in model.parameters()):
        raise SynthError("every part is frozen", hint="leave the heads, at least")
    return model


def weights(config: Config) -> dict[str, Tensor]:
    """Return the weights of `init_from`, or say why they do not fit this configuration."""
    base = checkpoint.load(config.init_from)
    if base.family != "segmentation":
        raise SynthError(
            f"{config.init_from} is a {base.family} checkpoint", hint="a segmentation one is wanted"
        )
    for name in SAME:
        mine, theirs = getattr(config, name), getattr(base.config, name)
        if mine != theirs:
            raise SynthError(
                f"{name} = {mine!r}, but {config.init_from} has {theirs!r}",
                hint="leave that flag out: fine-tuning keeps the network",
            )
    return grown(base.model.state_dict(), config.kernel, config.upkern)


def chosen(model: Segmenter, parts: Iterable[str]) -> set[str]:
    """Return the names of the parameters of some parts."""
    known = model.parts()
    for part in parts:
        if part not in known:
            raise SynthError(f"no part '{part}' in this network", hint=did_you_mean(part, known))
    return {name for part in parts for name in known[part]}


def table(model: Segmenter, config: Config) -> str:
    """Return what trains, a row for each level: part, parameters, trained, frozen or reset."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    renewed, frozen = chosen(model, config.reset), chosen(model, config.freeze)
    parts, rows = model.parts(), []
    levels = [p for p in parts if p not in ("encoder", "decoder") and parts[p]]
    for part in sorted(levels, key=lambda p: (ALONG.index(p[:3]), p)):
        names = parts[part]
        what = "frozen" if frozen >= set(names) else "reset" if renewed >= set(names) else "trained"
        rows.append((part, sum(sizes[n] for n in names), what))
    trained = sum(size for _, size, what in rows if what != "frozen")
    rows.append(("all", sum(sizes.values()), f"{trained:,} trained"))
    return "\n".join(f"{part:<12}{size:>14,}  {what}" for part, size, what in rows)
