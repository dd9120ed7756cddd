"""Who may import whom, and what no file may contain."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAMILIES = ("label_gan", "wdm3d", "ddpm_lora", "segmentation")
SOURCES = sorted(p for top in ("synth", *FAMILIES) for p in (ROOT / top).rglob("*.py"))
HEAVY = {"torch", "monai", "peft", "nilearn", "matplotlib"}
LIGHT = ("synth/errors.py", "synth/config.py", "synth/architecture.py", "synth/training_config.py",
         "synth/families.py", *[f"{f}/config.py" for f in FAMILIES])  # fmt: skip


def imports(tree: ast.AST, *, top_level: bool = False) -> Iterator[str]:
    for node in tree.body if top_level else ast.walk(tree):  # ty: ignore[unresolved-attribute]
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def violations(name: str, tree: ast.AST) -> list[str]:
    package = name.split("/")[0]
    found = []
    for module in imports(tree):
        top = module.split(".")[0]
        in_cli = module.startswith("synth.cli")
        if name.startswith("synth/cli/") or name == "synth/__main__.py":
            continue
        if package == "synth" and (top in FAMILIES or in_cli):
            found.append(f"{name} imports {module}")
        if package in FAMILIES and (top in set(FAMILIES) - {package} or in_cli):
            found.append(f"{name} imports {module}")
    if name in LIGHT or name.startswith("synth/cli/"):
        found += [
            f"{name} imports {m} at the top"
            for m in imports(tree, top_level=True)
            if m.split(".")[0] in HEAVY
        ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_flow_downwards(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if path.name == "__main__.py":  # `python -m family` is the verb with the family filled in
        return
    assert violations(name, ast.parse(path.read_text())) == []


def test_the_rule_catches_a_planted_violation() -> None:
    assert violations("synth/x.py", ast.parse("def f():\n    import wdm3d.network"))
    assert violations("wdm3d/x.py", ast.parse("from label_gan import y"))
    assert violations("wdm3d/config.py", ast.parse("import torch"))
    assert not violations("wdm3d/x.py", ast.parse("from wdm3d import y\nimport torch"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_two_files(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
