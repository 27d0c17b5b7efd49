"""The documentation tells the truth: commands exist, files exist, the tree is the tree on disk."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer.main
from packaging.requirements import Requirement

from luthier.cli.main import app
from luthier.cli.terminal.arguments import split_arguments
from luthier.recipe.config import RunConfig
from tests.conftest import ROOT

READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
REPOSITORY = r"https://(?:github.com/luthier-ft/luthier/blob|raw.githubusercontent.com/luthier-ft/luthier)/main/"
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def commands(page: Path) -> list[str]:
    """Lines of code blocks that start with luthier."""
    blocks = re.findall(r"```\w*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    blocks += re.findall(r"(?m)^    (\S.*)$", page.read_text(encoding="utf-8"))
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip().startswith("luthier ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_docs_exists_with_its_options(page: Path) -> None:
    known = typer.main.get_command(app)
    for line in commands(page):
        words = shlex.split(line.split("  #")[0].split(" #")[0])
        name = words[1]
        assert name in known.commands or name.startswith("-"), line  # type: ignore[attr-defined]
        if name.startswith("-"):
            continue
        options = {option for parameter in known.commands[name].params for option in parameter.opts}  # type: ignore[attr-defined]
        for word in words[2:]:
            assert not word.startswith("--") or word.split("=")[0] in options, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_recipe_line_in_the_docs_is_a_valid_recipe(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line.split("  #")[0])
        if words[1] == "train":
            arguments = [word for word in words[2:] if not word.startswith("--")]
            options = ("--model", "--base", "--data", "--method", "--task", "--from")
            named = [i for i, word in enumerate(words) if word in options]
            values = [words[i + 1] for i in named]
            recipe, overrides = split_arguments([word for word in arguments if word not in values])
            RunConfig.load(ROOT / recipe if recipe else None, overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_the_docs_point_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert page not in READMES, f"{target}: a package index shows the README without the repository"
        assert (page.parent / target).exists(), target
    for target in re.findall(rf"\]\({REPOSITORY}([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"`((?:recipes|docs|tools|tests|src)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), target


def test_the_tree_of_the_architecture_page_is_the_tree_on_disk() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = page.split("src/luthier/\n")[1].split("recipes/  docs/")[0]
    told = {line.split()[0].rstrip("/") for line in tree.splitlines() if re.match(r"  \S", line)}
    package = ROOT / "src" / "luthier"
    there = {p.name for p in package.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert told == there


@pytest.mark.slow
@pytest.mark.parametrize("name", ["architecture.md", "python.md"])
def test_the_code_of_a_page_prints_what_its_comments_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    walk: dict[str, object] = {}
    for block in blocks:
        capsys.readouterr()
        exec(block, walk)
        expected = re.findall(r"^ *print\(.*\n *# (.*)$", block, re.MULTILINE)
        assert len(expected) == block.count("print(")
        assert capsys.readouterr().out.splitlines() == expected


def test_every_stop_of_the_walks_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for stops in re.findall(r"^\| [\w, ]+ \| ((?:`[\w/.]+`(?:, )?)+) \|", page, re.MULTILINE):
        for stop in re.findall(r"`([\w/.]+)`", stops):
            assert (ROOT / "src" / "luthier" / stop).exists(), stop


def test_both_readmes_show_the_two_commands_first_and_the_same_commands() -> None:
    for page in READMES:
        first = page.read_text(encoding="utf-8").split("\n")[:50]
        assert "make demo" in "\n".join(first) and "make test" in "\n".join(first)
    english, chinese = (set(commands(page)) for page in READMES)
    assert {c.split("  #")[0].strip() for c in english} == {c.split("  #")[0].strip() for c in chinese}


def test_every_dependency_is_pinned_and_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pinned = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    page = (ROOT / "docs" / "install.md").read_text()
    for each in project["dependencies"] + project["optional-dependencies"]["dev"]:
        wanted = Requirement(each)
        name = wanted.name.lower().replace("_", "-")
        assert name in pinned and wanted.specifier.contains(pinned[name]), f"constraints.txt does not serve {each}"
    for requirement in project["dependencies"]:
        assert f"| {re.split(r'[<>=]', requirement)[0]} |" in page, requirement


def test_ci_runs_lint_types_and_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make lint types" in script and "make test" in script
