"""The recipe that the page edits: text and form are one thing."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from luthier.core.errors import ConfigError, InputError
from luthier.recipe.config import RunConfig
from luthier.ui.form import form
from luthier.ui.recipe import checked_text, config_of, save


def test_text_stays_as_it_was_typed() -> None:
    text = "# mine\ndata: builtin:reviews   # the reviews\n"
    found = checked_text(text, {})
    assert found["text"] == text and not found["problems"]
    assert found["settings"]["data.path"] == "builtin:reviews" and found["settings"]["method.name"] == "lora"


def test_a_form_changes_keys_and_takes_them_out() -> None:
    found = checked_text("data: builtin:reviews\n", {"train.lr": 1e-3, "method.rank": 4})
    assert not found["problems"] and found["settings"]["train.lr"] == 1e-3 and found["settings"]["method.rank"] == 4
    back = checked_text(found["text"], {"train.lr": None, "method.rank": None})
    assert "train" not in back["text"] and back["settings"]["train.lr"] is None
    assert checked_text("", {"train.lr": None})["text"] == ""


def test_another_method_drops_the_fields_of_the_first() -> None:
    text = checked_text("data: builtin:reviews\nmethod: {name: lora, rank: 4}\n", {"method": "bitfit"})
    assert not text["problems"] and text["settings"]["method.name"] == "bitfit"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {lr: fast}", "train.lr"),
        ("trian: {lr: 1}", "trian"),
        ("a: [", "no valid YAML"),
        ("[1, 2]", "a recipe is a mapping"),
        ("data: x\ndata: y", "data"),
        ("method: nothing", "nothing"),
        ("a: " + "[" * 100, "YAML"),
    ],
)
def test_mistakes_are_the_ones_of_the_command_line(text: str, said: str) -> None:
    found = checked_text(text, {})
    assert found["problems"] and said in found["problems"][0]
    assert found["text"] == text


def test_a_saved_recipe_trains_under_its_name(tmp_path: Path) -> None:
    file, arguments = save("data: builtin:reviews\nmethod: bitfit\n", "my run", tmp_path)
    assert arguments == ["train", str(file)]
    assert RunConfig.load(file).run == str(tmp_path / "my run")
    (tmp_path / "my run").mkdir()
    with pytest.raises(InputError, match="already"):
        save("data: builtin:reviews\n", "my run", tmp_path)
    with pytest.raises(ConfigError):
        save("data: builtin:reviews\ntrain: {lr: -1}\n", "other", tmp_path)
    assert not (tmp_path / "recipes" / "other.yaml").exists()


def test_the_form_has_every_key_of_a_recipe() -> None:
    found = form()
    settings = checked_text("data: builtin:reviews\n", {})["settings"]
    for block, fields in found["blocks"].items():
        keys = {key.split(".")[1] for key in settings if key.startswith(f"{block}.")}
        assert keys <= {field["key"] for field in fields}, block
        assert all(field["help"] for field in fields), block
    methods = {each["name"]: each for each in found["families"]["method"]}
    assert {field["key"] for field in methods["lora"]["fields"]} >= {"rank", "alpha", "dropout", "targets"}
    schedule = next(field for field in found["blocks"]["train"] if field["key"] == "schedule")
    assert "cosine" in schedule["choices"] and schedule["default"] == "cosine"


@pytest.mark.parametrize(
    "text",
    [
        "data: builtin:reviews\nmethod: bitfit\n",
        "data: {path: 'my file.csv', format: {name: classification, prompt: 'Is \"{text}\" good: yes?'}}\n"
        "method: {name: lora, rank: 4, targets: [q_proj, v_proj]}\ntrain: {lr: 3.0e-4, packing: false, steps: null}\n",
        "data: builtin:reviews\nrun: '2024'\nmodel: {path: builtin, quantize: none}\n",
    ],
)
def test_the_command_trains_what_the_recipe_says(text: str) -> None:
    words = shlex.split(checked_text(text, {})["command"])
    assert words[:2] == ["luthier", "train"]
    assert RunConfig.load(None, words[2:]) == config_of(text)
