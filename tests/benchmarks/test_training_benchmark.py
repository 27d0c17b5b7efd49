"""benchmarks/training: what is counted, and how rounds are compared."""

import json

import pytest
import torch
from benchmarks.training import environments, table, work
from benchmarks.training.make import TARGETS
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

WIDE, VOCABULARY, LAYERS, LENGTH, LEARNED = 64, 512, 3, 96, 40


@pytest.fixture
def folder(tmp_path):
    config = Qwen2Config(
        hidden_size=WIDE,
        intermediate_size=160,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "settings.json").write_text(json.dumps({"lora": {"rank": 8}}))
    row = {"input_ids": list(range(LENGTH)), "labels": [-100] * (LENGTH - LEARNED) + [1] * LEARNED}
    (tmp_path / "tokens.json").write_text(json.dumps([row]))
    return tmp_path


def test_needed_flops_are_those_of_torch_less_what_nobody_needs(folder):
    base = Qwen2ForCausalLM.from_pretrained(folder / "model", attn_implementation="eager")
    model = get_peft_model(base, LoraConfig(r=8, target_modules=TARGETS, task_type="CAUSAL_LM"))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(LENGTH)[None]).logits.sum().backward()
    needed = work.needed(folder)
    attention = 3 * LAYERS * 2 * WIDE * LENGTH**2  # torch computes both halves of the square
    head = (LENGTH - LEARNED) * 4 * WIDE * VOCABULARY  # and logits at every place
    assert needed["flops"] + attention + head == pytest.approx(counter.get_total_flops(), rel=1e-3)
    assert (needed["tokens"], needed["learned_tokens"]) == (LENGTH, LEARNED)
    assert needed["weights"] == sum(p.numel() for name, p in model.named_parameters() if "lora" not in name)
    assert needed["lora"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_ratios_are_taken_within_a_round():
    def line(speed, number):
        return {"tokens_per_second": speed, "invocation": 1, "round": number}

    ours, theirs = [line(100, 0), line(50, 1), line(70, 2)], [line(20, 0), line(10, 1)]
    assert table.paired(ours, theirs, table.speedup) == [5, 5]
    assert table.spread([5.0, 5.5], "{:.1f}") == "5.2 (5.0 to 5.5)"


def test_an_environment_of_other_versions_counts_as_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    assert environments.python_of("trl") is None
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / "made-of.txt").write_text("torch==1.0\n")
    assert environments.python_of("trl") is None
    (tmp_path / "trl" / "made-of.txt").write_text(environments.listed("trl").read_text())
    assert environments.python_of("trl") == tmp_path / "trl" / "bin" / "python"
