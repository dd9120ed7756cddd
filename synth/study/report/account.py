"""The sections on methods and cost: settings, hashes, seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from synth.base.files import file_hash
from synth.study.report.html import UNKNOWN, Html, Source, joined, more, number, table, tag
from synth.study.report.section import Section
from synth.study.report.study import Study, digest, inputs, settings
from synth.study.stages import DEMO_WEIGHTS

# part → what was done there, for the paragraph
DONE = {
    "masks": "Masks were made",
    "masks_eval": "Generated masks were judged",
    "tumours": "Tumours were placed in brains",
    "inpainted": "Healthy tissue was painted",
    "inpainted_draws": "Some of it was drawn several times, to see how draws differ,",
    "inpainted_eval": "Painted tissue was judged",
    "synthetic": "Four contrasts were drawn for label maps",
    "synthetic_eval": "Synthetic scans were judged",
    "comparison": "Segmentation models were trained and compared",
}
# the same, as a paper would say it; what was made, then how it was judged
PAPER = {
    "masks": "Tumours and healthy masks ({count}) were drawn by a 3-D generative adversarial "
    "network of ordered signed distances.",
    "tumours": "Tumours ({count}) were placed in brains of the cohort of {cases} cases.",
    "inpainted": "Healthy tissue was inpainted in {count} cases by 3-D wavelet diffusion.",
    "synthetic": "Scans of four contrasts were drawn for label maps ({count}) by a 3-D diffusion "
    "model on Haar wavelet bands, adapted to the site by low-rank matrices (LoRA).",
    "masks_eval": "Masks were compared with unseen real ones by the maximum mean discrepancy of "
    "shape features.",
    "inpainted_eval": "Inpainting was scored where the truth was known, beside classical fills.",
    "synthetic_eval": "Scans were compared with unseen ones by a cross-fitted two-sample "
    "classifier and the kernel inception distance.",
}
OF_COMPARISON = ("arms", "preset", "share", "folds", "seeds", "inner_share", "conventions", "plan",
                 "config", "loop", "data")  # fmt: skip
WEIGHTS = "model.safetensors"
SHORT = 12
MOST_FILES = 200
PLACES = ("pred", "truth", "train", "split", "out")
"""Arguments that are paths: not in the paragraph, but in the tables below it."""
NESTED = ("config", "loop", "plan")
PEAK = "peak_memory_mb"


def methods(study: Study) -> Section:
    """Say what was done, with every setting."""
    manifests = {part: found for part in DONE if (found := manifests_of(study, part))}
    sentences: list[str] = [
        joined(_unfinished(study, part), _sentence(part, found))
        for part, found in manifests.items()
    ]
    sentences += [_model_sentence(source) for source in study.models]
    sentences += _weights_sentence(study, [s for found in manifests.values() for s in found])
    in_words = tag("p", *sentences, _versions_sentence([*manifests.values(), study.models]))
    parts = [
        tag("p", _paper(study, manifests)),
        more("Every command in words, with its versions", in_words),
    ]
    if not sentences:
        parts = [tag("p", "Nothing here has a manifest yet.", class_="missing")]
    parts += [
        more(f"{DONE[part].rstrip(',')}: every setting and hash", *_all_settings(found))
        for part, found in manifests.items()
    ]
    parts += [
        more(f"Model {s.name}", table(_rows(s.values), f"model {s.name}", words=True))
        for s in study.models
    ]
    return Section(
        id="methods", title="Methods",
        lead="Written from the manifests that every command leaves beside what it makes. The "
        "paragraph may go into a paper; settings and hashes are folded below it.",
        body=joined(*parts),
    )  # fmt: skip


def _paper(study: Study, manifests: Mapping[str, Sequence[Source]]) -> str:
    """Say what was done as a paper would, without hashes."""
    said = [
        words.format(count=len(study.records(part)), cases=len(study.cases("cohort")))
        for part, words in PAPER.items()
        if part in manifests
    ]
    if (found := study.summary("comparison")) is not None:
        values = found.values
        steps, seeds = values.get("loop", {}).get("steps", UNKNOWN), values.get("seeds", [])
        said.append(
            f"A segmentation network ({values.get('preset', UNKNOWN)} preset, {steps} steps, "
            f"{len(seeds)} seed{'s' * (len(seeds) != 1)}) was trained on the same real cases "
            f"with and without synthetic ones, which took {values.get('share', 0):.0%} of the "
            "slots; its checkpoint was chosen on an inner part of the training patients. The "
            f"endpoint declared beforehand was {values.get('primary', UNKNOWN)}; "
            "differences were tested over patients (Wilcoxon), their 95 % intervals include luck "
            "in training, and other endpoints were adjusted by Holm's method."
        )
    return " ".join(said)


def cost(study: Study) -> Section:
    """Say what each stage took."""
    parts = []
    if study.stages:
        parts += [
            tag("h3", "Stages"),
            table(_stage_rows(study), "stages and what they took", words=True),
        ]
    else:
        parts.append(
            tag("p", "No study.json lists the stages of this study; run.sh writes it.",
                class_="missing")
        )  # fmt: skip
    rows = [["part", "items", "seconds", "seconds each", "network calls", "peak memory, MB"]]
    rows += [_cost_row(part, found) for part in DONE if (found := manifests_of(study, part))]
    if len(rows) > 1:
        parts += [
            tag("h3", "From the manifests"),
            table(rows, "seconds and network calls of each part"),
            tag("p", f"{UNKNOWN}: not recorded there.", class_="note"),
        ]
    return Section(
        id="cost", title="Cost", lead="Wall time on the machine that ran it.", body=joined(*parts)
    )


def manifests_of(study: Study, part: str) -> list[Source]:
    """Return the manifests of a part: one a case, or that of the evaluation."""
    found = study.records(part)
    summary = study.summary(part)
    if part == "comparison" and summary is None:
        return []  # the records are of segmentations of single arms: nothing is compared yet
    if summary is not None and "arguments" not in summary.values:
        values = summary.values
        own = {key: values[key] for key in OF_COMPARISON if key in values}
        summary = Source(name=summary.name, values={**values, "arguments": own, "verb": "compare"})
    return [*found, *([summary] if summary else [])]


def _sentence(part: str, found: Sequence[Source]) -> str:
    verbs = sorted({source.values.get("verb", part) for source in found})
    said = [
        _describe_setting(k, v) for k, v in settings(found).items() if k not in (*PLACES, *NESTED)
    ]
    said = [words for words in said if words]
    hashes = inputs(found)
    count = f"{len(hashes)} file{'s' * (len(hashes) != 1)}"
    of = f", from {count} of digest {digest(hashes)[:SHORT]}" if hashes else ""
    return joined(
        f"{DONE[part]} by ", tag("code", f"synth {' / '.join(verbs)}"),
        f" ({', '.join(said)}){of}. " if said else f"{of}. ",
    )  # fmt: skip


def _unfinished(study: Study, part: str) -> str:
    """Return what to begin with where the stage has not ended."""
    state = study.stage(part).get("state", "done")
    return "" if state == "done" else f"Not finished ({state} in study.json): "


def _model_sentence(source: Source) -> str:
    values = source.values
    facts = [f"preset {values.get('preset', UNKNOWN)}"]
    facts += [f"{key} {values[key]}" for key in ("step", "seed") if key in values]
    if "data_hash" in values:
        facts.append(f"data {values['data_hash'][:SHORT]}")
    run = source.name.rsplit("/", 2)[0]
    said = f"The {values.get('family', 'unknown')} model in {run} has {', '.join(facts)}"
    if values.get("base"):
        said += f"; it is an adapter (LoRA), fine-tuned from {_named(values['base']['path'])}"
    return f"{said}. "


def _weights_sentence(study: Study, sources: Sequence[Source]) -> list[str]:
    """Say which models were used as they came: their weights are of no training in this study.

    Those of this package are known by their bytes.
    """
    runs = [(study.root / source.name).parents[1] for source in study.models]
    own = {file_hash(path) for run in runs for path in run.glob(f"*/{WEIGHTS}")}
    arguments = [source.values.get("arguments", {}) for source in sources]
    used = {_named(a["model"]): a["weights"] for a in arguments
            if a.get("model") and a.get("weights") and a["weights"] not in own}  # fmt: skip
    shipped = {file_hash(path) for path in DEMO_WEIGHTS.glob(f"*/{WEIGHTS}")}
    return [
        f"{name} was used as {'shipped' if used[name] in shipped else 'given'}, not trained here. "
        for name in sorted(used)
    ]


def _named(path: str) -> str:
    """Return the last two names of a path: weights/wdm3d."""
    return "/".join(PurePath(path).parts[-2:])


def _versions_sentence(groups: Sequence[Sequence[Source]]) -> str:
    """Say which versions it all ran under."""
    sources = [source for group in groups for source in group]
    kept: dict[str, list[str]] = {}
    for source in sources:
        facts = dict(source.values.get("versions", {}))
        commit = source.values.get("git_commit") or source.values.get("git")
        facts |= {"commit": commit[:SHORT]} if commit else {}
        for name, value in facts.items():
            if value not in kept.setdefault(name, []):
                kept[name].append(value)
    words = ", ".join(f"{name} {' and '.join(values)}" for name, values in kept.items())
    return f"It ran under {words}." if words else ""


def _describe_setting(key: str, values: Sequence[Any]) -> str:
    """Say one setting; what was left at None, False or nothing goes without saying."""
    telling = [v for v in values if not (v is None or v is False or v in ([], ""))]  # 0 tells
    if not telling:
        return ""
    words = " and ".join(dict.fromkeys(_plain(v) for v in telling[:3]))
    return f"{key.replace('_', ' ')} {words}" + (" and others" if len(telling) > 3 else "")


def _plain(value: Any) -> str:
    """Write a value in a sentence: hashes short, lists spaced."""
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    text = str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:SHORT] if is_hash else _without_home(text)


def _without_home(text: str) -> str:
    """Leave out where this package and its user live: the page may travel."""
    return text.replace(f"{DEMO_WEIGHTS.parent}/", "").replace(f"{Path.home()}/", "~/")


def _all_settings(found: Sequence[Source]) -> list[Html]:
    rows = [["setting", "value"]]
    rows += [[key, "; ".join(map(_full, values))] for key, values in settings(found).items()]
    parts = [table(rows, "every setting", words=True)]
    hashes = inputs(found)
    if hashes:
        files = [["file", "SHA-256"], *([name, value] for name, value in hashes[:MOST_FILES])]
        said = f"{len(hashes)} files, SHA-256 of their sha256sum lines: "
        parts.append(tag("p", said, tag("code", digest(hashes)), class_="note"))
        if len(hashes) > MOST_FILES:
            parts.append(tag("p", f"The first {MOST_FILES}:", class_="note"))
        parts.append(table(files, "files and their hashes", words=True))
    return parts


def _rows(values: Any, prefix: str = "") -> list[list[str]]:
    """Return nested settings as rows: a.b.c, value."""
    rows = [] if prefix else [["setting", "value"]]
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += _rows(value, f"{prefix}{key}.")
        else:
            rows.append([f"{prefix}{key}", _full(value)])
    return rows


def _full(value: Any) -> str:
    return _without_home(value if isinstance(value, str) else json.dumps(value))


def _stage_rows(study: Study) -> list[list[str]]:
    rows = [["stage", "state", "seconds", "network calls", "peak memory, MB", "started", "command"]]
    rows += [
        [
            str(stage.get("name", UNKNOWN)), str(stage.get("state", UNKNOWN)),
            number(stage.get("seconds"), ".1f"), number(stage.get("network_calls"), "d"),
            number(stage.get(PEAK), ".0f"), str(stage.get("started", UNKNOWN)),
            _without_home(str(stage.get("command", UNKNOWN))),
        ]
        for stage in study.stages
    ]  # fmt: skip
    total = sum(stage.get("seconds") or 0 for stage in study.stages)
    rows.append(["together", "", number(total, ".1f"), "", "", "", ""])
    return rows


def _cost_row(part: str, found: Sequence[Source]) -> list[str]:
    seconds = _recorded(found, "seconds")
    calls, peaks = _recorded(found, "network_calls"), _recorded(found, PEAK)
    return [
        part, str(len(found)),
        number(sum(seconds), ".1f") if seconds else UNKNOWN,
        number(sum(seconds) / len(seconds), ".2f") if seconds else UNKNOWN,
        number(int(sum(calls)), "d") if calls else UNKNOWN,
        number(max(peaks), ".0f") if peaks else UNKNOWN,
    ]  # fmt: skip


def _recorded(found: Sequence[Source], key: str) -> list[float]:
    return [s.values[key] for s in found if s.values.get(key) is not None]
