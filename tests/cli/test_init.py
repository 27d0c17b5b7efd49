"""`luthier init`: a recipe from four answers, at a terminal or from options."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.cli.terminal import recipe_writer
from luthier.core import language
from luthier.recipe.config import RunConfig
from tests.conftest import luthier, review_rows, use_catalog, write_jsonl

NOTHING = dict.fromkeys(("data", "model", "method", "task", "run"))


def test_options_answer_everything_and_the_recipe_is_valid(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "reviews.jsonl", review_rows(60))
    options = ["--data", "reviews.jsonl", "--model", "builtin", "--method", "bitfit", "--run", "runs/mine"]
    done = luthier("init", "mine.yaml", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = RunConfig.load(tmp_path / "mine.yaml")
    assert (config.method.name, config.run, config.data.path) == ("bitfit", "runs/mine", "reviews.jsonl")
    assert config.task is not None and config.task.name == "classify"
    for command in ("check", "plan", "train"):
        assert f"luthier {command} mine.yaml" in done.stdout
    before = (tmp_path / "mine.yaml").read_text()
    again = luthier("init", "mine.yaml", *options, cwd=tmp_path)
    assert again.returncode == 2 and "nothing is overwritten" in again.stderr
    assert (tmp_path / "mine.yaml").read_text() == before


def test_without_a_terminal_what_is_missing_is_an_error(tmp_path: Path) -> None:
    done = luthier("init", "--data", "builtin:reviews", cwd=tmp_path)
    assert done.returncode == 2 and "--model, --method, --run" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--data", "nowhere.csv", "no such file"), ("--method", "loar", "did you mean 'lora'?")],
)
def test_a_wrong_answer_is_one_error_and_nothing_is_written(option: str, value: str, said: str, tmp_path: Path) -> None:
    options = {"--data": "builtin:reviews", "--model": "builtin", "--method": "lora", "--run": "runs/a"} | {
        option: value
    }
    done = luthier("init", *(word for each in options.items() for word in each), cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and not list(tmp_path.iterdir())


def test_questions_have_defaults_from_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", review_rows(60))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    asked: list[str] = []

    def ask(question: str, **options: str) -> str:
        asked.append(options["default"])
        return options["default"]

    monkeypatch.setattr(recipe_writer.Prompt, "ask", ask)
    recipe_writer.write_recipe(Path("recipe.yaml"), NOTHING)
    assert asked == ["a.jsonl", "base", "lora", "runs/recipe-lora"]
    assert RunConfig.load(tmp_path / "recipe.yaml").run == "runs/recipe-lora"


def test_comments_of_the_recipe_are_in_the_language_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    use_catalog(monkeypatch, {"what to learn; luthier list tasks": "学什么"})
    monkeypatch.setattr(language, "_chosen", ["zh"])
    words = {"data": "a b.jsonl", "model": "builtin", "method": "lora", "task": "auto", "run": "r"}
    text = recipe_writer.recipe_text(words, None)
    assert "task: auto  # 学什么\n" in text and 'path: "a b.jsonl"' in text
