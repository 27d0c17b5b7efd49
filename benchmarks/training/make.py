"""The folder that all arms read: `model`, `rows.jsonl` as text, `tokens.json` as the very same tokens, `settings.json`."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

STEP, LIMIT = 16, 512
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORDS = [
    "the",
    "film",
    "was",
    "good",
    "and",
    "the",
    "actors",
    "played",
    "it",
    "well",
    "but",
    "its",
    "end",
    "came",
    "too",
    "soon",
    "for",
    "me",
]
SHAPES = {"qwen2-0.5b": 24, "builtin": 6}
"""Layers of each."""


def make(folder: Path, shape: str, layers: int, rows: int, learned: str) -> dict[str, Any]:
    """Write everything into `folder`; returns the settings."""
    model = folder / "model"
    _builtin(model) if shape == "builtin" else _qwen2(model, layers)
    _rows(folder / "rows.jsonl", rows, learned)
    settings = {
        "shape": shape,
        "layers": layers,
        "rows": rows,
        "learned": learned,
        "step": STEP,
        "limit": LIMIT,
        "lr": 1e-4,
        "lora": {"rank": 8, "alpha": 32, "dropout": 0.1, "targets": TARGETS},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    tokens = _tokens(folder)
    (folder / "tokens.json").write_text(json.dumps(tokens))
    return settings


def _qwen2(where: Path, layers: int) -> None:
    """Qwen2-0.5B's shape with random weights, and the embedded base's tokenizer, whose ids all lie in its vocabulary."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from luthier.builtin import BASE

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(where)
    tokenizer.model_max_length = 4096
    tokenizer.save_pretrained(where)


def _builtin(where: Path) -> None:
    from luthier.builtin import BASE

    shutil.copytree(BASE, where)


def _rows(path: Path, rows: int, learned: str) -> None:
    """Dialogues of IMDB's lengths: a logarithm of tokens with mean 5.44 and deviation 0.6."""
    draw = random.Random(0)
    with path.open("w") as out:
        for _ in range(rows):
            size = min(LIMIT - 60, max(30, int(draw.lognormvariate(5.44, 0.6))))  # tokens; about one a word
            text = draw.choices(WORDS, k=size)
            if learned == "two":
                text[-1] = "it"  # one token; the end of the turn is the other
            answer = size // 2 if learned == "half" else 1
            row = [("user", " ".join(text[: size - answer])), ("assistant", " ".join(text[size - answer :]))]
            out.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) + "\n")


def _tokens(folder: Path) -> list[dict[str, list[int]]]:
    """What Luthier makes of the rows."""
    from luthier.data.encode import encode
    from luthier.data.prepare import load
    from luthier.models.load import load_tokenizer, locate
    from luthier.recipe.config import RunConfig
    from luthier.rendering.chat_template import Template

    config = RunConfig.model_validate(
        {
            "model": {"path": str(folder / "model")},
            "data": {"path": str(folder / "rows.jsonl"), "validation": "none", "cache": False},
        }
    )
    data = load(config.data, None)
    encode(data, Template(load_tokenizer(config.model, locate(config.model))), config.data, LIMIT)
    return [{"input_ids": row.ids, "labels": row.labels} for row in data.rows]
