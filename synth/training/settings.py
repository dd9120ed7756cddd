"""Settings of a training: a preset of the family, and the values that are given instead."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from synth.base import families
from synth.base.config import did_you_mean, from_dict, to_dict
from synth.base.errors import SynthError
from synth.training.config import TrainConfig

NOT_ON_THE_CARD = ("max_seconds", "workers")


def preset_of(family: str, preset: str) -> Any:
    """Return a family's preset."""
    presets = families.get(family).presets.load()
    if preset not in presets:
        raise SynthError(f"{family} has no preset '{preset}'", hint=did_you_mean(preset, presets))
    return presets[preset]


def override(config: Any, given: Mapping[str, Any]) -> Any:
    """Return a configuration with the given values of its fields; None is not given."""
    own = to_dict(config)
    return from_dict(
        type(config), own | {k: v for k, v in given.items() if k in own and v is not None}
    )


def resolve(family: str, preset: str, settings: Mapping[str, Any]) -> tuple[str, Any, TrainConfig]:
    """Return the preset, the family's configuration and the loop's, with the settings in them.

    Fine-tuning starts from its base's preset and configuration.
    """
    given = {k: v for k, v in settings.items() if v is not None}
    parts = families.get(family)
    if parts.translate is not None:
        given = parts.translate.load()(given)
    config = preset_of(family, preset)
    if parts.start_from is not None:
        preset, config = parts.start_from.load()(given) or (preset, config)
    loop = parts.training.load().get(preset, TrainConfig())
    return preset, override(config, given), override(loop, given)


def training_command(words: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Return the command for the model card: what was asked for, without anybody's folders.

    Args:
        words: the verb and its own options.
        settings: fields of the configurations; None is not given.
    """
    words = list(words)
    for name, value in settings.items():
        if value is None or name in NOT_ON_THE_CARD:
            continue
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            texts = [str(v) for v in (value if isinstance(value, list | tuple) else [value])]
            words.append(shlex.join([f"--{flag}", *(Path(text).name for text in texts)]))
    return " ".join(words)
