"""The terminal in the language of the user: help, progress, tables and errors; commands and data stay as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len
from tools import catalog

from luthier.cli.terminal.console import breaks, wrapped
from luthier.core import language
from tests.cli.test_cli import main
from tests.conftest import alpaca_rows, luthier, review_rows, use_catalog, write_jsonl

QUICK = ["train.steps=2", "evaluate.generate=0", "method.rank=2"]
NO_PROSE = re.compile(
    r"^\s*(luthier |> luthier |\"|#|\w+(\.\w+)+ = |-> |~?/)"  # commands, JSON, keys with defaults, paths
    r"|^\s*\[\d+\] |^\s*[+-] |^\s*y = |^ {4}|\u2588"
)
"""Lines of commands, of data and of formulas."""


@pytest.fixture(scope="module")
def messages() -> dict[str, str]:
    """Every message of the source, which takes a second to find."""
    return {str(message.id): str(message.id) for message in catalog.extract() if message.id}


@pytest.fixture
def every_sentence(messages: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog that has every message of the source, for the language that marks what it knows."""
    use_catalog(monkeypatch, messages)
    monkeypatch.setattr(language, "_chosen", [])
    monkeypatch.setenv("LUTHIER_LANG", language.PSEUDO)
    monkeypatch.setenv("COLUMNS", "1000")


def unmarked(text: str) -> list[str]:
    """Lines with three or more English words in a row outside of the brackets."""
    while (without := re.sub(r"⟦[^⟦⟧]*⟧", "", text)) != text:
        text = without
    return [
        line
        for line in text.splitlines()
        if re.search(r"(\b[A-Za-z][a-z]+\b,? ){3}", f"{line} ") and not NO_PROSE.search(line)
    ]


HELP = ["demo", "init", "check", "plan", "choose", "train", "runs", "watch", "track", "compare", "evaluate", "export"]
HELP += ["ui", "launch", "serve", "chat", "list", "explain", "cache"]


@pytest.mark.parametrize("command", ["", *HELP])
def test_the_help_is_translated(command: str, every_sentence: None, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = main([command, "--help"] if command else ["--help"], capsys)
    assert "⟦" in out and unmarked(out.partition("⟦Examples:⟧")[0]) == []


@pytest.mark.parametrize(
    "words",
    [
        ["list", "methods"],
        ["list", "formats"],
        ["list", "models"],
        ["explain", "method", "lora"],
        ["explain", "train"],
        ["explain", "data.path"],
        ["explain", "evaluation", "rouge"],
        ["runs", "FOLDER"],
        ["cache"],
        ["init", "a.yaml", "--data", "builtin:reviews", "--model", "builtin", "--method", "lora", "--run", "r"],
    ],
    ids=" ".join,
)
def test_what_commands_say_is_translated(
    words: list[str],
    every_sentence: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = main([word.replace("FOLDER", str(tmp_path)) for word in words], capsys)
    assert code == 0, err
    assert unmarked(out) == []


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["train", "data=missing.jsonl"],
        ["train", "bad.yaml"],
        ["train", "a.yaml", "b.yaml"],
        ["trian"],
        ["train", "--modle", "x"],
        ["explain"],
        ["explain", "method", "loar"],
        ["list", "methds"],
        ["evaluate", "nowhere"],
        ["runs", "nowhere"],
        ["init"],
        ["train", "data=good.jsonl", "model.device=cuda"],
        ["chat", "http://127.0.0.1:9/v1", "--prompt", "x", "--untuned"],
        ["--lang", "fr", "runs"],
    ],
    ids=" ".join,
)
def test_errors_are_translated(
    words: list[str],
    every_sentence: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "good.jsonl", alpaca_rows(12))
    (tmp_path / "bad.yaml").write_text("modl: x\ntrain: {lr: fast}\nmethod: {name: lora, rnk: 2}\n")
    code, _, err = main(words, capsys)
    assert code == 2 and err.startswith("⟦error:⟧ ")
    assert unmarked(err) == []


def test_a_run_speaks_the_language_and_its_files_stay_english(
    model_folder: Callable[..., Path],
    every_sentence: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", alpaca_rows(40))
    write_jsonl(tmp_path / "r.jsonl", review_rows(60))
    source = [f"model={model_folder('llama')}", "data=a.jsonl"]
    found: dict[str, list[str]] = {}
    for words in (
        ["check", "a.jsonl", "--model", str(model_folder("llama"))],
        ["check", "r.jsonl", "--model", str(model_folder("llama"))],
        ["plan", *source],
        ["choose", *source],
        ["train", *source, "run=run", *QUICK],
        ["watch", "run"],
        ["runs", "."],
        ["evaluate", "run", "evaluate.rows=3"],
    ):
        code, out, err = main(words, capsys)
        assert code == 0, err
        found[words[0]] = unmarked(out)
    assert not any(found.values()), found
    for file in (*(tmp_path / "run").glob("*.json*"), tmp_path / "run" / "recipe.yaml"):
        assert "⟦" not in file.read_text(encoding="utf-8"), file


CHINESE = {
    "reading data": "正在读取数据",
    "error:": "错误：",
    "fix:": "解决：",
    "{0}: no such recipe{1}": "{0}：没有这个配方{1}",
    "give a YAML file, or key.path=value settings": "给出一个 YAML 文件，或 key.path=value 设置",
    "Train a run. Rerun the same command to resume a stopped one.": "训练一次运行。重新执行同一命令即可续训。",
}


def test_the_language_is_chosen_anywhere_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_catalog(monkeypatch, CHINESE)
    monkeypatch.setattr(language, "_chosen", [])
    for words in (["--lang", "zh", "train", "a.yaml"], ["train", "a.yaml", "--lang=zh"]):
        code, _, err = main(words, capsys)
        assert code == 2 and err == "错误：a.yaml：没有这个配方\n  解决：给出一个 YAML 文件，或 key.path=value 设置\n"
    assert "训练一次运行。" in main(["train", "--help"], capsys)[1]


def test_an_unknown_language_is_an_error() -> None:
    done = luthier("runs", "--lang", "fr")
    assert done.returncode == 2 and "unknown language 'fr'; choose one of: en, zh" in done.stderr


@pytest.mark.parametrize("width", [24, 33, 80])
def test_chinese_is_wrapped_by_the_cells_it_fills(width: int) -> None:
    text = "适用于解码器的首选方法，也适用于需要合并结果（例如部署）或共享同一个 base model 的场合。" * 3
    lines = wrapped(text, width, first="  ", indent="  ").split("\n")
    assert all(cell_len(line) <= width for line in lines) and len(lines) > 1
    assert "".join(line.strip() for line in lines).replace(" ", "") == text.replace(" ", "")
    assert not any(line.strip()[0] in "，。）" for line in lines)
    assert min(cell_len(line) for line in lines[:-1]) > width - 12  # lines are full, not cut at the few blanks


def test_lines_break_between_words_and_nothing_is_lost() -> None:
    text = "one two  three " + "x" * 30 + " four"
    parts = [text[begin:end] for begin, end in breaks(text, 10)]
    assert all(len(part.rstrip()) <= 10 for part in parts) and parts[0] == "one two"
    assert "".join(parts).replace(" ", "") == text.replace(" ", "")
