"""LoRA on fused experts through a whole run: trained, stopped and resumed, on a packed base, merged and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file

from luthier.core.errors import Stopped
from luthier.core.events import SILENT, Progress
from luthier.pipeline.export import export
from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.recipe.parse import parse_export
from tests.conftest import alpaca_rows, build_tokenizer, write_jsonl
from tests.training.test_training import StopAt, curve, same


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSeek-V3 with one dense and one routed block, whose layers are whole blocks of 64 weights."""
    folder = tmp_path_factory.mktemp("mixture") / "deepseek"
    torch.manual_seed(1)
    config = t.DeepseekV3Config(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=64,
        kv_lora_rank=64,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    t.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def start(model: Path, data: Path, run: Path, *more: str, progress: Progress = SILENT) -> dict[str, Any]:
    common = ["method=lora", "method.rank=4", "task=chat", "train.batch_size=4", "train.lr=2e-2", "evaluate.generate=0"]
    common += ["data.validation=none", "evaluate.before=false", "train.save_every=99", "train.steps=6"]
    return train(
        RunConfig.load(None, [*common, f"model={model}", f"data={data}", f"run={run}", *more]), progress=progress
    )


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_run_on_experts_resumes_bit_for_bit_and_merges(mixture: Path, tmp_path: Path, quantize: str) -> None:
    if quantize != "none":
        pytest.importorskip("bitsandbytes")
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(24))
    settings = [f"model.quantize={quantize}", "train.packing=true"]
    start(mixture, data, tmp_path / "whole", *settings)
    with pytest.raises(Stopped):
        start(mixture, data, tmp_path / "run", *settings, progress=StopAt(3))
    result = start(mixture, data, tmp_path / "run", *settings)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert same(tmp_path / "run", tmp_path / "whole")
    adapter = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    moved = [n for n, b in adapter.items() if ".experts." in n and ".lora_B." in n and b.any()]
    assert len(moved) == 2  # gate_up_proj and down_proj of the one routed block
    beside = [n for n in adapter if "mlp.shared_experts." in n]
    assert bool(beside) is (quantize == "none"), "PEFT's LoRA of a weight does not read a packed one"
    assert result["memory"]["planned"] > 0
    report = export(tmp_path / "run", parse_export("merged", []))
    assert report["parity"][0]["held"]
    plain = t.AutoModelForCausalLM.from_pretrained(tmp_path / "run/exports/merged")
    assert not any("lora" in name for name, _ in plain.named_parameters())
    settings_file = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert any(name.endswith("experts.gate_up_proj") for name in settings_file["target_parameters"])
