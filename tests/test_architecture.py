"""Who may import whom, and what no file may contain.

Every import counts: at the top, inside functions, under TYPE_CHECKING, and modules that are named
in strings and imported when they are needed.
"""

import ast
import importlib
import re
import subprocess
import sys
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path

import pytest

from synth.cli import VERBS
from synth.cli.parser import SHARED
from tests.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
FAMILIES = ("label_gan", "wdm3d", "ddpm_lora", "segmentation")
LAYERS = (
    *("base", "data", "diffusion", "checkpoints", "training", "metrics", "pictures", "jobs"),
    *("evaluate", "phantom", "families", "study", "cli"),
)
REGISTRY = "synth.base.families"
"""The one module that may name families; in strings only, which `Lazy` imports."""
MAY_RUN_UP = {
    ("synth.data.volume", "synth.pictures.notebook"): "a Volume shows itself in a notebook",
    ("synth.data.case", "synth.pictures.notebook"): "a Case shows itself in a notebook",
}
"""(from, to): why."""
PROGRAMS = {"synth.cli.parser", "synth.sample"}
"""Modules that name a program for another process; nothing is imported by it."""
MOST_LINES, MOST_ENTRIES = 500, 15
LONGEST = 50
"""Lines of a function, its docstring apart."""
LONG_TABLES = {"synth.study.stages.generative"}
MOST_ARGUMENTS = 12
"""Of a verb's own, beside bundles of options and what means the same everywhere."""
ONE_A_FAMILY = {"Config", "Recipe", "SamplerOptions"}
"""Classes that each family has one of, for the same thing."""
HEAVY = {"torch", "monai", "peft", "nilearn", "matplotlib", "scipy", "nibabel"}
LIGHT = ["synth.base.families", "synth.training.config", "synth.diffusion.unet_config",
         *(f"{family}.config" for family in FAMILIES)]  # fmt: skip
"""Modules whose import must not import what is heavy, directly or through others."""


