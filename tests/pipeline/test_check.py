"""`luthier check` as a user meets it: exit codes, files, every refusal named, and a page that is safe to open."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import InputError
from luthier.pipeline.check import check
from luthier.recipe.config import RunConfig
from luthier.recipe.identity import path_beside
from luthier.reports.data_report import piece, shown
from tests.conftest import alpaca_rows, luthier, write_jsonl

NASTY = "<script>alert('x')</script><img src=http://example.org/a.png onerror=x>\x1b[31m\u202e"


class Page(HTMLParser):
    """Tags, attributes, text, and the spans of the loss mask of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str | None] = []
        self.text = ""
        self.spans: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action") or name.startswith("on")]
        kind = dict(attrs).get("class") or ""
        if tag == "span" and kind.startswith("t-"):
            self.spans.append([kind[2:], ""])
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"the page closes {tag} where something else is open"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "span" and self.spans:
            self.spans[-1][1] += data


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    rows: list[Any] = [{**row, "output": f"{row['output']} {NASTY}"} for row in alpaca_rows(30)]
    lines = [json.dumps(row) for row in rows]
    lines[7] = "{" + NASTY
    lines[11] = json.dumps({"instruction": NASTY})
    lines[20] = json.dumps({"instruction": "dog " * 900, "output": "x"})
    file = tmp_path / "hostile.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_sound_data_exits_with_0_and_writes_three_files(tmp_path: Path, alpaca_file: Path) -> None:
    done = luthier("check", alpaca_file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "check-alpaca"
    assert {path.name for path in folder.iterdir()} == {"data.html", "data.json", "refused.jsonl"}
    body = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    assert body["stops"] is False and body["account"]["train"]["kept"] == 36
    assert (folder / "refused.jsonl").read_text() == ""
    for said in (
        "because no model is named",
        "40 rows",
        "utf-8",
        "alpaca",
        "50 rows have",
        "longer than 256",
        "scripts",
    ):
        assert said in done.stdout or said in ("40 rows", "50 rows have"), said
    assert "no problems found" in done.stdout and "data.html" in done.stdout
    again = luthier("check", alpaca_file, cwd=tmp_path)
    assert again.returncode == 0, "a second look writes over the first"


def test_bad_data_exits_with_2_and_names_every_row(tmp_path: Path, hostile: Path) -> None:
    done = luthier("check", hostile, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2 and "train would stop" in done.stdout and done.stderr == ""
    for line in (8, 12, 21):
        assert f"refused: {hostile}: line {line}:" in done.stdout
    assert "\x1b" not in done.stdout and "\u202e" not in done.stdout, "text of the data cannot steer the terminal"
    refused = [json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text("utf-8").splitlines()]
    assert len(refused) == 3 and all(each["row"] and each["reason"] for each in refused)
    skipped = luthier(
        "check", hostile, "data.on_bad_row=skip", "data.on_long_row=truncate_prompt", "--out", tmp_path / "out"
    )
    assert skipped.returncode == 0 and "left out, as the recipe says" in skipped.stdout and "1 cut" in skipped.stdout


def test_the_page_loads_nothing_and_escapes_the_data(tmp_path: Path, hostile: Path) -> None:
    result = check(RunConfig.load(None, [f"data={hostile}"]), tmp_path / "out")
    assert result["stops"]
    text = (tmp_path / "out" / "data.html").read_text(encoding="utf-8")
    page = Page(text)
    assert (
        page.open == []
        and all(str(link).startswith("#") for link in page.links)
        and not page.tags & {"img", "link", "iframe"}
    )
    assert not re.search(r"url\(|@import", text) and text.count("<script") == 1 and "default-src 'none'" in text
    assert "<script>alert" in page.text and "\\x1b[31m\\x202e" in page.text, "hostile text is shown as text"
    for line in (8, 12, 21):
        assert f"{hostile.name}: line {line}" in page.text
    assert str(hostile) not in text, "a page that is passed on names no folder of the user's"
    for heading in ("Findings", "What is learned", "Rows", "Refused rows", "Lengths in tokens", "Scripts"):
        assert re.search(f'<h2[^>]*><span lang="en">{heading}<', text), heading


def test_the_colours_of_the_page_are_the_loss_mask(tmp_path: Path, model_folder: Callable[..., Path]) -> None:
    file = write_jsonl(
        tmp_path / "a.jsonl", [{"prompt": "What is your name?", "completion": "My name is\nLuthier."}] * 3
    )
    config = RunConfig.load(None, [f"data={file}", f"model={model_folder('llama')}", "data.validation=none"])
    result = check(config, tmp_path / "out")
    assert "because" not in result["notes"][0], "this model was named"
    page = Page((tmp_path / "out" / "data.html").read_text(encoding="utf-8"))
    count = len(result["masks"][0]["pieces"])
    first = page.spans[:count]
    assert [kind for kind, _ in first] == [kind for _, kind in result["masks"][0]["pieces"]]
    learned = "".join(text for kind, text in first if kind in ("learned", "end"))
    assert learned == "My name is\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\nLuthier.</s>"
    prompt = "".join(text for kind, text in first if kind in ("plain", "special"))
    assert "What is your name?" in prompt and prompt.startswith("<s>User:")
    assert all(words in page.text for words in ("learned: the model is trained", "read, not learned", "special token"))


def test_a_recipe_and_a_model_without_weights(tmp_path: Path, model_folder: Callable[..., Path]) -> None:
    import shutil

    tokenizer = tmp_path / "only"
    shutil.copytree(model_folder("llama"), tokenizer)
    (tokenizer / "model.safetensors").unlink()
    write_jsonl(tmp_path / "a.jsonl", alpaca_rows(20))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"data: {tmp_path / 'a.jsonl'}\nmodel: {tokenizer}\ntrain: {{max_length: 100}}\nrun: runs/mine\n")
    config = RunConfig.load(recipe)
    assert path_beside("check", config, recipe) == Path("runs/check-mine"), (
        "beside the run: its folder must be empty to begin"
    )
    result = check(config, tmp_path / "out")
    assert result["max_length"] == 100 and not result["stops"]
    done = luthier("check", recipe, "train.max_length=12", cwd=tmp_path)
    assert done.returncode == 2 and "max_length is 12" in done.stdout
    assert (tmp_path / "runs" / "check-mine" / "data.html").is_file() and not (tmp_path / "runs" / "mine").exists()


def test_the_folder_of_a_run_is_left_alone(tmp_path: Path, alpaca_file: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("{}")
    with pytest.raises(InputError, match="is the folder of a run"):
        check(RunConfig.load(None, [f"data={alpaca_file}"]), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        check(RunConfig.load(None, [f"data={alpaca_file}"]), tmp_path / "file" / "out")


def test_mistakes_are_told_as_those_of_train(tmp_path: Path) -> None:
    for arguments, said in (
        (["missing.jsonl"], "no such file"),
        (["missing.yaml"], "no such recipe"),
        ([], "no data given"),
        (["a.jsonl", "b.jsonl"], "one recipe is one run"),
    ):
        done = luthier("check", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert shown("a\x1b[2Jb\u202ec\td\ne") == "a\\x1b[2Jb\\x202ec\td\ne"
    assert piece("a\n") == "a\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n"
