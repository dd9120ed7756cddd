"""The registry of families: one `Family` each, which says where its parts are.

Parts are named by strings and imported when they are called, so nothing below the families imports
one, and `--help` needs no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from synth.base.config import did_you_mean
from synth.base.errors import SynthError

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
Weights = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Lazy(Generic[T]):
    """An object that is imported when it is asked for."""

    path: str
    """module:name"""

    def load(self) -> T:
        """Import the module and return the object."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family of models offers to the rest of the package."""

    name: str
    about: str
    config: Lazy[type]
    """The configuration, a frozen dataclass."""
    presets: Lazy[Mapping[str, Any]]
    """Configurations by name."""
    training: Lazy[Mapping[str, Any]]
    """The TrainConfig of each preset."""
    build: Lazy[Callable[[Any], nn.Module]]
    """config → network, with initial weights."""
    assemble: Lazy[Callable[..., tuple[Any, Any, Any]]]
    """(config, training cases, held-out cases, cache=folder) → (recipe, items, validation items)"""
    recognise: Lazy[Callable[[Weights], bool]] | None = None
    """Whether a public project's weights are of this family."""
    convert: Lazy[Callable[..., tuple[Any, dict[str, Tensor]]]] | None = None
    """(weights, file name, **overrides) → (config, weights under our names)"""
    translate: Lazy[Callable[[Mapping[str, Any]], dict[str, Any]]] | None = None
    """Settings in an earlier project's words → settings."""
    start_from: Lazy[Callable[[Mapping[str, Any]], tuple[str, Any] | None]] | None = None
    """Settings → (preset, config) of the checkpoint that training starts from; None: the preset."""
    draws_its_data: Lazy[Callable[[Any], bool]] | None = None
    """config → whether training makes its own data and needs no cases"""
    fit_to_data: Lazy[Callable[..., Any]] | None = None
    """(config, cases, cache=folder) → config with what it leaves to the data"""
    merge_adapter: Lazy[Callable[..., Any]] | None = None
    """(adapter file, device=…) → the base's Checkpoint with the adapter in it"""
    publish_adapter: Lazy[Callable[..., Path]] | None = None
    """(run, folder, base=…) → the folder with a copy of the adapter"""
    prepare: Lazy[Callable[[Sequence[Any], Any], tuple[Tensor, Any]]] | None = None
    """(volumes, config) → (network input, the way back to the file's grid)"""
    predict: Lazy[Callable[..., Tensor]] | None = None
    """(network, input, config, device=…) → probabilities of the regions"""


FAMILIES: dict[str, Family] = {
    "label_gan": Family(
        name="label_gan",
        about="alpha-GAN that draws tumour labels and masks of healthy tissue",
        config=Lazy("label_gan.config:Config"),
        presets=Lazy("label_gan.config:PRESETS"),
        training=Lazy("label_gan.config:TRAINING"),
        build=Lazy("label_gan.network:build"),
        assemble=Lazy("label_gan.recipe:assemble"),
        recognise=Lazy("label_gan.legacy:recognise"),
        convert=Lazy("label_gan.legacy:convert"),
    ),
    "wdm3d": Family(
        name="wdm3d",
        about="3-D wavelet diffusion that inpaints healthy tissue",
        config=Lazy("wdm3d.config:Config"),
        presets=Lazy("wdm3d.config:PRESETS"),
        training=Lazy("wdm3d.config:TRAINING"),
        build=Lazy("wdm3d.network:build"),
        assemble=Lazy("wdm3d.recipe:assemble"),
        recognise=Lazy("wdm3d.legacy:recognise"),
        convert=Lazy("wdm3d.legacy:convert"),
        translate=Lazy("wdm3d.legacy:translate"),
        draws_its_data=Lazy("wdm3d.config:draws_its_data"),
    ),
    "ddpm_lora": Family(
        name="ddpm_lora",
        about="diffusion from a mask to four contrasts, with LoRA fine-tuning to a new site",
        config=Lazy("ddpm_lora.config:Config"),
        presets=Lazy("ddpm_lora.config:PRESETS"),
        training=Lazy("ddpm_lora.config:TRAINING"),
        build=Lazy("ddpm_lora.network:build"),
        assemble=Lazy("ddpm_lora.assemble:assemble"),
        recognise=Lazy("ddpm_lora.legacy:recognise"),
        convert=Lazy("ddpm_lora.legacy:convert"),
        start_from=Lazy("ddpm_lora.config:start_from"),
        merge_adapter=Lazy("ddpm_lora.lora.merging:load"),
        publish_adapter=Lazy("ddpm_lora.lora.adapters:publish"),
    ),
    "segmentation": Family(
        name="segmentation",
        about="MedNeXt and its peers: the judge of whether synthetic data help",
        config=Lazy("segmentation.config:Config"),
        presets=Lazy("segmentation.config:PRESETS"),
        training=Lazy("segmentation.config:TRAINING"),
        build=Lazy("segmentation.network:build"),
        assemble=Lazy("segmentation.recipe:assemble"),
        recognise=Lazy("segmentation.legacy:recognise"),
        convert=Lazy("segmentation.legacy:convert"),
        start_from=Lazy("segmentation.config:start_from"),
        fit_to_data=Lazy("segmentation.recipe:fit_to_data"),
        prepare=Lazy("segmentation.data:prepare_scans"),
        predict=Lazy("segmentation.predict:probabilities"),
    ),
}


def get(name: str) -> Family:
    """Return the family of that name."""
    if name not in FAMILIES:
        raise SynthError(f"unknown family '{name}'", hint=did_you_mean(str(name), FAMILIES))
    return FAMILIES[name]