def module_of(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")


SOURCES = {
    module_of(p): p for top in ("synth", *FAMILIES) for p in sorted((ROOT / top).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


@dataclass(frozen=True)
class Arrow:
    """One module imports another."""

    source: str
    target: str


def layer(module: str) -> str:
    top, *rest = module.split(".")
    if top in FAMILIES:
        return "families"
    return rest[0] if rest and rest[0] in LAYERS else "cli"  # `synth` itself, __main__, sample


def imported(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Yield the modules among `names` that import statements name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found = full if full in names else node.module or ""
                yield from [found] if found in names else []


def named(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Yield the modules that string constants name whole: "synth.cli", "wdm3d.network:build"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            module, colon, attribute = node.value.partition(":")
            plain = "." in module and (not colon or attribute.isidentifier())
            if plain and module in names:
                yield module


def arrows(trees: dict[str, ast.Module]) -> set[Arrow]:
    """Return every import between our modules."""
    names = set(trees)
    found = set()
    for source, tree in trees.items():
        targets = set(imported(tree, names))
        if source not in PROGRAMS | {REGISTRY}:
            targets |= set(named(tree, names))
        found |= {Arrow(source, target) for target in targets if target != source}
    return found


def runs_up(arrow: Arrow) -> bool:
    return LAYERS.index(layer(arrow.source)) < LAYERS.index(layer(arrow.target))


def between_families(arrow: Arrow) -> bool:
    tops = {arrow.source.split(".")[0], arrow.target.split(".")[0]}
    return len(tops) == 2 and tops <= set(FAMILIES)


def circles(found: set[Arrow]) -> list[list[str]]:
    """Return the modules that import themselves through others, in groups that reach each other."""
    after: dict[str, set[str]] = {}
    for arrow in found:
        after.setdefault(arrow.source, set()).add(arrow.target)
    reach = {name: reachable(name, after) for name in after}
    around = {name: {o for o in reach[name] if name in reach.get(o, ())} for name in reach}
    return sorted(map(list, {tuple(sorted(group)) for group in around.values() if group}))


def reachable(name: str, after: dict[str, set[str]]) -> set[str]:
    """Return the modules that one imports, directly or through others."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = after.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


ARROWS = arrows(TREES)
REGISTERED = set(named(TREES[REGISTRY], set(SOURCES)))
COUNTED = {a for a in ARROWS if (a.source, a.target) not in MAY_RUN_UP}


def test_imports_run_downwards(capsys: pytest.CaptureFixture[str]) -> None:
    up = sorted(f"{a.source} → {a.target}" for a in COUNTED if runs_up(a))
    across = sorted(f"{a.source} → {a.target}" for a in COUNTED if between_families(a))
    with capsys.disabled():
        print(
            f"\n{len(SOURCES)} modules, {len(LAYERS)} layers, {len(ARROWS)} arrows, "
            f"{len(up)} run up, {len(across)} between families, {len(circles(COUNTED))} circles, "
            f"{len(MAY_RUN_UP)} exceptions"
        )
    assert up == []
    assert across == []


def test_there_are_no_circles() -> None:
    assert circles(COUNTED) == []


def test_exceptions_are_needed() -> None:
    assert {(a.source, a.target) for a in ARROWS} >= set(MAY_RUN_UP)


def test_modules_are_imported_by_name_in_few_places() -> None:
    """Whoever calls import_module must name its modules where the rule above sees them."""
    found = {n for n, path in SOURCES.items() if "import_module(" in path.read_text("utf-8")}
    # A worker runs the program it is given; the packages' roots offer a few names of their own.
    allowed = {REGISTRY, "synth.base.public_names", "synth.cli", "synth.jobs.job"}
    # Optional packages, deepbet and SimpleITK, of which the type checker must know nothing.
    allowed |= {"synth.data.brain", "synth.metrics.downstream_use"}
    assert found <= allowed


def test_only_the_registry_names_families() -> None:
    used = set(named(TREES[REGISTRY], set(SOURCES)))
    assert {module.split(".")[0] for module in used} == set(FAMILIES)
    code = (
        "from synth.base.families import FAMILIES, Lazy\n"
        "for family in FAMILIES.values():\n"
        "    parts = [part for part in vars(family).values() if isinstance(part, Lazy)]\n"
        "    assert all(part.path.startswith(family.name + '.') for part in parts)\n"
        "    assert all(part.load() is not None for part in parts)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("name", "code", "bad"),
    [
        ("synth.data.x", "def f():\n    import wdm3d.network", True),
        ("synth.data.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
         "from synth.training import loop", True),
        ("synth.jobs.x", 'PROGRAM = "synth.cli"', True),
        ("synth.metrics.x", 'F = Lazy("wdm3d.network:build")', True),
        ("wdm3d.x", "from label_gan import config", True),
        ("wdm3d.x", "from wdm3d import config\nimport torch", False),
        ("synth.cli.x", "import wdm3d.generate", False),
    ],
)  # fmt: skip
def test_the_rule_catches_a_planted_violation(name: str, code: str, bad: bool) -> None:
    planted = {a for a in arrows(TREES | {name: ast.parse(code)}) if a.source == name}
    assert any(runs_up(a) or between_families(a) for a in planted) == bad


def test_the_rule_catches_a_planted_circle() -> None:
    trees = {"synth.data.a": "import synth.data.b", "synth.data.b": "import synth.data.c",
             "synth.data.c": "def f():\n    from synth.data import a"}  # fmt: skip
    found = arrows({name: ast.parse(code) for name, code in trees.items()})
    assert circles(found) == [["synth.data.a", "synth.data.b", "synth.data.c"]]
    assert circles(found - {Arrow("synth.data.c", "synth.data.a")}) == []


def test_configurations_import_nothing_heavy() -> None:
    code = f"import sys\nfor name in {LIGHT!r}:\n    __import__(name)\nprint(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert {name.split(".")[0] for name in answer.stdout.split()} & HEAVY == set()


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_one_noun(name: str) -> None:
    assert len(SOURCES[name].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}.{node.name}", node


def test_functions_fit_a_screen() -> None:
    found = {}
    for name, node in functions():
        docstring = node.body[0].end_lineno - node.body[0].lineno + 1  # ty: ignore[unsupported-operator]
        own = node.end_lineno - node.lineno + 1  # ty: ignore[unsupported-operator]
        found[name] = own - docstring * (ast.get_docstring(node) is not None)
    assert {name for name, lines in found.items() if lines > LONGEST} == LONG_TABLES


def test_a_name_of_a_class_means_one_thing() -> None:
    names = Counter(
        node.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, n in names.items() if n > 1} == ONE_A_FAMILY


def test_verbs_have_few_arguments_of_their_own() -> None:
    for verb, where in VERBS.items():
        module = importlib.import_module(where.module)
        for name in where.kinds or (verb,):
            hints = typing.get_type_hints(getattr(module, name))
            own = [n for n, kind in hints.items() if n not in {*SHARED, "return", "settings"}
                   and not is_dataclass(kind)]  # fmt: skip
            assert len(own) <= MOST_ARGUMENTS, (verb, own)


def test_folders_can_be_surveyed() -> None:
    entries = Counter(path.parent for path in SOURCES.values())
    entries.update(folder.parent for folder in list(entries) if folder.parent != ROOT)
    assert {str(f.relative_to(ROOT)): n for f, n in entries.items() if n > MOST_ENTRIES} == {}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.file)
def test_a_planted_error_has_its_place(mutation: Mutation) -> None:
    """`python -m tests.mutations` plants them all."""
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1
    assert mutation.old != mutation.new
    assert all((ROOT / "tests" / f"{name}.py").is_file() for name in mutation.tests.split())


def test_contributing_prints_the_tree() -> None:
    """`python -m tests.test_architecture` prints what belongs there."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    assert shown[1] == tree()


def test_the_data_flow_of_contributing_runs_along_imports() -> None:
    """Each module of a list is there, and one before it in the list imports it."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lists = page.partition("## How data flows")[2].partition("\n## ")[0].split("\n1. ")[1:]
    for text in lists:
        first, *others = dict.fromkeys(re.findall(r"`(\w+(?:\.\w+)+)`", text))
        above = [first]
        for name in others:
            targets = {a.target for a in ARROWS if a.source in above}
            by_registry = any("synth.base.families" in (a, *targets) for a in above)
            assert name in targets or (by_registry and name in REGISTERED), name
            above.append(name)
    assert len(lists) == 3


def tree() -> str:
    """Return the tree of the source, a line of meaning beside each file: its docstring's first."""
    lines: list[str] = []
    for top in ("synth", *FAMILIES):
        _add_folder(ROOT / top, 0, lines)
    return "\n".join(lines) + "\n"


def _add_folder(folder: Path, depth: int, lines: list[str]) -> None:
    lines.append(_line(folder.name + "/", folder / "__init__.py", depth))
    files = [p for p in sorted(folder.glob("*.py")) if not p.name.startswith("__")]
    lines.extend(_line(path.stem, path, depth + 1) for path in files)
    folders = {
        path.name: path for path in sorted(folder.iterdir()) if (path / "__init__.py").exists()
    }
    upwards = [name for name in LAYERS if name in folders] if depth == 0 else []
    for name in upwards or folders:
        _add_folder(folders[name], depth + 1, lines)


def _line(name: str, path: Path, depth: int) -> str:
    first = (ast.get_docstring(TREES[module_of(path)]) or "").splitlines()[0]
    return f"{'  ' * depth}{name:<{26 - 2 * depth}}{first}"


if __name__ == "__main__":
    print(tree(), end="")
