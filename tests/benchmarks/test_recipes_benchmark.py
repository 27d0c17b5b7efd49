"""benchmarks/recipes: both ways to train learn the same, both ways to measure find the same, and tables pair by row."""

from pathlib import Path

import pytest
from benchmarks.recipes import arm, run, table

from luthier.recipe.config import RunConfig
from tests.conftest import ROOT

SMALL = [
    "model=builtin",
    "model.compute_dtype=auto",
    "data=builtin:reviews",
    "data.split=train",
    "data.validation=heldout",
    "data.format=auto",
    "train.precision=fp32",
    "data.limit=16",
    "train.epochs=1",
    "data.validation_limit=12",
    "evaluate.generate=0",
    "evaluate.forgetting=false",
    "method.dropout=0",
]


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "nf4", "int8"])
def test_trainer_and_luthier_learn_the_same_from_the_same_steps(quantize: str, tmp_path: Path) -> None:
    if quantize != "none":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    recipe, words = str(ROOT / "recipes" / run.RECIPES["deepseek"].file), [*SMALL, f"model.quantize={quantize}"]
    ours, theirs = arm.luthier(recipe, tmp_path / "ours", words), arm.trainer(recipe, tmp_path / "theirs", words)
    assert ours["steps"] == theirs["steps"] == 2 and ours["tokens"] == theirs["tokens"]
    assert ours["trainable"] == theirs["trainable"]
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-3)
    assert ours["losses"][1] != pytest.approx(ours["losses"][0], abs=1e-3)
    found = [[each["loss_sum"] for each in made["records"]["tuned"]] for made in (ours, theirs)]
    alone = arm.plain(recipe, tmp_path / "theirs", words)["records"]["plain"]
    assert found[0] == pytest.approx(found[1], rel=1e-5 if quantize != "int8" else 2e-3)
    # In evaluation LLM.int8() rounds a batch by its largest values, and on a CPU with avx512_bf16 bitsandbytes repacks
    # 4-bit weights and rounds to bfloat16.
    assert [each["loss_sum"] for each in alone] == pytest.approx(found[1], rel=1e-5 if quantize == "none" else 5e-3)
    if quantize == "none":
        assert [each["chosen"] for each in alone] == [each["chosen"] for each in theirs["records"]["tuned"]]


@pytest.mark.parametrize("name", run.RECIPES)
def test_every_arm_is_a_valid_recipe(name: str) -> None:
    recipe = run.RECIPES[name]
    for _, words in recipe.arms().values():
        config = RunConfig.load(ROOT / "recipes" / recipe.file, [*recipe.here, *words])
        assert config.model.quantize in (recipe.quantized, "none")
    assert set(recipe.arms()) <= set(table.TITLES)


def test_differences_are_paired_by_row() -> None:
    def line(right: str) -> dict[str, object]:
        return {"records": {"tuned": {"right": right, "loss_sum": [1.0, 3.0], "targets": [1, 3]}}}

    one, other = line("1" * 50 + "0" * 50), line("1" * 60 + "0" * 40)
    found = table.apart(one, other, "accuracy")
    assert found.startswith("10.0 (") and "-" not in found, "ten rows more, and no row less"
    assert table.apart(one, one, "loss") == "0.000 (0.000 to 0.000)"
