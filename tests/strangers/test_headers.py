"""Columns of public data sets are understood as people would, or asked about: never read otherwise in silence."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.config import RunConfig
from luthier.data.detect import UnclearColumns, open_set
from luthier.data.formats.base import FORMATS
from luthier.data.prepare import load
from luthier.data.settings import DataConfig
from luthier.errors import DataError
from luthier.run import evaluate, train
from luthier.training.progress import Progress
from tests.conftest import luthier, write_jsonl
from tests.strangers.conftest import SMALL
from tests.strangers.headers import table, value

TABLE = {name: (rows, reading) for name, rows, reading, _ in table()}


def expected(reading: str, row: dict[str, Any]) -> Any:
    kind, _, columns = reading.partition(" ")
    spec = dict(re.findall(r"(\w+)=(.+?)(?= \w+=|$)", columns))
    if kind == "classification" or spec.get("instruction") == "input":
        spec = {"input" if kind == "alpaca" else "pair": "", **spec}
    if kind == "preference":
        spec["learn"] = "chosen"
    return FORMATS.parse({"name": kind, **spec}).read(row)


@pytest.mark.parametrize("name", TABLE)
def test_a_header_line_is_understood_or_asked_about(name: str, tmp_path: Path) -> None:
    rows, reading = TABLE[name]
    if name == "alpaca_text":
        rows = [{**row, "text": "Below is an instruction."} for row in rows]
    config = DataConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    if reading == "unsure":
        with pytest.raises(UnclearColumns, match="more than one way") as caught:
            open_set(config)
        form = FORMATS.parse(dict(each.removeprefix("data.format.").split("=", 1) for each in caught.value.settings))
        form.read(rows[0])  # what the message proposes can be done
        return
    raw, form, why = open_set(config)
    assert len(list(raw)) == len(rows)
    if form.name != "preference":
        assert form.read(rows[0]) == expected(reading, rows[0]), (form.spec(), why)


def test_a_third_of_the_table_was_held_back() -> None:
    held = [name for name, _, _, held in table() if held]
    assert len(held) == 27 and len(TABLE) == 100


class Chooser(Progress):
    """Answers every question with the same number."""

    def __init__(self, answer: int) -> None:
        self.answer, self.asked, self.notes = answer, list[str](), list[str]()

    def ask(self, question: str, options: Sequence[str]) -> int | None:
        self.asked.append("\n".join([question, *options]))
        return self.answer

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_what_the_user_chose_holds_for_the_run(tmp_path: Path, model_folder: Any) -> None:
    rows = [{"alpha": value("q", n), "beta": value("long", n)} for n in range(30)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    config = RunConfig.load(None, [*SMALL, f"model={model_folder()}", f"data={data}", f"run={tmp_path / 'run'}"])
    with pytest.raises(UnclearColumns):
        train(config)
    chooser = Chooser(1)
    train(config, progress=chooser)
    assert len(chooser.asked) == 1 and "prompt from 'beta', answer from 'alpha'" in chooser.asked[0].splitlines()[2]
    assert any("the first row as the model sees it" in note for note in chooser.notes)
    for name in ("result.json", "adapter"):
        (tmp_path / "run" / name).rename(tmp_path / name)
    train(config)  # nobody is asked again
    evaluate(tmp_path / "run")


def test_the_command_in_the_message_works(tmp_path: Path) -> None:
    rows = [{"first one": value("q", n), "it's 2": value("long", n)} for n in range(30)]
    write_jsonl(tmp_path / "my rows.jsonl", rows)
    done = luthier("check", "my rows.jsonl", "--model", "builtin", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    command = shlex.split(done.stderr.splitlines()[-1].partition(": ")[2])
    assert command[0] == "luthier" and "data.format.instruction=first one" in command
    again = luthier(*command[1:], cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr


def test_a_file_without_names_of_columns_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "news.csv"
    lines = [f'{n % 4 + 1},"Title {n} of the day","The long text of article {n} that people read."' for n in range(9)]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="first line looks like a row, not like names of columns") as caught:
        load(DataConfig(path=str(file)), None)
    command = caught.value.mend.partition(": ")[2]
    import subprocess

    subprocess.run(["sh", "-c", command], check=True)
    assert (tmp_path / "named-news.csv").read_text().splitlines() == ["column1,column2,column3", *lines]
    data = load(DataConfig(path=str(tmp_path / "named-news.csv"), validation="none"), None)
    assert data.train.kept == 0 and data.train.read == 9 and data.format.name == "classification"


def test_pairs_of_texts_are_apart_for_a_tokenizer_that_puts_nothing_between_them(tmp_path: Path) -> None:
    from luthier.config import ModelConfig
    from luthier.data.example import Example
    from luthier.data.template import Template
    from luthier.models.load import load_tokenizer, locate
    from luthier.tasks.base import encode_texts

    model = ModelConfig(path="builtin")
    template = Template(load_tokenizer(model, locate(model)))
    ids, _ = encode_texts(Example(text="A film.", pair="It is good."), template, 99, "stop")
    assert template.tokenizer.decode(ids, skip_special_tokens=True) == "A film.\nIt is good."


def test_no_advice_names_a_label_as_the_instruction(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("label,review\n" + "".join(f"{n % 2},{value('zhlong', n)}\n" for n in range(8)))
    data = load(DataConfig(path=str(file), validation="none"), None)
    assert data.task.name == "classify" and data.examples[0].label == "0"
    file.write_text("label,rank\n" + "".join(f"{n % 2},{n}\n" for n in range(8)))
    with pytest.raises(DataError, match="no column holds texts") as caught:
        load(DataConfig(path=str(file)), None)
    assert "instruction=label" not in json.dumps(caught.value.mend)


def test_a_password_in_an_address_is_not_echoed(tmp_path: Path) -> None:
    for command in ("train", "plan"):
        done = luthier(command, "--model", "builtin", "--data", "https://me:open-sesame@host/rows.jsonl", cwd=tmp_path)
        assert done.returncode == 2 and "is an address" in done.stderr, done.stderr
        assert "open-sesame" not in done.stdout + done.stderr


def test_numbers_are_said_to_be_numbers(tmp_path: Path) -> None:
    rows, _ = TABLE["sts"]
    _, form, why = open_set(DataConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", rows))))
    assert form.name == "classification" and "a number: task=regress predicts it" in why
