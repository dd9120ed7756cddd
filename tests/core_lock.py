"""The lock of the core: `python -m tests.core_lock > core.lock` asks the index for its hashes.

Extras are pinned by version in constraints.txt; the core, which every user installs, also by hash.
torch comes from an index of its own, which run.sh asks for torch alone.
"""

import json
import re
from importlib import metadata
from pathlib import Path
from urllib.request import Request, urlopen

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
INDEX = "https://pypi.org/simple"
HEAD = """\
# The core dependencies but torch, pinned by version and hash: run.sh and the Dockerfile install
# them with --require-hashes. `python -m tests.core_lock > core.lock` writes this file anew.
"""


def pins() -> dict[str, str]:
    """Versions of constraints.txt by name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version.strip() for name, version in found}


def core() -> list[str]:
    """What the project needs without an extra, with all that these need, but torch."""
    pinned, seen, open_ = pins(), set(), ["synth-brain"]
    while open_:
        name = open_.pop()
        for text in metadata.requires(name) or ():
            need = Requirement(text)
            other = canonicalize_name(need.name)
            wanted = need.marker is None or need.marker.evaluate({"extra": ""})
            if wanted and other not in seen and other in pinned:
                seen.add(other)
                open_.append(other)
    return sorted(name for name in seen if name != "torch")


def usable(tag: Tag) -> bool:
    """Whether a wheel with this tag may be installed by one of our users."""
    python = (
        tag.interpreter in ("cp311", "cp312", "cp313")
        if tag.abi == tag.interpreter
        else tag.abi in ("none", "abi3") and re.fullmatch(r"py3|cp3\d*", tag.interpreter)
    )
    return bool(python and re.match("any|manylinux|macosx", tag.platform))


def hashes(name: str, version: str) -> list[str]:
    """SHA-256 of the wheels for CPython 3.11 to 3.13, or of the source where there is no wheel."""
    request = Request(f"{INDEX}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urlopen(request, timeout=60) as answer:
        files = {f["filename"]: f["hashes"]["sha256"] for f in json.load(answer)["files"]}
    wheels, source = [], []
    for file, digest in files.items():
        if file.endswith(".whl") and file.split("-")[1] == version:
            if any(usable(tag) for tag in parse_wheel_filename(file)[3]):
                wheels.append(digest)
        elif re.fullmatch(rf"[\w.-]+-{re.escape(version)}\.(tar\.gz|zip)", file):
            source.append(digest)
    return sorted(wheels or source)


if __name__ == "__main__":
    print(HEAD, end="")
    for name in core():
        version = pins()[name]
        print(
            f"{name}=={version}",
            *(f"--hash=sha256:{h}" for h in hashes(name, version)),
            sep=" \\\n    ",
        )
