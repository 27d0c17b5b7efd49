"""The shape of the code is a contract: levels, sizes and start-up cost are tested like behaviour."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "luthier"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module may import from its own level or below, never from above. docs/architecture.md draws the same. "" is the package.
LEVELS = [
    [
        "errors",
        "shell",
        "heads",
        "targets",
        "ledger",
        "origin",
        "peft_hook",
        "strict_json",
        "tuners",
        "ops",
        "training.space",
        "training.progress",
        "training.signals",
        "training.durable",
    ],
    ["plugins", "builtin", "strict_yaml"],
    ["data.example", "data.tools", "data.tool_use", "data.template_limits"],
    ["data.template", "methods.base", "data.formats.base"],
    ["tasks.base"],
    ["methods", "tasks", "data.formats", "data.settings", "evaluation.base", "evaluation.settings", "exports"],
    ["config", "evaluation"],
    ["consent"],
    ["folder", "data", "models", "training", "planning", "reports", "explain"],
    ["choosing"],
    ["stages", "measuring"],
    ["serving", "run", "comparing", "exporting"],
    [
        "terminal",
        "results",
        "chat",
        "cli",
        "using",
        "comparing.command",
        "comparing.show",
        "choosing.command",
        "__main__",
        "",
    ],
]
ONLY_THESE_KNOW_THE_WHOLE_RECIPE = {
    "config",
    "stages",
    "run",
    "folder",
    "cli",
    "explain",
    "comparing.arms",
    "comparing.shared",
    "comparing.compare",
    "comparing.table",
    "comparing.command",
    "choosing.command",
    "exporting",
}


def level(name: str) -> int:
    """Level of the longest entry that starts `name`."""
    return max(
        (len(entry), i)
        for i, row in enumerate(LEVELS)
        for entry in row
        if name == entry or (entry and name.startswith(entry + ".")) or entry == ""
    )[1]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(path: Path) -> set[str]:
    """Names inside the package that a file imports, at any depth of the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "luthier":
            inner = node.module.removeprefix("luthier").lstrip(".")
            for alias in node.names:
                deeper = PACKAGE.joinpath(*inner.split("."), alias.name) if inner else PACKAGE / alias.name
                is_module = deeper.with_suffix(".py").exists() or deeper.is_dir()
                found.add(f"{inner}.{alias.name}".lstrip(".") if is_module else inner)
    return found - {""}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = level(name_of(path))
    assert not {name for name in imports(path) if level(name) > own}


def test_the_rule_would_notice_a_breach(tmp_path: Path) -> None:
    breach = tmp_path / "lora.py"
    breach.write_text("def f():\n    from luthier.run import train\n")
    assert {name for name in imports(breach) if level(name) > level("methods.lora")} == {"run"}


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if name_of(p).split(".")[0] in ("methods", "tasks") or "formats" in p.parts],
    ids=name_of,
)
def test_plugins_stand_alone(path: Path) -> None:
    package = name_of(path).rpartition(".")[0]
    siblings = {name for name in imports(path) if name.startswith(package + ".")} - {f"{package}.base"}
    assert not siblings, "a plugin needs its base, not its neighbours"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_top_knows_the_whole_recipe(path: Path) -> None:
    if name_of(path) not in ONLY_THESE_KNOW_THE_WHOLE_RECIPE:
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert "RunConfig" not in names


@pytest.mark.parametrize("module", ["luthier", "luthier.cli", "luthier.config", "luthier.run", "luthier.explain"])
def test_starting_up_imports_nothing_heavy(module: str) -> None:
    code = f"import {module}, sys; print(*{{'torch', 'transformers', 'peft', 'datasets', 'matplotlib', 'pyarrow'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_every_plugin_module_says_what_it_is_in_one_sentence() -> None:
    for path in MODULES:
        doc = ast.get_docstring(ast.parse(path.read_text()))
        assert doc and doc.split("\n")[0].rstrip().endswith((".", ":", "?", "all")), name_of(path)
