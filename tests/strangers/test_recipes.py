"""Recipes and command lines with lies, typing errors and absurd numbers: one error with its key, nothing trained."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from luthier.cli.main import app
from luthier.cli.terminal.arguments import split_arguments
from luthier.cli.terminal.explain import KINDS, explanation
from luthier.core.errors import ConfigError, InputError
from luthier.core.registry import Config
from luthier.data.settings import MixSource
from luthier.evaluation.metrics.base import EVALUATIONS
from luthier.evaluation.records.settings import JudgeConfig
from luthier.exports.base import EXPORTS
from luthier.recipe.config import FAMILIES, RunConfig
from luthier.recipe.parse import parse_export

BLOCKS: dict[str, type[Config]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Config) and name != "method"
}


def every_block() -> Iterator[tuple[str, type[BaseModel]]]:
    """Every class whose fields can stand in a recipe or behind an export."""
    yield "", RunConfig
    yield from BLOCKS.items()
    yield from (("evaluate.judge", JudgeConfig), ("data.mix", MixSource))
    for kind, family in KINDS.items():
        yield from ((f"{kind} {name}", family.get(name)) for name in family.names())


def shown_defaults() -> Iterator[Any]:
    """(what is typed before, key=default as help shows it) for each key."""
    pages = [((), explanation(name, "")) for name in RunConfig.model_fields if name not in FAMILIES]
    for kind, family in FAMILIES.items():
        key = "data.format" if kind == "format" else kind
        for name in family.names():
            needed = (f"{key}.type=boft",) if name == "peft" else ()
            pages.append(((f"{key}={name}", *needed), explanation(kind, name)))
    for before, page in pages:
        for key, default in re.findall(r"(?m)^([\w.]+) = (.*)$", page):
            if "." in key or key in RunConfig.model_fields:  # formulas of the papers look alike
                yield pytest.param(before, f"{key}={default}", id="-".join((*before, key)))


@pytest.mark.parametrize(("before", "override"), list(shown_defaults()))
def test_a_shown_default_can_be_typed_and_means_the_same(before: tuple[str, ...], override: str) -> None:
    (typed,) = shlex.split(override)
    assert RunConfig.load(None, [*before, typed]) == RunConfig.load(None, before)


def test_every_key_with_a_default_shows_it() -> None:
    shown = {str(each.values[1]).partition("=")[0] for each in shown_defaults()}
    for name, block in BLOCKS.items():
        assert {f"{name}.{key}" for key in block.model_fields} <= shown
    assert {"seed", "run", "method.rank", "task.labels", "data.format.names"} <= shown


@pytest.mark.parametrize("name", EXPORTS.names())
def test_a_shown_default_of_an_export_can_be_typed_too(name: str) -> None:
    needed = ["repo=me/mine"] if name == "hub" else []
    for key, default in re.findall(r"(?m)^(\w+) = (.*)$", explanation("export", name)):
        assert parse_export(name, [*needed, *shlex.split(f"{key}={default}")]) == parse_export(name, needed), key


def test_none_means_none_and_auto_means_auto() -> None:
    assert RunConfig.load(None, ["data.validation=none"]).data.validation == "none"
    assert RunConfig.load(None, ["data.validation=auto"]).data.validation is None
    assert RunConfig.load(None, ["train.patience=none"]).train.patience is None
    with pytest.raises(ConfigError, match=r"train\.lr"):
        RunConfig.load(None, ["train.lr=none"])
    page = explanation("data", "")
    for key in ("validation", "format", "on_long_row", "stratify", "workers"):
        assert f"data.{key} = auto" in page


def numbers(kind: type) -> Iterator[Any]:
    """Each key that takes a number of this kind."""
    for name, block in every_block():
        for key, field in block.model_fields.items():
            if re.search(rf"\b{kind.__name__}\b", str(field.annotation)):
                yield pytest.param(block, key, field, id=f"{name} {key}".strip())


def _refuses(block: type[BaseModel], key: str, field: FieldInfo, value: object) -> bool:
    value = (value, value) if "tuple" in str(field.annotation) else value
    needed = {name: "a" for name, other in block.model_fields.items() if other.is_required()}
    try:
        block.model_validate({**needed, key: value})
    except ValueError as error:
        return key in str(error)
    return False


@pytest.mark.parametrize(("block", "key", "field"), list(numbers(int)))
def test_no_whole_number_is_without_bounds(block: type[BaseModel], key: str, field: FieldInfo) -> None:
    assert _refuses(block, key, field, 10**21)
    assert _refuses(block, key, field, -(10**21))
    if key != "seed" and block.__name__ != "Freeze":
        assert _refuses(block, key, field, -1)


@pytest.mark.parametrize(("block", "key", "field"), list(numbers(float)))
def test_no_number_may_be_infinite_or_nan(block: type[BaseModel], key: str, field: FieldInfo) -> None:
    assert _refuses(block, key, field, float("inf"))
    assert _refuses(block, key, field, float("nan"))
    assert _refuses(block, key, field, -1.0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs=1e308", "train.epochs: should be less than or equal to 1000000, not 1e+308"),
        ("train.steps=1" + "0" * 21, "train.steps: a whole number this large cannot be used"),
        ("train.betas=[5,5]", "train.betas.0: should be less than 1, not 5"),
        ("train.lr=.inf", "train.lr: should be a finite number"),
        ("data.weight=1e308", "data.weight: should be less than"),
        ("seed=" + "9" * 5000, "seed: Exceeds the limit"),
        ("seed=0x" + "f" * 5000, "seed: a whole number this large cannot be used"),
        ("run=2024-02-31", "run: day is out of range"),
        ("data.mix=" + "[" * 20_000, "data.mix: nested more than 50 levels deep"),
        (".".join(["data"] * 20_000) + "=1", "a key has at most 8 parts, this one has 20000"),
        ("train={lr: 1e-4, lr: 1e-3}", "train: the key 'lr' is set in line 1 and again in line 1"),
    ],
    ids=lambda value: value[:20],
)
def test_absurd_overrides_are_one_error_with_their_key(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"one mistake|2 mistakes") as caught:
        RunConfig.load(None, [override])
    assert said in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: " + "[" * 20_000 + "]" * 20_000, "nested more than 50 levels deep"),
        ("a:\n" + "".join(" " * depth + "a:\n" for depth in range(1, 100)), "nested more than 50 levels deep"),
        ("seed: " + "9" * 5000, "line 1"),
        ("train:\n  lr: 1e-4\n  steps: 2\n  lr: 1e-3\n", "the key 'lr' is set in line 2 and again in line 4"),
        ("data: builtin:reviews\nseed: 1\ndata: other.jsonl\n", "the key 'data' is set in line 1 and again in line 3"),
        ("# " + "x" * 2**20 + "\nseed: 1\n", "too much for a recipe"),
    ],
    ids=["deep flow", "deep block", "digits", "twice", "twice above", "large"],
)
def test_absurd_recipe_files_are_one_error_with_their_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        RunConfig.load(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_anchors_and_merges_of_yaml_are_no_keys_set_twice(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("train: &t {lr: 1e-4, steps: 2}\nevaluate: {rows: 3}\nseed: 1\n")
    assert RunConfig.load(path).train.steps == 2
    path.write_text("data:\n  path: a.jsonl\n  mix:\n  - &m {path: b.jsonl, weight: 2}\n  - {<<: *m, weight: 3}\n")
    assert [each.weight for each in RunConfig.load(path).data.mix] == [2, 3]


def test_a_file_whose_name_holds_an_equals_sign_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_arguments(["train.steps=1"]) == (None, ["train.steps=1"])
    assert split_arguments(["./r=1.yaml"])[0] == Path("r=1.yaml")  # also where it is missing: no key begins so
    Path("r=1.yaml").write_text("seed: 1\n")
    assert split_arguments(["r=1.yaml", "train.steps=1"]) == (Path("r=1.yaml"), ["train.steps=1"])


@pytest.mark.parametrize("name", ["a=b.jsonl", "#1.jsonl", "[x].jsonl", "a: b.jsonl", "yes", "2024", "1e5", "null"])
def test_an_option_is_taken_as_it_stands(name: str) -> None:
    path, overrides = split_arguments([], {"data": name, "model": name})
    config = RunConfig.load(path, overrides)
    assert (config.data.path, config.model.path) == (name, name)


@pytest.mark.parametrize(
    ("method", "width"), [("lora", 5), ("adalora", 9), ("adalora", 5), ("adalora", 1), ("lora", 0)]
)
def test_the_fix_for_a_rank_works(method: str, width: int) -> None:
    class Narrow:
        in_features, out_features = width, 100

    settings = [f"method={method}", "method.rank=50"]
    config = RunConfig.load(None, settings).method
    with pytest.raises(InputError, match="is more than the") as caught:
        config.check_layers({"a": Narrow()})  # type: ignore[attr-defined]
    if width == 0:
        assert "no rank fits" in caught.value.fix
    else:
        fixed = RunConfig.load(None, [*settings, *caught.value.fix.split()]).method
        assert fixed.name == "lora" or fixed.rank <= width  # type: ignore[attr-defined]


def test_every_evaluation_can_be_explained() -> None:
    assert all(explanation("evaluation", name) for name in EVALUATIONS.names())


def test_every_number_of_the_command_line_has_bounds() -> None:
    """`compare --seeds 1000000000000000000000` was an OverflowError, and `--temperature nan` was taken."""
    checked_by_choose = {"variants", "devices", "rows"}
    numbers = {}
    for command in app.registered_commands:
        assert command.callback
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            if name not in checked_by_choose and get_origin(hint) is Annotated:
                kinds = {hint.__origin__, *get_args(hint.__origin__)}
                numbers |= {f"{command.callback.__name__} {name}": hint.__metadata__[0]} if kinds & {int, float} else {}
    assert len(numbers) > 10
    assert not [name for name, option in numbers.items() if option.min is None or option.max is None]
