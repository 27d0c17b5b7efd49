"""The shape of the code is a contract: layers, settings, names and start-up cost are tested like behaviour."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT

SRC = ROOT / "src"
FILES = sorted((SRC / "luthier").rglob("*.py"))


def name_of(path: Path, src: Path = SRC) -> str:
    """Dotted name of a module, `luthier.data` for its __init__.py."""
    parts = path.relative_to(src).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports, in functions as well; only those for the type checker are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                yield from imported(ast.Module([other], []))
        else:
            yield from imported(node)


def graph_of(src: Path) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports."""
    modules = {name_of(path, src): path for path in src.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found: set[str] = set()
        for node in imported(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            else:
                assert not node.level, f"{name}: relative import"
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {one if one in modules else str(node.module) for one in inner}
        graph[name] = found & set(modules) - {name}
    return graph


def folder_of(module: str, src: Path = SRC) -> str:
    """The folder that a module lies in."""
    place = src.joinpath(*module.split("."))
    return module if place.is_dir() else module.rpartition(".")[0]


def by_folder(graph: Mapping[str, set[str]], folder: Callable[[str], str]) -> dict[str, set[str]]:
    """The same graph between folders."""
    folders: dict[str, set[str]] = defaultdict(set)
    for module, others in graph.items():
        folders[folder(module)] |= {folder(other) for other in others} - {folder(module)}
    return dict(folders)


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Every group of nodes that reach one another (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return found


GRAPH = graph_of(SRC)


def layer(module: str) -> str:
    """The top-level folder that a module belongs to."""
    return ".".join(module.split(".")[:2]) if SRC.joinpath(*module.split(".")[:2]).is_dir() else "luthier"


@pytest.mark.parametrize("of", ["file", "folder", "layer"])
def test_imports_make_no_cycle(of: str) -> None:
    graph = {"file": GRAPH, "folder": by_folder(GRAPH, folder_of), "layer": by_folder(GRAPH, layer)}[of]
    assert cycles(graph) == []


def test_a_cycle_is_noticed(tmp_path: Path) -> None:
    """Through a lazy import and between folders; an import for the type checker makes none."""
    files = {
        "luthier/a/one.py": "def f():\n    from luthier.b.two import g\n",
        "luthier/b/two.py": "from luthier.b import three\n",
        "luthier/b/three.py": "import typing\nif TYPE_CHECKING:\n    from luthier.b import two\n",
        "luthier/b/four.py": "def g():\n    import luthier.a.five\n",
        "luthier/a/five.py": "x = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = graph_of(tmp_path)
    assert cycles(graph) == []
    assert cycles(by_folder(graph, lambda module: folder_of(module, tmp_path))) == [["luthier.a", "luthier.b"]]
    (tmp_path / "luthier/a/five.py").write_text("def f():\n    from luthier.b.four import g\n")
    assert cycles(graph_of(tmp_path)) == [["luthier.a.five", "luthier.b.four"]]


def test_nothing_below_the_recipe_knows_it() -> None:
    """The recipe composes the settings of the layers below it, so none of them, nor what they import, reaches back."""
    folders = by_folder(GRAPH, layer)
    below, waiting = set(), {"luthier.recipe"}
    while waiting:
        found = folders[waiting.pop()] - below
        below |= found
        waiting |= found
    assert below >= {f"luthier.{name}" for name in ("core", "data", "methods", "models", "tasks", "training", "runs")}
    assert not {name for name, others in folders.items() if name in below and "luthier.recipe" in others}


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.parent.name in ("methods", "tasks", "formats", "metrics") and p.stem != "base"],
    ids=name_of,
)
def test_plugins_stand_alone(path: Path) -> None:
    package = name_of(path.parent / "__init__.py")
    siblings = {name for name in GRAPH[name_of(path)] if name.rpartition(".")[0] == package} - {f"{package}.base"}
    assert not siblings - {package}, "a plugin needs its base, not its neighbours"


@pytest.mark.parametrize(
    "module",
    [
        "luthier",
        "luthier.cli.main",
        "luthier.recipe.config",
        "luthier.pipeline.train",
        "luthier.pipeline.evaluate",
        "luthier.pipeline.plan",
        "luthier.cli.terminal.explain",
    ],
)
def test_starting_up_imports_nothing_heavy(module: str) -> None:
    code = f"import {module}, sys; print(*{{'torch', 'transformers', 'peft', 'datasets', 'resvg_py', 'pyarrow'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_every_module_says_what_it_is_in_one_sentence() -> None:
    for path in FILES:
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc and doc.split("\n")[0].rstrip().endswith((".", ":", "?", "all")), name_of(path)


TOLD_APART = {
    "Adapter": "a form of export, a method",
    **dict.fromkeys(
        ("check", "choose", "compare", "load", "plan", "train"), "the API's, and what does the work for it"
    ),
    "command": "one a file of cli.commands",
    "patch": "one a kernel",
    "render": "one a page, the files for vLLM, and those of a launch",
    **dict.fromkeys(("start", "write"), "one an engine of launching"),
}
"""Names that several modules define, where the namespace says which."""


def test_a_public_name_has_one_owner() -> None:
    owners: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                owners[node.name].append(name_of(path))
    assert {name: where for name, where in owners.items() if len(where) > 1 and name not in TOLD_APART} == {}
