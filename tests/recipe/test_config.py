"""Recipes: one typed object, every mistake at once, other tools' spellings understood."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from luthier.core.errors import ConfigError, InputError
from luthier.recipe.config import RunConfig


def test_all_mistakes_are_reported_at_once_with_path_and_suggestion(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("modl: x\nmethod: {name: lora, rnk: 4, alpha: 0}\ntrain: {lr: fast, schedule: cosin}\n")
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(recipe)
    text = str(caught.value)
    assert str(recipe) in text and "5 mistakes" in text and text.count("\n  - ") == 5
    assert "modl: unknown key (did you mean 'model'?)" in text
    assert "method.rnk: unknown key (did you mean 'rank'?)" in text
    assert "method.alpha: should be greater than 0, not 0" in text
    assert "train.lr: " in text and "'fast'" in text
    assert "train.schedule: " in text and "did you mean 'cosine'?" in text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method=lorra", "unknown method 'lorra' (did you mean 'lora'?)"),
        ("data.format=alpacca", "unknown format 'alpacca' (did you mean 'alpaca'?)"),
        ("task=chatt", "unknown task 'chatt' (did you mean 'chat'?)"),
        ("train.batch_sise=4", "train.batch_sise: unknown key (did you mean 'batch_size'?)"),
        ("method.rank=0", "method.rank: should be greater than 0, not 0"),
        ("data.validation=1.5", "data.validation: should be a file"),
        ("nonsense", "'nonsense' is no override; write key.path=value"),
        ("train.lr.x=1", "train.lr"),
        ("model=[1", "model"),
    ],
)
def test_each_mistake_names_key_and_fix(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(None, [override])
    assert said in str(caught.value)


def test_spellings_of_peft_and_training_arguments_are_read_and_said() -> None:
    notes: list[str] = []
    config = RunConfig.load(
        None,
        ["method.r=4", "method.lora_alpha=8", "method.target_modules=q_proj,v_proj", "train.learning_rate=1e-4"],
        notes,
    )
    assert (
        config.method.model_dump() | {"rank": 4, "alpha": 8.0, "targets": ("q_proj", "v_proj")}
        == config.method.model_dump()
    )
    assert config.train.lr == 1e-4
    assert set(notes) == {
        "r is read as rank",
        "lora_alpha is read as alpha",
        "target_modules is read as targets",
        "learning_rate is read as lr",
    }


def test_a_setting_given_under_both_spellings_is_refused() -> None:
    with pytest.raises(ConfigError, match="same setting"):
        RunConfig.load(None, ["method.r=4", "method.rank=8"])


def test_the_resolved_recipe_gives_the_same_run(tmp_path: Path) -> None:
    config = RunConfig.load(
        None,
        [
            "model=org/name",
            "data=x.csv",
            "data.format.name=classification",
            "data.format.names=[a, b]",
            "train.steps=7",
            "method=full",
            "task=classify",
            "data.validation=0.2",
        ],
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(config.dump())
    assert RunConfig.load(path) == config
    assert yaml.safe_load(config.dump())["method"] == {"name": "full"}


def test_overrides_reach_into_a_recipe_that_names_things_briefly(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: org/name\ndata: rows.jsonl\nmethod: lora\n")
    config = RunConfig.load(recipe, ["method.rank=3", "model.dtype=float32", "data.limit=5", "data=other.jsonl"])
    assert (config.method.rank, config.model.path, config.model.dtype) == (3, "org/name", "float32")  # type: ignore[attr-defined]
    assert (config.data.path, config.data.limit) == ("other.jsonl", 5)


def test_another_method_drops_the_fields_of_the_recipes_own(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("method: {name: lora, rank: 4}\n")
    assert RunConfig.load(recipe, ["method=full"]).method.name == "full"
    assert RunConfig.load(recipe, ["method=lora"]).method.rank == 4  # type: ignore[attr-defined]


def test_a_micro_batch_must_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match="no multiple of micro_batch"):
        RunConfig.load(None, ["train.batch_size=10", "train.micro_batch=4"])
    assert RunConfig.load(None, ["train.batch_size=10"]).train.rows_per_pass == 5


def test_a_recipe_that_is_not_there_or_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"did you mean 'mine\.yaml'"):
        RunConfig.load(tmp_path / "mime.yaml")
    with pytest.raises(InputError, match="no valid YAML"):
        RunConfig.load(tmp_path / "mine.yaml")


def test_configuration_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        RunConfig().seed = 3  # type: ignore[misc]
