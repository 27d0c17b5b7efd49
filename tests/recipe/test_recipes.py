"""The shipped recipes: every hyperparameter as the mission gives it, and none of the faults they are known for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.errors import InputError, MissingExtra
from luthier.data.batches import micro_batches
from luthier.data.encode import encode
from luthier.data.prepare import load
from luthier.models.load import parameter_counts
from luthier.pipeline.evaluate import open_run
from luthier.pipeline.prepare import on_this_machine
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.rendering.chat_template import Template
from luthier.rendering.row import IGNORED
from luthier.runs.folder import RunFolder
from luthier.training.settings import total_steps
from tests.conftest import ROOT, alpaca_rows, build_tokenizer, luthier, review_rows, write_jsonl

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
DEEPSEEK, QWEN = ROOT / "recipes" / "deepseek-llm-7b-imdb.yaml", ROOT / "recipes" / "qwen2-0.5b-instruct.yaml"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_without_a_note_and_is_the_same_when_it_is_written(recipe: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    config = RunConfig.load(recipe, notes=notes)
    written = tmp_path / recipe.name
    written.write_text(config.dump(), encoding="utf-8")
    assert RunConfig.load(written) == config and notes == []


def test_deepseek_has_every_hyperparameter_of_the_mission() -> None:
    config = RunConfig.load(DEEPSEEK)
    model, data, lora, run = config.model, config.data, config.method.model_dump(), config.train
    assert model.path == "deepseek-ai/deepseek-llm-7b-base"
    assert (model.quantize, model.compute_dtype) == ("nf4", "float16")
    assert (data.path, data.split, data.validation, data.limit, data.validation_limit, data.seed) == (
        "stanfordnlp/imdb",
        "train",
        "test",
        500,
        100,
        42,
    )
    assert (lora["rank"], lora["alpha"], lora["targets"], lora["dropout"], lora["bias"]) == (
        8,
        32,
        ("q_proj", "v_proj"),
        0.05,
        "none",
    )
    assert (run.lr, run.micro_batch, run.batch_size, run.epochs) == (3e-4, 1, 8, 0.5)
    assert (run.weight_decay, run.precision, run.max_length, run.log_every) == (0.01, "fp16", 512, 50)
    assert run.save_every is None and run.evaluate_every is None, "every epoch"


def test_qwen_has_every_hyperparameter_of_the_mission() -> None:
    config = RunConfig.load(QWEN)
    lora, run = config.method.model_dump(), config.train
    assert (config.model.path, config.model.quantize, config.model.int8_threshold) == ("Qwen/Qwen2-0.5B", "int8", 6.0)
    assert config.model.device == "auto"
    assert (config.data.validation, config.data.seed) == (0.1, 42)
    assert (lora["rank"], lora["alpha"], lora["dropout"]) == (8, 32, 0.1)
    assert set(lora["targets"]) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (run.micro_batch, run.batch_size, run.epochs, run.lr) == (4, 16, 2, 1e-4)
    assert (run.log_every, run.save_every, run.gradient_checkpointing) == (10, 100, True)


def counts(config: RunConfig, model: Any) -> tuple[int, int]:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return parameter_counts(config.method.attach(AutoModelForCausalLM.from_config(model), steps=1))


@pytest.mark.slow
def test_trainable_parameters_and_steps_are_the_expected() -> None:
    from tests.methods.parity.test_reference import deepseek, qwen2_half_billion

    first, second = RunConfig.load(DEEPSEEK), RunConfig.load(QWEN)
    assert counts(first, deepseek()) == (3_932_160, 6_914_297_856)
    assert counts(second, qwen2_half_billion()) == (4_399_104, 498_431_872)
    assert total_steps(first.train, 500) == 32, "half an epoch of 500 rows, 8 a step"
    assert total_steps(second.train, 900) == 2 * 57, "two epochs of ceil(900 / 16) steps"


def imdb_like(tmp_path: Path) -> Path:
    """Sorted by label and often too long, as IMDB is."""
    folder = tmp_path / "imdb"
    folder.mkdir()
    rows = [
        {"text": row["text"] + " and so on" * (400 if i % 3 else 1), "label": row["label"]}
        for i, row in enumerate(review_rows(1200))
    ]
    write_jsonl(folder / "train.jsonl", sorted(rows, key=lambda row: row["label"]))
    write_jsonl(folder / "test.jsonl", rows[:300])
    return folder


@pytest.mark.slow
def test_deepseek_runs_on_a_stand_in_and_hides_none_of_the_known_faults(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = luthier(
        "train",
        DEEPSEEK,
        f"model={model_folder('llama')}",
        "model.quantize=none",
        "train.precision=fp32",
        f"data={imdb_like(tmp_path)}",
        "train.max_length=96",
        f"run={run}",
    )
    assert done.returncode == 0, done.stderr
    folder = RunFolder(run)
    history = [record for record in folder.history() if "loss" in record]
    assert len(history) == 32, "pitfall 5 of the step count: 500 rows, batch 1, accumulation 8, half an epoch"
    assert {record["targets"] for record in history if record["step"] < 32} != {0}
    data = json.loads(folder.data.read_text())
    assert data["train"]["kept"] == 500 and data["validation"]["kept"] == 100
    assert min(data["train"]["labels"].values()) > 200, "pitfall 4: IMDB is sorted, so rows must be shuffled first"
    assert data["train"]["cut"] > 250 and data["train"]["longest"] <= 96
    # Pitfall 3: the label must be in the learned text, also of rows that were cut.
    answers = data["train"]["learned"] / data["train"]["kept"]
    assert answers > 2, "each row learns its label and the end token"
    result = json.loads(folder.result.read_text())
    assert result["steps"] == 32 and result["tuned"]["loss"]["value"] < result["base"]["loss"]["value"]
    assert (run / "adapter" / "adapter_model.safetensors").is_file() and (run / "adapter" / "tokenizer.json").is_file()
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-000032"], "pitfall 27: saved at the end"


def rows_of(recipe: Path, overrides: list[str], tokenizer: Any, max_length: int) -> Any:
    config = RunConfig.load(recipe, overrides)
    data = load(config.data, config.task)
    encode(data, Template(tokenizer), config.data, max_length)
    return config, data


@pytest.mark.slow
def test_what_deepseek_learns_is_the_label_and_the_end_and_nothing_else(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token  # as deepseek-llm-7b-base ships
    config, data = rows_of(DEEPSEEK, [f"data={imdb_like(tmp_path)}"], tokenizer, 96)
    learned = {tokenizer.decode([label for label in row.labels if label != IGNORED]) for row in data.rows}
    assert learned == {"positive</s>", "negative</s>"}, (
        "pitfalls 1, 2, 3: no pads, no prompt, end token, label never cut"
    )
    micro = micro_batches(data.rows.lengths[:8], micro_batch=1, by_length=True)
    assert [len(rows) for rows in micro] == [1] * 8, "pitfall 5: one row a pass, no padding at all"
    batch = data.task.collate([data.rows[i] for i in micro[0] + micro[7]], tokenizer.pad_token_id)
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert config.train.rows_per_pass == 1


@pytest.mark.slow
def test_qwen_runs_on_a_stand_in_with_its_own_split_and_curve(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    run, file = tmp_path / "run", write_jsonl(tmp_path / "alpaca.jsonl", alpaca_rows(200))
    done = luthier(
        "train",
        QWEN,
        f"model={model_folder('qwen2')}",
        "model.quantize=none",
        f"data={file}",
        f"run={run}",
        "train.save_every=5",
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(RunFolder(run).data.read_text())
    assert (data["train"]["kept"], data["validation"]["kept"]) == (180, 20), "pitfall 25: a split where there is none"
    history = [record for record in RunFolder(run).history() if "loss" in record]
    assert len(history) == 2 * 12 and history[-1]["loss"] < history[0]["loss"]
    assert "step 10/24" in done.stdout and "step 20/24" in done.stdout, "pitfall 29: logged often enough for a curve"
    assert (run / "loss.png").stat().st_size > 5000
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["task_type"]) == (8, 32, "CAUSAL_LM"), "pitfall 24"
    names = {path.name for path in RunFolder(run).checkpoints.iterdir()}
    assert "step-000024" in names


def test_without_bitsandbytes_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    for recipe, override in ((DEEPSEEK, "train.precision=fp32"), (QWEN, "seed=0")):
        with pytest.raises(MissingExtra, match=r"pip install 'bitsandbytes>=0.50', or model.quantize=none"):
            on_this_machine(RunConfig.load(recipe, [override]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU serves fp16")
def test_fp16_on_a_cpu_is_refused_and_not_ignored() -> None:
    with pytest.raises(InputError, match="in silence"):  # pitfall 16
        on_this_machine(RunConfig.load(DEEPSEEK))
    monkey = RunConfig.load(DEEPSEEK, ["train.precision=fp32"])
    with pytest.raises((MissingExtra, InputError)):  # pitfalls 16 and 38: no GPU is no crash
        on_this_machine(monkey)


SMALL = ["model.compute_dtype=auto", "train.max_length=64", "data.limit=80", "data.validation_limit=20"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU serves fp16")
@pytest.mark.parametrize(
    ("recipe", "kind", "packing", "here"),
    [
        (DEEPSEEK, "llama", "Linear4bit", [*SMALL, "train.precision=fp32"]),
        (DEEPSEEK, "llama", "Linear4bit", [*SMALL, "train.precision=bf16"]),
        (QWEN, "qwen2", "Linear8bitLt", []),
    ],
    ids=["deepseek-fp32", "deepseek-bf16", "qwen"],
)
def test_both_recipes_run_with_their_quantization(
    recipe: Path, kind: str, packing: str, here: list[str], model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """On a CPU bitsandbytes serves both, with what the refusal of fp16 there tells to set."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    data = imdb_like(tmp_path) if recipe is DEEPSEEK else write_jsonl(tmp_path / "alpaca.jsonl", alpaca_rows(60))
    config = RunConfig.load(
        recipe,
        [
            f"model={model_folder(kind)}",
            f"data={data}",
            f"run={tmp_path / 'run'}",
            "train.steps=8",
            "train.lr=1e-2",
            "evaluate.rows=20",
            "evaluate.generate=2",
            *here,
        ],
    )
    result = train(config)
    losses = [record["loss"] for record in RunFolder(tmp_path / "run").history() if "loss" in record]
    assert sum(losses[-2:]) < sum(losses[:2]) and result["tuned"]["loss"]["value"] < result["base"]["loss"]["value"]
    loaded, _ = open_run(tmp_path / "run")
    adapted = [type(module.base_layer).__name__ for module in loaded.model.modules() if hasattr(module, "lora_A")]
    assert set(adapted) == {packing} and len(adapted) == (4 if recipe is DEEPSEEK else 14)


