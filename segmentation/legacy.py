"""Reads MedNeXt weights by the official names and by MONAI's.

Both save bare state dicts (or nnU-Net's and Lightning's wrappings, which
`synth.checkpoints.convert` takes off). Size, width, kernel and deep supervision follow from the
shapes. Outputs are taken for WT, TC, ET and inputs for t1n, t1c, t2w, t2f: a state dict does not
say.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from segmentation.config import Config
from segmentation.networks.mednext import LEVELS, SIZES
from synth.base.errors import SynthError

log = logging.getLogger(__name__)

FIRST = ("enc_block_0.0.conv1.weight", "enc_stages.0.0.conv1.weight")  # official, MONAI
LAYERS = {
    "conv1": "depthwise", "conv2": "expand", "conv3": "compress", "norm": "norm",
    "res_conv": "shortcut",
}  # fmt: skip
# theirs → ours, whether theirs counts from the output (0 is the finest) where ours does not
STAGES = {
    r"enc_(?:block_|stages\.)(\d)": ("encoder", False),
    r"down_(?:blocks\.)?(\d)": ("down", False),
    r"(?:up_blocks\.)(\d)": ("up", False),
    r"up_(\d)": ("up", True),
    r"(?:dec_stages\.)(\d)": ("decoder", False),
    r"dec_block_(\d)": ("decoder", True),
}
HEAD = re.compile(r"(?:out_(\d)|out_blocks\.(\d))\.conv_out\.(weight|bias)")
IGNORED = {"dummy_tensor"}  # the official network's way to checkpoint


def recognise(weights: Mapping[str, Tensor]) -> bool:
    """Whether this is a MedNeXt in three dimensions."""
    return "stem.weight" in weights and any(
        first in weights and weights[first].ndim == 5 for first in FIRST
    )


def our_name(theirs: str) -> str:
    """Return our name of a tensor; an unknown name comes back as it is."""
    if match := HEAD.fullmatch(theirs):
        place, place_from_coarsest, kind = match.groups()
        return f"heads.{LEVELS - int(place_from_coarsest) if place is None else place}.{kind}"
    *place, layer, kind = theirs.split(".")
    layer = LAYERS.get(layer, layer)
    stage = ".".join(place)
    for pattern, (ours, backwards) in STAGES.items():
        if match := re.match(pattern, stage):
            index = LEVELS - 1 - int(match[1]) if backwards else int(match[1])
            return f"{ours}.{index}{stage[match.end() :]}.{layer}.{kind}"
    return ".".join([*place, layer, kind])


def convert(
    weights: Mapping[str, Tensor], source_name: str, **overrides: Any
) -> tuple[Config, dict[str, Tensor]]:
    """Infer the configuration from the shapes; `overrides` are fields of `Config`."""
    ours = {our_name(key): value for key, value in weights.items() if key not in IGNORED}
    for key, value in ours.items():
        if re.fullmatch(r"heads\.\d\.weight", key):  # a transposed convolution's: (in, out, …)
            ours[key] = value.transpose(0, 1).contiguous()
    config = Config(
        network=_size(ours, source_name),  # ty: ignore[invalid-argument-type]
        kernel=int(ours["encoder.0.0.depthwise.weight"].shape[-1]),
        width=len(ours["stem.weight"]),
        deep_supervision="heads.1.weight" in ours,
    )
    widened = _widen_down_blocks(ours, SIZES[config.network].expansion)
    if widened:
        log.info(
            "%s is MONAI's variant: down blocks %s are narrower than the paper's; they are widened "
            "so that the network answers as before",
            source_name,
            ", ".join(map(str, widened)),
        )
    return replace(config, **overrides), ours


def _size(ours: Mapping[str, Tensor], source_name: str) -> str:
    """Return the network whose blocks and expansions these are."""
    stages = [f"encoder.{i}" for i in range(LEVELS)] + ["bottleneck"]
    stages += [f"decoder.{i}" for i in range(LEVELS)]
    pattern = re.compile(r"(.+)\.(\d+)\.expand\.weight")
    inside = [match for key in ours if (match := pattern.fullmatch(key))]
    counts = tuple(sum(match[1] == stage for match in inside) for stage in stages)
    shapes = [ours.get(f"{stage}.0.expand.weight", torch.empty(0, 1)).shape for stage in stages]
    expansion = tuple(int(shape[0] // shape[1]) for shape in shapes)
    for name, size in SIZES.items():
        if (size.blocks, size.expansion) == (counts, expansion):
            return name
    raise SynthError(
        f"{source_name}: a MedNeXt of {counts} blocks, {expansion} times wider inside, "
        "is not one we know",
        hint="known are the official S, B, M and L, at any first width",
    )


def _widen_down_blocks(ours: dict[str, Tensor], expansion: tuple[int, ...]) -> list[int]:
    """Give MONAI's down blocks the official widths: new inner channels, which nothing uses yet.

    They repeat what the old ones look at, and enter the sum with weight zero, from where training
    can raise them.
    """
    widened = []
    for level in range(LEVELS):
        names = [f"down.{level}.{n}" for n in ("expand.weight", "expand.bias", "compress.weight")]
        if not ours.keys() >= {*names}:
            continue
        rows, offsets, columns = (ours[name] for name in names)
        missing = expansion[level + 1] * rows.shape[1] - len(rows)
        if missing > 0:
            again = torch.arange(missing) % len(rows)
            silent = columns.new_zeros(len(columns), missing, *columns.shape[2:])
            ours[names[0]] = torch.cat([rows, rows[again]])
            ours[names[1]] = torch.cat([offsets, offsets[again]])
            ours[names[2]] = torch.cat([columns, silent], dim=1)
            widened.append(level)
    return widened
