"""Training of an adapter beside the frozen base, with peft.

The loop's model is the adapter alone. It shares its parameters with the adapted network, so that
averaging, resuming and saving cost what the adapter costs, and the base stays as it is to the bit.
In wavelet space the adapter also carries its own site's statistics: the mean brain and the spread
of each band. What is diffused is then of unit spread again, as the base knows it, and low-rank
matrices need not learn how bright or how noisy the scanner is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ddpm_lora.config import Config, adapted_layers
from ddpm_lora.data import SynthesisData
from ddpm_lora.lora import adapters
from ddpm_lora.recipe import Recipe, measure
from synth.base.errors import SynthError
from synth.checkpoints import checkpoint
from synth.training.recipe import Writer

NAME = "default"  # peft's name of the only adapter
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv3d)
TRAINING_ONLY = frozenset(
    {"lr", "weight_decay", "norm", "balance", "image_weight", "label_drop", "brain_drop"}
    | {"augment", "checkpointing", "lora_from", "lora_preset", "lora_rank", "crop"}
    | {"tissue_drop", "paint_share"}
)
"""Settings in which a fine-tuning may differ from its base."""


class FineTuning(Recipe):
    """The same losses; the model is the adapter, and the base is loaded, frozen and checked.

    `items` are the site's cases; without them the base's statistics stay.
    """

    def __init__(
        self,
        config: Config,
        facts: Mapping[str, Any] | None = None,
        items: SynthesisData | None = None,
    ) -> None:
        base = checkpoint.load(config.lora_from)
        for name in vars(config).keys() - TRAINING_ONLY:
            mine, theirs = getattr(config, name), getattr(base.config, name)
            if mine != theirs:
                raise SynthError(
                    f"{name} = {mine!r}, but the base has {theirs!r}",
                    hint="an adapter keeps its base's network and space: leave that flag out",
                )
        self.pointer = adapters.pointer_to(base)  # before peft renames its layers
        network = base.model
        self.site: dict[str, Tensor] = {}
        if config.space == "wavelet" and items is not None:
            measure(network, items)
            self.site = {name: value.clone() for name, value in network.named_buffers()}
        network.config = config.unet()  # ty: ignore[invalid-assignment]
        adapted, self.settings = attach(network, config)
        super().__init__(config, adapted, facts)
        self.model = only_trainable(adapted)

    def writer(self, describe: Mapping[str, Any]) -> Writer:
        """Return what writes the adapter."""

        def publish(folder: Path, model: nn.Module, facts: dict[str, Any]) -> None:
            said = {**describe, **facts, **self.facts}
            # Where the base is, the pointer says, relative and checked.
            said["config"] = replace(self.config, lora_from=Path(self.config.lora_from).name)
            adapters.write(
                folder,
                tensors={published_name(k): v for k, v in model.state_dict().items()} | self.site,
                settings=self.settings,
                base=self.pointer,
                **said,
            )

        return publish


def attach(network: nn.Module, config: Config) -> tuple[nn.Module, dict[str, Any]]:
    """Wrap a network in peft's LoRA; return it and the settings of adapter_config.json.

    Everything but the adapter is frozen. B starts at zero: the first answer is the base's.
    """
    from peft import LoraConfig, get_peft_model

    blocks = len(network.get_submodule("output_blocks"))  # ty: ignore[invalid-argument-type]
    pattern, whole = adapted_layers(config.lora_preset, blocks)
    layers = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, ADAPTABLE) and re.fullmatch(pattern, name)
    ]
    assert layers, f"no layer of the network matches {pattern}"
    # Names, not the pattern: where no shortcut is needed it is an Identity, which peft refuses.
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_rank,
        target_modules="|".join(map(re.escape, layers)),
        modules_to_save=list(whole) or None,
    )
    wrapped = get_peft_model(network, settings, adapter_name=NAME)
    kept = {k: _plain(v) for k, v in settings.to_dict().items()}
    return wrapped, kept | {"inference_mode": True}


def only_trainable(network: nn.Module) -> nn.Module:
    """Return a module that holds the trainable parameters of another: the same, by their names."""
    root = nn.Module()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        *path, leaf = name.split(".")
        node = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, nn.Module())
            node = node.get_submodule(part)
        node.register_parameter(leaf, parameter)
    return root


def published_name(name: str) -> str:
    """Return a parameter's name in peft's files, the prefix taken off."""
    name = name.removeprefix(adapters.PREFIX).replace(f".modules_to_save.{NAME}", "")
    return name.replace(f".{NAME}.weight", ".weight")


def _plain(value: Any) -> Any:
    """Return a JSON value: peft's settings hold enums and sets."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return getattr(value, "value", value)
