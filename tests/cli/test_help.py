"""Help pages, spellings of settings, completion, and bars of other libraries."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from typing import Any

import pytest
import typer.main

from luthier.cli.main import app
from luthier.cli.terminal import progress
from luthier.cli.terminal.arguments import as_typed_keys, complete_key, complete_method
from luthier.cli.terminal.help import paragraphs
from tests.cli.test_cli import main
from tests.cli.test_language import HELP

COMMANDS: Any = typer.main.get_command(app)


@pytest.mark.parametrize("name", HELP)
def test_help_fits_80_columns_with_examples_whose_options_exist(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, shown, _ = main([name, "--help"], capsys)
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.startswith(f"Usage: luthier {name} ") and "...]" not in shown.splitlines()[0] and "<str>" not in shown
    summary, examples = paragraphs(COMMANDS.commands[name].help)
    assert examples and " ".join(summary) in " ".join(shown.split())
    options = {option for each in COMMANDS.commands[name].params for option in each.opts}
    for example in examples:
        words = shlex.split(example.partition(" | ")[0])
        assert words[:2] == ["luthier", name] and f"  {example}\n" in shown + "\n"
        typed = as_typed_keys(words[1:])
        assert {word.partition("=")[0] for word in typed if word.startswith("--")} <= options, example


def test_the_list_of_commands_cuts_no_summary_and_has_the_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, shown, _ = main(["--help"], capsys)
    plain = " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80 and COMMANDS.commands.keys() == set(HELP)
    for command in COMMANDS.commands.values():
        assert paragraphs(command.help)[0][0] in plain
    assert "75 stopped by ctrl-C" in plain and "--lang en|zh" in plain


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("train a.yaml --train.lr 1e-3", "train a.yaml train.lr=1e-3"),
        ("train --train.lr=1e-3 --model x", "train train.lr=1e-3 --model x"),
        ("train --run runs/a", "train run=runs/a"),
        ("train --run=123", 'train run="123"'),  # a folder, not a number
        ("train --train.compile --model x", "train train.compile=true --model x"),
        ("train --method.targets [q_proj,v_proj]", "train method.targets=[q_proj,v_proj]"),
        ("train -- --train.lr 1", "train -- --train.lr 1"),
        ("chat r --prompt --a.b", "chat r --prompt --a.b"),
    ],
)
def test_a_key_may_be_typed_as_an_option(typed: str, read: str) -> None:
    assert as_typed_keys(typed.split()) == read.split()


def test_a_key_typed_as_an_option_is_checked_like_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = main(["train", "--data", "x.jsonl", "--train.lrr", "1"], capsys)
    assert code == 2 and "train.lrr: unknown key (did you mean 'lr'?)" in err


def test_keys_and_names_are_completed() -> None:
    assert {"train.lr=", "train.log_every="} <= {*complete_key("train.l")} and complete_key("nothing") == []
    assert "method.rank=" in complete_key("method.r") and complete_method("bit") == ["bitfit"]
    words = {"_LUTHIER_COMPLETE": "complete_bash", "COMP_WORDS": "luthier train train.l", "COMP_CWORD": "2"}
    code = "from luthier.cli.main import main; main()"
    environment = {**os.environ, **words}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "train.lr=" in done.stdout.split()


def test_bars_of_other_libraries_are_the_terminals_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tqdm.auto import tqdm

    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    progress.Terminal()
    for _ in tqdm(range(3), desc="Loading weights", mininterval=0, miniters=1):
        pass
    with tqdm(total=4_000_000, unit="B", desc="model.safetensors", mininterval=0, miniters=1) as bar:
        bar.update(2_000_000)
    out, err = capsys.readouterr()
    assert err == "" and "2 of 3 Loading weights" in out and "2 MB of 4 MB model.safetensors" in out


def test_a_log_says_how_much_time_is_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    terminal = progress.Terminal(log_every=10)
    terminal.train_begins(0, 100)
    now[0] += 20
    record = {"step": 40, "loss": 0.5, "lr": 1e-3, "grad_norm": 1.0}
    terminal.step(record, 2292.0)
    terminal.step({**record, "step": 100}, 2292.0)
    last, end = capsys.readouterr().out.splitlines()[-2:]
    assert last.endswith("2,292 tokens/s  30 s left") and end.endswith("tokens/s")


def test_a_log_has_a_line_of_slow_steps_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    terminal = progress.Terminal(log_every=50)
    terminal.train_begins(0, 32)
    for step in range(1, 33):
        now[0] += 10
        terminal.step({"step": step, "loss": 0.5, "lr": 1e-3, "grad_norm": 1.0}, 2292.0)
    shown = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.strip().startswith("step")]
    assert shown == [f"{step}/32" for step in range(4, 33, 4)]
