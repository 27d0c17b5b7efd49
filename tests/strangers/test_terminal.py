"""What a stranger sees: help that fits 80 columns, hints that can be installed, pages on a phone, a first line at once."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tomllib

import pytest

from luthier.cli.terminal.console import Lines
from luthier.cli.terminal.explain import KINDS, explanation, listing
from luthier.core import errors
from luthier.recipe.config import RunConfig
from tests.cli.test_cli import main
from tests.conftest import ROOT

PAGES = sorted((ROOT / "src" / "luthier" / "reports").glob("*.html.jinja"))


def test_errors_are_shown_where_typer_names_none_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """typer.exceptions came with 0.27.1; each error was a traceback with those before."""
    monkeypatch.setitem(sys.modules, "typer.exceptions", None)
    for arguments in (["trian"], ["train", "--modle", "x"], ["explain"]):
        code, _, err = main(arguments, capsys)
        assert code == 2 and err.startswith("error: ") and "Traceback" not in err


def test_hints_install_the_packages_of_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {**errors.EXTRAS, "dev": ...}.keys() == project["optional-dependencies"].keys()
    for extra, packages in errors.EXTRAS.items():
        assert list(packages) == project["optional-dependencies"][extra]
    for path in (ROOT / "src").rglob("*.py"):
        assert not re.search(r"install '?luthier", path.read_text(encoding="utf-8")), path
    monkeypatch.setattr(errors.shutil, "which", lambda _: "/elsewhere/pip")
    assert errors.install("serve").endswith("-m pip install 'fastapi>=0.120' 'uvicorn>=0.35'")
    assert errors.install("serve").startswith(sys.executable)


def test_the_first_line_comes_before_torch() -> None:
    code = """
import sys
from importlib.abc import MetaPathFinder
class Stop(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch": raise SystemExit(99)
sys.meta_path.insert(0, Stop())
from luthier.cli.main import main
for arguments in (["train", "data=a.jsonl"], ["check", "a.jsonl"], ["plan", "data=a.jsonl"], ["compare", "data=a.jsonl"],
                  ["choose", "data=a.jsonl"], ["evaluate", "no-run"], ["export", "no-run"]):
    sys.argv = ["luthier", *arguments]
    try: main()
    except SystemExit: pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("train", "check", "plan", "compare", "choose", "evaluate", "export"):
        assert f"luthier {command}: " in done.stdout, command


def test_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    texts = {f"list {kind}": listing(kind) for kind in (*(f"{kind}s" for kind in KINDS), "models", "data")}
    texts |= {f"explain {key}": explanation(key, "") for key in RunConfig.model_fields if key not in KINDS}
    for kind, family in KINDS.items():
        texts |= {f"explain {kind} {name}": explanation(kind, name) for name in family.all_names()}
    long = {f"{what}: {line}" for what, text in texts.items() for line in text.split("\n") if len(line) > 80}
    assert not long
    monkeypatch.setenv("COLUMNS", "0")  # a file: a line for each, for grep
    assert len(listing("exports").split("\n")) == len(KINDS["export"].names())


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("lora", "(method lora)"),
        ("rslora", "(method rslora)"),
        ("chat", "(task chat)"),
        ("lr", "train.lr = "),
        ("train.lr", "train.lr = "),
    ],
)
def test_explain_finds_a_bare_name(name: str, begins: str) -> None:
    assert explanation(name, "").startswith(begins)


def test_a_name_of_several_things_lists_them() -> None:
    with pytest.raises(errors.InputError, match=r"choose one:\n  luthier explain"):
        explanation("path", "")  # model.path and data.path


def test_messages_wrap_between_words_and_commands_do_not() -> None:
    written = io.StringIO()
    console = Lines(file=written, width=40, force_terminal=True, color_system=None, highlight=False)
    text = "format classification has its columns (text, label), task classify, template: the tokenizer's own"
    console.print(f"  [yellow]! {text}[/]")
    lines = written.getvalue().splitlines()
    assert len(lines) > 2 and all(len(line) <= 40 for line in lines)
    assert " ".join(line.strip() for line in lines) == f"! {text}"
    assert all(line.startswith("    ") for line in lines[1:]), "below the text, not below the sign"
    console.print("  luthier train " + "key=value " * 8, soft_wrap=True)
    assert len(written.getvalue().splitlines()) == len(lines) + 1, "a command that is pasted has no line ends"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name.split(".")[0])
def test_pages_fit_a_phone(page: object) -> None:
    """Whatever may be wide scrolls in a box of its own; tests/reports measures one in Chromium."""
    base = page.with_name("base.html.jinja").read_text(encoding="utf-8")  # type: ignore[attr-defined]
    look = page.with_name("look.css").read_text(encoding="utf-8")  # type: ignore[attr-defined]
    source = look + base + page.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    assert ".wide { overflow-x: auto }" in source and re.search(r"h1 \{[^}]*overflow-wrap: anywhere", source)
    assert source.count("<table") == source.count('<div class="wide"><table') == source.count("</table></div>")
    assert "<img" not in source and re.search(r"pre \{[^}]*overflow-x: auto", source)