@pytest.mark.slow
def test_trained_weights_are_float32_under_half_precision(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Pitfall 18: half-precision weights lose small updates, and AMP cannot unscale their gradients."""
    from transformers import AutoModelForCausalLM

    for method in ("lora", "full"):
        config = RunConfig.load(None, [f"method={method}"])
        base = AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype=torch.bfloat16)
        model = config.method.attach(base, steps=1)
        kinds = {p.dtype for p in model.parameters() if p.requires_grad}
        assert kinds == {torch.float32}
    file = write_jsonl(tmp_path / "a.jsonl", alpaca_rows(20))
    result = train(
        RunConfig.load(
            None,
            [
                f"model={model_folder('llama')}",
                f"data={file}",
                f"run={tmp_path / 'r'}",
                "model.dtype=bfloat16",
                "train.precision=bf16",
                "train.steps=20",
                "train.lr=1e-2",
                "evaluate.generate=0",
            ],
        )
    )
    assert result["tuned"]["loss"]["value"] < result["base"]["loss"]["value"]


@pytest.mark.slow
def test_checkpointing_leaves_gradients_and_generation_working(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Pitfalls 8, 21, 22: gradients through frozen inputs, no warnings of old names, a cache again afterwards."""
    file = write_jsonl(tmp_path / "a.jsonl", alpaca_rows(30))
    result = train(
        RunConfig.load(
            QWEN,
            [
                f"model={model_folder('qwen2')}",
                "model.quantize=none",
                f"data={file}",
                f"run={tmp_path / 'r'}",
                "train.lr=1e-2",
            ],
        )
    )
    assert result["tuned"]["loss"]["value"] < result["base"]["loss"]["value"] - 0.05
    assert "exact_match" in result["tuned"], "answers were generated after training with checkpointing"


@pytest.mark.slow
@pytest.mark.shared
def test_both_recipes_run_on_real_weights_and_real_data(shared: Path, tmp_path: Path) -> None:
    stories = shared / "weights" / "stories260K-hf"
    for recipe, data, more in (
        (DEEPSEEK, shared / "imdb", ["train.precision=fp32", "evaluate.rows=20", "evaluate.generate=20"]),
        (
            QWEN,
            shared / "llamafactory_demos" / "alpaca_en_demo.json",
            ["data.on_long_row=skip", "train.steps=10", "evaluate.rows=20", "evaluate.generate=0"],
        ),
    ):
        run = tmp_path / recipe.stem
        done = luthier("train", recipe, f"model={stories}", "model.quantize=none", f"data={data}", f"run={run}", *more)
        assert done.returncode == 0, done.stderr
        losses = [record["loss"] for record in RunFolder(run).history() if "loss" in record]
        assert sum(losses[-4:]) < sum(losses[:4])
