"""What is passed on names nobody's folders, and what is to be typed works when it is pasted into a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from luthier.cli.terminal.progress import Terminal, resumable
from luthier.core.errors import Stopped
from luthier.core.shell import home, literal, public, setting, shell_line
from luthier.pipeline.check import check
from luthier.pipeline.export import export
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig, parse_value
from luthier.recipe.parse import parse_export
from luthier.reports import compare_report
from luthier.runs.provenance import environment
from tests.conftest import alpaca_rows, write_jsonl

USER = "alice"
NAME = "it's 10 $HOME 中文"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home folder of a user, whose working folder lies in it."""
    folder = tmp_path_factory.mktemp("houses") / USER
    (folder / "work").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("USERPROFILE", str(folder))
        patch.chdir(folder / "work")
        yield folder


@pytest.fixture(scope="module")
def run(house: Path, model_folder: Callable[..., Path]) -> Path:
    """A run with a name that a shell would take apart; model and rows are given by absolute paths."""
    base = house / "models" / "llama"
    base.parent.mkdir()
    base.symlink_to(model_folder("llama"))
    rows = write_jsonl(house / "rows.jsonl", alpaca_rows(24))
    folder = house / "work" / NAME
    settings = [
        f"model={base}",
        f"data={rows}",
        f"run={json.dumps(str(folder))}",
        "train.steps=1",
        "method.rank=2",
        "evaluate.before=false",
        "evaluate.generate=2",
        "evaluate.max_new_tokens=2",
        "evaluate.forgetting=false",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["luthier", "train", *settings])
        train(RunConfig.load(None, settings))
    return folder


def test_the_report_and_the_environment_name_no_folder_of_the_user(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "rows.jsonl" in page and "~/models/llama" in page
    for file in ("report.html", "environment.json"):
        assert f"/{USER}/" not in (run / file).read_text(encoding="utf-8"), file
    assert f"/{USER}/" in (run / "recipe.yaml").read_text(encoding="utf-8"), "a resume needs the real paths"


def test_an_export_names_no_folder_of_the_user(run: Path) -> None:
    for form in ("adapter", "merged"):
        report = export(run, parse_export(form, []), prompts=1)
        place = Path(report["path"])
        for file in place.rglob("*"):
            if file.is_file():
                assert f"/{USER}/".encode() not in file.read_bytes(), file
    kept = json.loads((run / "exports/adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(kept).expanduser().is_dir() and kept.startswith("~")


def test_the_lines_that_load_an_adapter_load_it(run: Path) -> None:
    report = export(run, parse_export("adapter", []), prompts=1)
    names: dict[str, object] = {}
    exec("\n".join(report["use"]), names)
    assert type(names["model"]).__name__ == "PeftModelForCausalLM"


def test_the_page_of_a_check_names_no_folder_of_the_user(run: Path, house: Path) -> None:
    rows = write_jsonl(house / "bad.jsonl", [*alpaca_rows(20), {"instruction": "x"}])
    check(RunConfig.load(None, [f"data={rows}", f"model={house / 'models/llama'}"]), house / "work" / "look")
    page = (house / "work" / "look" / "data.html").read_text(encoding="utf-8")
    assert "bad.jsonl: line 21" in page and f"/{USER}/" not in page


def test_the_page_of_a_comparison_names_no_folder_of_the_user(house: Path) -> None:
    body = {
        "folder": f"{house}/work/cmp",
        "model": f"{house}/models/llama",
        "data": "/mnt/alice/rows.jsonl",
        "task": "chat",
        "finished": "",
        "steps": 1,
        "tokens": 1,
        "seeds": [0],
        "workers": 1,
        "threads": 1,
        "tuned": None,
        "examples": 2,
        "measured_on": "validation",
        "metric": "perplexity",
        "base": None,
        "best": None,
        "comparisons": 0,
        "rows": [{"arm": "lora", "status": "failed", "reason": f"{house}/x is broken"}],
    }
    page = compare_report.render(body)
    assert f"/{USER}" not in page and "~/models/llama" in page


def test_the_commands_of_a_run_reach_the_program_as_they_were_meant(run: Path) -> None:
    lines = json.loads((run / "result.json").read_text(encoding="utf-8"))["next"]
    page = (run / "report.html").read_text(encoding="utf-8")
    shown = [line.split("</pre>")[0] for line in page.split("<pre>")[1:2]]
    assert "chat" in shown[0]
    assert typed(lines[0]) == ["chat", str(run)]
    assert typed(public(lines[0])) == ["chat", NAME]
    assert typed(lines[1]) == ["chat", str(run), "--untuned"]


def test_the_next_command_works_when_it_is_pasted(run: Path) -> None:
    """The first one, by a shell: the run's name has a space, a quote and a dollar."""
    line = json.loads((run / "result.json").read_text(encoding="utf-8"))["next"][0]
    python = shell_line(sys.executable, "-m", "luthier")
    done = subprocess.run(
        ["sh", "-c", line.replace("luthier", python, 1) + " --prompt hi --max-new-tokens 1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr


def typed(line: str) -> list[str]:
    """What the program gets when a shell reads the line."""
    say = "import json, sys; print(json.dumps(sys.argv[1:]))"
    shell = f'luthier() {{ {shell_line(sys.executable, "-c", say)} "$@"; }}; {line}'
    return list(json.loads(subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout))


@pytest.mark.parametrize("name", ["a b", "it's", 'say "x"', "$HOME", "中文", "-rf", "a;b", "a #1", "a: b", "12", "[x"])
def test_a_command_says_what_was_meant(name: str) -> None:
    line = shell_line("luthier", "train", Path(name), setting("run", name))
    path, override = typed(line)[1:]
    assert Path(path) == Path(name) and not path.startswith("-")
    assert parse_value(override.removeprefix("run=")) == name
    assert eval(literal(name)) == name


def test_paths_for_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here, house = tmp_path / "alice" / "work", tmp_path / "alice"
    here.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(house))
    monkeypatch.setenv("USERPROFILE", str(house))
    monkeypatch.chdir(here)
    for text, shown in {
        f"{here}/runs/a.jsonl: line 3": "runs/a.jsonl: line 3",
        f"{house}/models/x": "~/models/x",
        f"luthier chat '{house}/a b'": "luthier chat ~/'a b'",
        "/data/alice/x.jsonl and /data/bob/y.jsonl": "x.jsonl and y.jsonl",
        f"{house}-2/x": "x",
        "org/model": "org/model",
        "see https://example.org/a/b, 1/2 and a/b/c": "see https://example.org/a/b, 1/2 and a/b/c",
    }.items():
        assert public(text) == shown
    assert home(str(house / "m")) == "~/m" and home("/data/m") == "/data/m" and home("builtin") == "builtin"


def test_the_command_that_is_kept_names_no_user(
    house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/luthier", "train", f"--data={house}/x.jsonl", f"run={house}/work/r"])
    assert environment()["command"] == ["luthier", "train", "--data=~/x.jsonl", "run=r"]
    with pytest.raises(typer.Exit), resumable(Terminal(1)):
        raise Stopped("stopped", 75)
    assert f"run={house}/work/r" in capsys.readouterr().out.replace("\n", "")
