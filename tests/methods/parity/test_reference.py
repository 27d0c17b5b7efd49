"""Our numbers against a reference: by hand, by formula, by PEFT and transformers themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from luthier.methods.base import METHODS
from luthier.models.load import parameter_counts
from luthier.pipeline.evaluate import evaluate, open_run
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.rendering.row import IGNORED, Row
from luthier.tasks.base import TASKS
from tests.conftest import alpaca_rows, model_config, review_rows, write_jsonl


def base(kind: str) -> Any:
    import transformers as t

    torch.manual_seed(2)
    auto = t.AutoModelForMaskedLM if kind == "bert" else t.AutoModelForCausalLM
    return auto.from_config(model_config(kind)).eval()


def classifier(kind: str) -> Any:
    import transformers as t

    config = model_config(kind)
    config.num_labels = 3
    config.pad_token_id = 1
    torch.manual_seed(2)
    return t.AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("task", ["chat", "complete"])
def test_the_loss_is_the_sum_over_targets_by_hand_and_padding_changes_nothing(kind: str, task: str) -> None:
    model = base(kind)
    rows = [Row([5, 6, 7, 8, 9, 1], [IGNORED, IGNORED, 7, IGNORED, 9, 1], ""), Row([5, 9, 1], [IGNORED, 9, 1], "")]
    learn = TASKS.parse(task)
    with torch.no_grad():
        losses, targets = learn.losses(model, learn.collate(rows, 1))
        for row, loss, count in zip(rows, losses, targets, strict=True):
            logp = F.log_softmax(model(torch.tensor([row.ids])).logits[0].double(), -1)
            by_hand = -sum(logp[i - 1, label] for i, label in enumerate(row.labels) if i and label != IGNORED)
            assert float(loss) == pytest.approx(float(by_hand), abs=1e-4)
            assert int(count) == sum(label != IGNORED for label in row.labels[1:]) == row.learned
    batch = learn.collate(rows, 1)
    assert float(learn.losses(model, batch)[0].sum()) == pytest.approx(float(losses.sum()), abs=1e-5)
    assert int(learn.targets(batch)) == int(targets.sum())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "bert"])
def test_a_classifier_reads_the_last_real_token_whatever_the_padding(kind: str) -> None:
    model, learn = classifier(kind), TASKS.parse({"name": "classify", "labels": ["a", "b", "c"]})
    rows = [Row([5, 6, 7, 8, 9, 6], [2], ""), Row([5, 9, 7], [0], "")]
    with torch.no_grad():
        losses, targets = learn.losses(model, learn.collate(rows, 1))
        for row, loss in zip(rows, losses, strict=True):
            logits = model(torch.tensor([row.ids])).logits[0].double()
            assert float(loss) == pytest.approx(float(-F.log_softmax(logits, -1)[row.labels[0]]), abs=1e-5)
    assert targets.tolist() == [1, 1] and int(learn.targets(learn.collate(rows, 1))) == 2


def count(config: Any, method: dict[str, Any], *, classify: bool = False) -> tuple[int, int]:
    import transformers as t

    auto = t.AutoModelForSequenceClassification if classify else t.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
        return parameter_counts(METHODS.parse(method).attach(model, steps=10, classify=classify))


SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def deepseek() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=30,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=102400,
        max_position_embeddings=4096,
    )


def qwen2_half_billion() -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    )


def bert_base() -> Any:
    from transformers import BertConfig

    return BertConfig(num_labels=2)


@pytest.mark.parametrize(
    ("config", "targets", "classify", "trainable", "parameters"),
    [
        (deepseek, ["q_proj", "v_proj"], False, 3_932_160, 6_914_297_856),
        (deepseek, SEVEN, False, 18_739_200, 6_929_104_896),
        (deepseek, "all-linear", False, 18_739_200, 6_929_104_896),
        (qwen2_half_billion, SEVEN, False, 4_399_104, 498_431_872),
        (qwen2_half_billion, ["q_proj", "v_proj"], False, 540_672, 494_573_440),
        (bert_base, ["query", "value"], True, 294_912 + 1_538, None),
    ],
    ids=["deepseek q v", "deepseek seven", "deepseek all-linear", "qwen2 seven", "qwen2 q v", "bert q v + head"],
)
def test_lora_trains_as_many_parameters_as_the_paper_says(
    config: Callable[[], Any], targets: Any, classify: bool, trainable: int, parameters: int | None
) -> None:
    """rank * (in + out) per layer, counted without memory on the meta device."""
    found, total = count(config(), {"name": "lora", "rank": 8, "targets": targets}, classify=classify)
    assert found == trainable
    assert parameters is None or total == parameters


def test_full_trains_everything_and_counts_tied_weights_once() -> None:
    assert count(qwen2_half_billion(), {"name": "full"}) == (494_032_768, 494_032_768)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    from luthier.core.errors import InputError

    METHODS.parse({"name": "lora", "targets": ["q_proj"]}).save(
        METHODS.parse({"name": "lora", "targets": ["q_proj"]}).attach(base("llama"), steps=1), tmp_path
    )
    other = METHODS.parse({"name": "lora", "targets": ["q_proj", "v_proj"]})
    with pytest.raises(InputError, match="4 weights do not match this model"):
        other.restore(other.attach(base("llama"), steps=1), tmp_path)


def test_targets_that_name_no_layer_are_refused_each_with_the_nearest() -> None:
    from luthier.core.errors import InputError

    with pytest.raises(InputError, match=r"no layer is named 'qproj' \(did you mean 'q_proj'\?\)"):
        METHODS.parse({"name": "lora", "targets": ["v_proj", "qproj"]}).attach(base("llama"), steps=1)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_classification_head_comes_back_with_the_run(
    kind: str, method: str, model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "r.jsonl", review_rows(60))
    config = RunConfig.load(
        None,
        [
            f"model={model_folder(kind)}",
            f"data={data}",
            f"method={method}",
            f"run={tmp_path / 'run'}",
            "train.steps=25",
            "train.lr=1e-2",
            "train.head_lr=1e-2",
            "train.warmup=0",
        ],
    )
    result = train(config)
    assert result["task"] == "classify"
    again = evaluate(tmp_path / "run")
    for name in ("base", "tuned"):
        for metric, score in result[name].items():
            assert again[name][metric]["value"] == pytest.approx(score["value"], abs=1e-5), (name, metric)
    assert again["tuned"]["loss"]["value"] < again["base"]["loss"]["value"]
    from safetensors import safe_open

    folder = tmp_path / "run" / ("adapter" if method == "lora" else "model")
    with safe_open(next(folder.glob("*.safetensors")), framework="pt") as stored:
        assert any("score" in key or "classifier" in key for key in stored.keys())  # noqa: SIM118


def test_peft_and_transformers_load_what_a_run_leaves(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    data = write_jsonl(tmp_path / "r.jsonl", alpaca_rows(40))
    ids = torch.tensor([[5, 6, 7, 8]])
    for method in ("lora", "full"):
        run = tmp_path / method
        config = RunConfig.load(
            None,
            [
                f"model={model_folder('qwen2')}",
                f"data={data}",
                f"method={method}",
                f"run={run}",
                "train.steps=5",
                "train.lr=1e-2",
                "evaluate.generate=0",
            ],
        )
        train(config)
        loaded, folder = open_run(run)
        if method == "lora":
            plain = AutoModelForCausalLM.from_pretrained(model_folder("qwen2"), dtype=torch.float32)
            theirs = PeftModel.from_pretrained(plain, run / "adapter").eval()
        else:
            theirs = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32).eval()
        with torch.no_grad():
            assert torch.allclose(theirs(ids).logits, loaded.model(ids).logits, atol=1e-5)
        tokenizer = AutoTokenizer.from_pretrained(folder.weights())
        assert tokenizer.chat_template == loaded.template.tokenizer.chat_template
        settings = GenerationConfig.from_pretrained(folder.weights())
        assert set(settings.eos_token_id) == loaded.template.end_ids, "who serves it elsewhere stops in the same place"
