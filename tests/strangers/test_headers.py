"""Files of strangers: columns are understood from names and content, or asked about, and no password is echoed."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from luthier.cli.main import main
from luthier.cli.terminal.progress import Terminal
from luthier.core.errors import DataError
from luthier.core.events import Progress
from luthier.data.detect import open_set, task_for
from luthier.data.formats.base import FORMATS, Format
from luthier.pipeline.train import train
from luthier.recipe.config import DataConfig, RunConfig
from luthier.rendering.chat_template import Template
from luthier.rendering.example import Example, RowError
from luthier.tasks.base import encode_texts
from tests.strangers.conftest import SMALL
from tests.strangers.headers import HEADERLESS, Table, tables


def write(table: Table, folder: Path) -> Path:
    """The file of a table, as it is published."""
    kind = table.kind.removesuffix("-")
    file = folder / f"{table.name}.{kind}"
    if kind == "json":
        file.write_text(json.dumps(table.rows, ensure_ascii=False), encoding="utf-8")
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.rows), encoding="utf-8")
    else:
        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, delimiter="\t" if kind == "tsv" else ",")
            if kind == table.kind:
                writer.writerow([name if not name.startswith("\0") else "" for name in table.rows[0]])
            writer.writerows([list(row.values()) for row in table.rows])
    return file


def outcome(table: Table, folder: Path) -> tuple[str, str]:
    """`right`, `asked` where no question was needed, or `wrong`; and what was read or said."""
    config = DataConfig(path=str(write(table, folder)))
    try:
        opened = open_set(config, Progress())
    except DataError as error:
        said = str(error)
        what = HEADERLESS if "data.columns=" in said else "unsure"
        return ("right" if what in table.readings else "asked" if what == "unsure" else "wrong"), said
    rows = [row.values for row in opened.rows]
    task, told = (opened.task or task_for(opened.format)).name, f"{opened.format.name}: {opened.why}"
    for reading in set(table.readings) - {"unsure", HEADERLESS}:
        head, _, columns = reading.partition(" ")
        wanted, _, name = head.rpartition("/")
        form = FORMATS.parse({"name": name, **dict(pair.split("=", 1) for pair in columns.split("; "))})
        if (wanted or task_for(form).name) == task and read(form, rows) == read(opened.format, rows):
            return "right", told
    return "wrong", told


def read(form: Format, rows: Sequence[Mapping[str, Any]]) -> list[Example | None]:
    """The examples of these rows, None for one that cannot be read."""
    made: list[Example | None] = []
    for row in rows:
        try:
            made.append(form.read(row))
        except RowError:
            made.append(None)
    return made


@pytest.mark.parametrize(
    ("held_back", "least"),
    [
        pytest.param(False, 1.0, id="seen while the rule was written"),
        pytest.param(True, 0.95, id="held back: 66 of 70 were right at first, 3 asked, 1 wrong"),
    ],
)
def test_columns_of_public_data_sets_are_understood(tmp_path: Path, held_back: bool, least: float) -> None:
    found = {table.name: outcome(table, tmp_path) for table in tables() if table.held_back == held_back}
    missed = {name: what for name, what in found.items() if what[0] != "right"}
    assert len(found) >= 60 and len(missed) <= (1 - least) * len(found), missed
    assert not [name for name, what in missed.items() if what[0] == "wrong"], missed


@pytest.mark.parametrize(
    ("header", "cells", "said"),
    [
        ("label,review", "{bit},很好吃{n}", "label 'label' of the text 'review'"),
        (
            "id,premise,hypothesis,label",
            "{n},A man walks {n},Somebody is out {n},{bit}",
            "'premise' and 'hypothesis' as a pair; not read: id",
        ),
        ("问题,回答", "水是什么{n}？,一种液体。", "prompt '问题', answer '回答'"),
        ("en,de", "The mill is old {n},Die Mühle ist alt", "prompt 'en', answer 'de'"),
    ],
)
def test_a_run_says_its_guess_with_a_row_and_keeps_it(
    tmp_path: Path, model_folder: Callable[..., Path], header: str, cells: str, said: str
) -> None:
    file, heard = lines(tmp_path / "a.csv", header, cells), Heard()
    given = [*SMALL, f"model={model_folder()}", f"data={file}", f"run={tmp_path / 'run'}", "train.steps=1"]
    result = train(RunConfig.load(None, given), progress=heard)
    assert said in heard.text() and "row 1 as the model sees it" in heard.text() and "\u00ab" in heard.text()
    kept = RunConfig.load(tmp_path / "run" / "recipe.yaml").data.format
    assert kept is not None, "a resumed run must not guess again"
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed before its end
    again = Heard()
    assert train(RunConfig.load(None, given), progress=again)["tuned"] == result["tuned"]
    assert "given in the recipe" in again.text()


UNSURE = "id,comment_text,toxic,obscene,insult", "{n},you are a person {n},{bit},{other},{bit}"


def test_a_script_gets_a_command_that_works_when_pasted(
    tmp_path: Path,
    model_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = lines(tmp_path / "a b.csv", *UNSURE)
    command = ["luthier", "check", str(file), "--model", str(model_folder()), "--out", str(tmp_path / "out")]
    code, said = run_command(command, monkeypatch, capsys)
    assert code == 2 and "data.format.instruction" not in said
    assert all(f"label '{name}' of the text 'comment_text'" in said for name in ("toxic", "obscene", "insult"))
    pasted = shlex.split(said.rpartition("for the first: ")[2].strip())
    assert pasted[:3] == command[:3]
    assert run_command(pasted, monkeypatch, capsys)[0] == 0


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_the_names_proposed_for_a_file_without_a_header_work_when_pasted(
    tmp_path: Path,
    model_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    sign = "\t" if kind == "tsv" else ","
    row = sign.join(["{bit}", "Markets fell again for the {n}th day this week"])
    file = lines(tmp_path / f"a.{kind}", row.format(bit=1, n=99), row)
    command = ["luthier", "check", str(file), "--model", str(model_folder()), "--out", str(tmp_path / "out")]
    code, said = run_command(command, monkeypatch, capsys)
    assert code == 2 and "the first line looks like a row" in said
    pasted = shlex.split(said.rpartition("what you want: ")[2].strip())
    assert pasted[-1] == "data.columns=[label,text]"
    code, said = run_command(pasted, monkeypatch, capsys)
    assert code == 0
    account = json.loads((tmp_path / "out" / "data.json").read_text(encoding="utf-8"))["account"]
    assert account["train"]["read"] + account["validation"]["read"] == 21, "the first line is a row too"


def test_a_terminal_is_asked_once_and_the_answer_is_the_run_s(
    tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    file, asked = lines(tmp_path / "a.csv", *UNSURE), Heard(answer=1)
    given = [*SMALL, f"model={model_folder()}", f"data={file}", f"run={tmp_path / 'run'}", "train.steps=1"]
    train(RunConfig.load(None, given), progress=asked)
    assert "label 'obscene'" in asked.asked[0][1]
    assert RunConfig.load(tmp_path / "run" / "recipe.yaml").data.format.label == "obscene"  # type: ignore[union-attr]
    again = Heard()  # nobody answers now, and nobody has to
    train(RunConfig.load(None, given), progress=again)
    assert not again.asked


def test_the_terminal_asks_with_numbers_and_takes_the_first_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter(["7", "", "2"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("luthier.cli.terminal.progress.console.input", lambda *_, **__: next(given))
    assert Terminal().ask("which?", ["a", "b"]) == 0, "7 is none of them, and an empty line takes the first"
    assert Terminal().ask("which?", ["a", "b"]) == 1
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert Terminal().ask("which?", ["a", "b"]) is None


@pytest.mark.parametrize(
    "words",
    [
        ["check", "https://user:pass/w@rd@host.example/a.jsonl"],
        ["plan", "--model", "builtin", "--data", "https://user:pass@host.example/rd/a.jsonl"],
        ["plan", "--model", "builtin", "--data", "builtin:reviews", "data.validation=https://user:pass@host/a.jsonl"],
        ["plan", "--model", "builtin", "--data", "no/https://user:pass@host/a.jsonl"],
        ["plan", "--model", "https://user:pass@host.example/a", "--data", "builtin:reviews"],
        ["plan", "a.yaml", "https://user:pass@host.example/a"],
    ],
)
def test_no_password_of_an_address_is_echoed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    code, said = run_command(["luthier", *words], monkeypatch, capsys)
    assert code == 2 and "pass" not in said.replace("password", "") and "w@rd" not in said


def test_two_texts_stand_apart_where_the_tokenizer_puts_nothing_between(model_folder: Callable[..., Path]) -> None:
    template = Template(AutoTokenizer.from_pretrained(model_folder()))
    pair = encode_texts(Example(text="one", pair="two", label="1"), template, 99, "stop", 0)
    joined = encode_texts(Example(text="one\ntwo", label="1"), template, 99, "stop", 0)
    assert pair == joined


class Heard(Progress):
    """Keeps what was said and asked."""

    def __init__(self, answer: int | None = None) -> None:
        self.said_: list[str] = []
        self.asked: list[Sequence[str]] = []
        self.answer = answer

    def note(self, text: str) -> None:
        self.said_.append(text)

    def ask(self, question: str, answers: Sequence[str]) -> int | None:
        self.asked.append(answers)
        return self.answer

    def text(self) -> str:
        return "\n".join(self.said_)


def lines(file: Path, header: str, cells: str) -> Path:
    """A file of 20 rows below this line."""
    rows = [cells.format(n=n, bit=n % 2, other=n // 2 % 2) for n in range(20)]
    file.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    return file


def run_command(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str]:
    """Exit code of a command line, and all that it printed."""
    monkeypatch.setattr("sys.argv", list(words))
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    return end.value.code, printed.out + printed.err
