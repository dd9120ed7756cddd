"""Run every verb once on a few small patients, and describe all that it says and writes.

`python -m tests.golden.record` writes the description to outputs.json. Do that only for a change of
behaviour that is meant, and say in CHANGELOG.md which and why.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import safetensors.torch
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

from tests.toy_models import weights_by_rule

HERE = Path(__file__).parent
OUTPUTS = HERE / "outputs.json"
PREVIOUS = HERE / "previous"
PUBLIC = HERE / "public"  # answers of the public networks

VERBS = (
    *("demo", "study", "phantom", "check", "split", "evaluate", "train", "masks", "inpaint"),
    *("sample", "segment", "compare", "soup", "report", "view", "sweep", "launch", "convert"),
    *("bids", "export", "info"),
)
FAMILIES = ("label_gan", "wdm3d", "ddpm_lora", "segmentation")

CASE = "cohort/BraTS-GLI-50001-000"
SMALL = "--steps 2 --batch-size 1 --device cpu"
NET = "--width 4 --patch 32,32,32"

# name → command line; in this order, each may read what those before it wrote.
FAST = {
    "help": "--help",
    "version": "--version",
    **{f"help {verb}": f"{verb} --help" for verb in VERBS},
    **{f"help train {family}": f"train {family} --help" for family in FAMILIES},
    "info": "info --json",
    "info checkpoint": "info weights/wdm3d --json",
    "phantom": "phantom cohort --cases 8 --site B --seed 3 --workers 1",
    "check": "check cohort --json",
    "check lines": "check cohort",
    "split": "split cohort --out split.json --folds 2",
    "split testing": "split . --split split.json --testing 1 --out testing.json",
    "split only": "split . --split split.json --only 1 --out only.json",
    "view png": f"view {CASE} --save case.png",
    "inpaint mean": "inpaint cohort -o inpainted --end 4 --device cpu",
    "inpaint draw": "inpaint cohort -o drawn --end 1 --estimate sample --steps 3 --samples 2 "
    "--device cpu",
    "inpaint known": "inpaint cohort -o known --model weights/wdm3d_known --end 1 --device cpu",
    "inpaint one": f"inpaint {CASE}/BraTS-GLI-50001-000-t1n.nii.gz -o one --device cpu "
    f"--seg {CASE}/BraTS-GLI-50001-000-seg.nii.gz",
    "inpaint again": "inpaint cohort -o inpainted --end 4 --device cpu",
    "inpaint otherwise": "inpaint cohort -o inpainted --end 4 --seed 1 --device cpu",
    "masks drawn": "masks -o labels --count 6 --device cpu",
    "masks healthy": "masks cohort -o masks --per-case 1 --end 3 --workers 1 --device cpu",
    "masks tumour": "masks . --split only.json -o tumours --kind tumour --per-case 1 "
    "--workers 1 --mass-effect --prior --device cpu",
    "sample adapter": "sample --lora weights/site_b --end 1 -o site_b --steps 2 --device cpu",
    "mistake flag": "inpaint cohort --uot x",
    "mistake verb": "inpiant cohort",
    "mistake family": "train wdm --data cohort --out x",
    "mistake folder": "check nowhere",
}
SLOW = {
    "view gif": f"view {CASE} --save case.gif --plane coronal --no-labels",
    "sample": "sample tumours -o synthetic --steps 2 --append-to with.json --fold 0 --device cpu",
    "train segmentation": f"train segmentation --data . --out seg --split split.json --fold 0 "
    f"{SMALL} {NET}",
    "info run": "info seg --json",
    "train segmentation on": "train segmentation --data . --out seg --split split.json "
    f"--fold 0 {SMALL} {NET}".replace("--steps 2", "--steps 3"),
    "train segmentation 2": "train segmentation --data . --out seg2 --split split.json "
    f"--fold 0 {SMALL} {NET} --seed 1",
    "train peer": f"train segmentation --data cohort --out peer --network unet {SMALL} {NET}",
    "train finetuned": "train segmentation --data cohort --out finetuned --init-from seg "
    f"{SMALL} {NET}",
    "train label_gan": f"train label_gan --data cohort --out gan {SMALL}",
    "train alpha": f"train label_gan --data cohort --out alpha --preset alpha {SMALL}",
    "train wdm3d": f"train wdm3d --data cohort --out wdm {SMALL}",
    "train wdm3d default": f"train wdm3d --data cohort --out default --mode default {SMALL}",
    "train ddpm_lora": f"train ddpm_lora --data cohort --out ddpm {SMALL}",
    "train pixel": "train ddpm_lora --data cohort --out pixel --space pixel --no-anatomy "
    f"--objective x0 --crop 32,32,32 {SMALL}",
    "train lora": f"train ddpm_lora --data cohort --out lora --lora-from weights/ddpm_lora {SMALL}",
    "inpaint default": "inpaint cohort -o by_default --model default --estimate sample --steps 2 "
    "--end 1 --device cpu",
    "segment": "segment cohort -o segmented --models seg --end 2 --device cpu",
    "segment several": "segment cohort -o several --models seg seg2 --weights 1,1,2 1,2,1 --tta "
    "--min-ml 0.5 --thresholds 0.3,0.4,0.5 --probabilities --end 1 --device cpu",
    "soup": "soup seg seg2 --data . --split split.json --fold 0 -o soup --device cpu",
    "evaluate inpainting": "evaluate inpainting inpainted cohort -o inpainted_eval",
    "evaluate baselines": "evaluate inpainting baselines cohort -o baselines_eval --no-pictures",
    "evaluate masks": "evaluate masks labels cohort -o masks_eval",
    "evaluate copies": "evaluate masks tumours cohort -o copies_eval --train cohort",
    "evaluate segmentation": "evaluate segmentation segmented cohort -o segmented_eval",
    "evaluate synthesis": "evaluate synthesis synthetic cohort -o synthetic_eval --segmenter seg "
    "--keep z_intensity<=100 --device cpu",
    "compare": "compare . --split with.json --out comparison --folds 0 --seeds 0 1 "
    f"--arms base synthetic duplicated augmented {SMALL} {NET}",
    "sample painted": "sample tumours --into cohort -o painted --steps 2 --end 1 --device cpu",
    "export": "export nnunet split.json --data . -o Dataset001_Cohort",
    "sweep": f"sweep swept --grid lr=1e-3,3e-4 -- train segmentation --data cohort {SMALL} {NET}",
    "sweep optuna": "sweep proposed --optuna lr=1e-4..1e-2 --trials 2 -- train segmentation "
    f"--data cohort {SMALL} {NET}",
    "launch": "launch jobs --shards 2 -- segment cohort --models seg --end 2 -o launched "
    "--device cpu",
    "convert public": "convert LabelGenerator.pth --out converted --bits 16",
    "convert run": "convert seg --out copied --bits 8",
    "convert lora": "convert lora --out merged",
    "study": "study cohort --out study --show",
    "study slurm": "study . --out study --split split.json --preset brats23 --launcher slurm "
    "--cluster timeout_min=60 --show",
    "demo": "demo --out demo --show",
    "report": "report . --title Golden",
}


def record(names: Iterable[str], work: Path) -> dict[str, Any]:
    """Run the commands of these names in `work`; return what each said and wrote."""
    torch.set_num_threads(1)
    # numpy's sums depend on the number of threads, too, in the last bits.
    with threadpool_limits(1), contextlib.chdir(work):
        return {name: _run(name, {**FAST, **SLOW}[name].split()) for name in names}


def machine() -> str:
    """Return what the last bits of a result depend on besides the code."""
    names = (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name"))
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{next(names, platform.machine())} {capability} torch {torch.__version__}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _run(name: str, words: list[str]) -> dict[str, Any]:
    from synth.cli import main

    _prepare(name)
    before = _state()
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        try:
            code = main(words)
        except SystemExit as leave:
            code = leave.code
    files = [path for path, stamp in _state().items() if before.get(path) != stamp]
    found = {"code": code, "says": _plain(said.getvalue()), "writes": _described(files)}
    return found | ({"complains": _plain(complained.getvalue())} if code else {})


def _prepare(name: str) -> None:
    """Write what a command reads and no verb before it made."""
    if name == "sample":
        shutil.copy("split.json", "with.json")
    if name == "convert public":
        golden = json.loads((PUBLIC / "gligan_label_generator.json").read_text())
        torch.save(weights_by_rule(golden["state_dict"]), "LabelGenerator.pth")


def _state() -> dict[str, tuple[int, int]]:
    paths = [path for path in Path().rglob("*") if path.is_file()]
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(paths)}


def _described(files: list[str]) -> dict[str, Any]:
    """Return a description of each file; prepared arrays in caches and logs by their number."""
    found: dict[str, Any] = {}
    for name in files:
        if "/cache/" in name or name.startswith("cache/"):
            key = f"{name.partition('cache/')[0]}cache/*/{Path(name).name}"
            found[key] = found.get(key, 0) + 1
        elif "tfevents" in name:
            found[f"{Path(name).parent}/tfevents"] = None
        else:
            found[name] = describe(Path(name))
    return dict(sorted(found.items()))


def describe(path: Path) -> Any:
    """Return what must stay the same of a file."""
    if path.name.startswith("attempt-"):  # who worked, and when
        return None
    kinds = {
        ".gz": _volume, ".json": _json, ".png": _picture, ".gif": _picture, ".csv": _text,
        ".md": _text, ".safetensors": _weights, ".pt": _state_dict, ".jsonl": _lines,
    }  # fmt: skip
    return kinds[path.suffix](path) if path.suffix in kinds else None


def _volume(path: Path) -> dict[str, Any]:
    image = nib.load(path)
    data, header = np.asanyarray(image.dataobj), image.header
    fields = ("dim", "datatype", "pixdim", "qform_code", "sform_code", "scl_slope", "scl_inter")
    return {
        "sha": _hash(np.ascontiguousarray(data).tobytes()),
        "header": {name: rounded(np.asarray(header[name]).tolist()) for name in fields},
        "affine": rounded(image.affine.tolist()),
        "about": _about(data),
    }


def _picture(path: Path) -> dict[str, Any]:
    with Image.open(path) as image:
        frames = getattr(image, "n_frames", 1)
        data = np.asarray(image.convert("RGB"))
    return {"sha": _hash(data.tobytes()), "shape": [frames, *data.shape], "about": _about(data)}


def _weights(path: Path) -> dict[str, Any]:
    tensors = safetensors.torch.load_file(path)
    whole = b"".join(
        k.encode() + t.contiguous().view(torch.uint8).numpy().tobytes() if t.ndim else k.encode()
        for k, t in sorted(tensors.items())
    )
    size = float(sum(t.float().abs().sum() for t in tensors.values()))
    return {"sha": _hash(whole), "tensors": len(tensors), "about": [size]}


def _state_dict(path: Path) -> Any:
    found = torch.load(path, weights_only=True, map_location="cpu")
    return {"keys": sorted(found)}


def _json(path: Path) -> Any:
    value = _stable(json.loads(path.read_text(encoding="utf-8")))
    text = json.dumps(value, sort_keys=True)
    return value if len(text) < 3000 or path.name == "summary.json" else {
        "sha": _hash(text.encode()), "keys": sorted(value), "length": len(text)
    }  # fmt: skip


def _text(path: Path) -> Any:
    text = _plain(path.read_text(encoding="utf-8"))
    short = len(text) < 12 and path.name != "README.md"
    return text if short else {"sha": _hash("\n".join(text).encode()), "head": text[:2],
                               "lines": len(text)}  # fmt: skip


def _lines(path: Path) -> Any:
    return [_stable(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _about(data: np.ndarray) -> list[float]:
    """Return numbers that hold on another machine, too, if not to the last bit."""
    data = data.astype(np.float64)
    return rounded([float(f"{v:.6g}") for v in (data.mean(), data.std(), (data != 0).mean())])


def rounded(value: Any) -> Any:
    """Round numbers to ten significant digits, at any depth."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.10g}") if math.isfinite(value) else str(value)  # as NaN equals nothing


DROPPED = {"seconds", "versions", "git_commit", "git", "host", "started", "ended", "finished",
           "time", "date", "python", "pid", "devices", "wall"}  # fmt: skip


def _stable(value: Any, key: str = "") -> Any:
    """Return a JSON value without what another day or another folder changes."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in DROPPED and "seconds" not in k}
        if "s/case" in (rows := value.get("rows") or [[]])[0]:
            kept["rows"] = [row[: rows[0].index("s/case")] for row in rows]
        return {k: _stable(v, "" if key == "inputs" else k) for k, v in kept.items()}
    if isinstance(value, list):
        return [_stable(v) for v in value]
    if isinstance(value, str):
        return " ".join(_plain(value)) if len(value) < 2000 else _hash(value.encode())
    return rounded(value)


def _plain(text: str) -> list[str]:
    """Return lines without what another day or another folder changes."""
    for folder, word in ((Path.cwd(), "WORK"), (Path(__file__).parents[2], "ROOT")):
        text = text.replace(str(folder.resolve()), word)
    text = text.replace(sys.executable, "PYTHON").replace(platform.python_version(), "PYTHON")
    text = re.sub(r"(\.\./)+[^\s\"]*(?=weights/)", "ROOT/", text)  # from here to this checkout
    text = re.sub(r"\b[0-9a-f]{40,}\b", "HASH", text)
    text = re.sub(r"(?<=[ (,:])[0-9.]+ (s|min|h|MB)\b", r"N \1", text)
    text = re.sub(r"\bin \d+(\.\d+)? ?s\b", "in N s", text)
    text = re.sub(r"(done +\d+ |done,\d+,) *\d+", r"\1N", text)
    text = re.sub(r"(?<=\S)  +", "  ", text)
    text = re.sub(r"(done +0 N +)\d+(?= )", r"\1N", text)
    text = re.sub(r"( \d+ \| |  \d+  )\d+\.\d\d( \|)?$", r"\1N\2", text, flags=re.M)  # s/case
    return text.splitlines()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def main() -> None:
    """Write outputs.json anew."""
    with tempfile.TemporaryDirectory() as folder:
        found = record([*FAST, *SLOW], Path(folder).resolve())
    OUTPUTS.write_text(_as_text({"machine": machine(), "outputs": found}), encoding="utf-8")


def _as_text(value: Any, depth: int = 0) -> str:
    """Return JSON with a line a file and a line a sentence, which can be compared by eye."""
    short = json.dumps(value, ensure_ascii=False)
    if depth == 4 or len(short) < 100 or not value or not isinstance(value, dict | list):
        return short
    named = isinstance(value, dict)
    items = value.items() if named else enumerate(value)
    lines = [f"{json.dumps(k) + ': ' if named else ''}{_as_text(v, depth + 1)}" for k, v in items]
    text = ",\n".join(" " * (depth + 1) + line for line in lines)
    opened, closed = "{}" if named else "[]"
    return f"{opened}\n{text}\n{' ' * depth}{closed}" + "\n" * (depth == 0)


if __name__ == "__main__":
    main()
