"""How much arithmetic the rows need, and how much the machine can do: what the share of its peak is made of.

    python -m benchmarks.training.work      # measures the machine

Needed is, for each useful token, a product with every linear layer's weight forward and one backward to its input (the
weights are frozen, so none for their gradients), three products with each of LoRA's two small matrices, attention over
the row's own length with the causal half of it, and the head, forward and backward, for learned tokens alone. Not needed,
and so not counted: padding, recomputation, logits that nobody learns, the gradient to the embeddings' output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIZES = [(2048, 2048, 2048), (4096, 4096, 4096), (2048, 896, 4864), (2048, 4864, 896), (1024, 896, 151_936)]
"""Rows, in and out of a product: square ones, and the model's own."""
SECONDS = 1.0


def needed(folder: Path) -> dict[str, int]:
    """Useful tokens, learned tokens, FLOPs of one pass over all rows, and numbers of the model."""
    config: dict[str, Any] = json.loads((folder / "model" / "config.json").read_text())
    settings = json.loads((folder / "settings.json").read_text())
    rows = json.loads((folder / "tokens.json").read_text())
    lengths = [len(row["input_ids"]) for row in rows]
    tokens = sum(lengths)
    learned = sum(label != -100 for row in rows for label in row["labels"][1:])
    wide, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    head = config.get("head_dim") or wide // config["num_attention_heads"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    first = [(wide, queries), (wide, keys), (wide, keys)]
    linear = [*first, (queries, wide), (wide, inner), (wide, inner), (inner, wide)]
    rank = settings["lora"]["rank"]
    base = layers * sum(a * b for a, b in linear)
    lora = layers * sum(rank * (a + b) for a, b in linear)
    # Below the first layer nothing is trained: what would go to the input of its first three layers goes nowhere.
    spared = 2 * sum(a * b + rank * a for a, b in first)
    flops = tokens * (4 * base + 6 * lora - spared)
    # Scores and values, 2 d n^2 each, of which the causal half; the backward pass does each twice.
    flops += 3 * layers * sum(2 * queries * length**2 for length in lengths)
    flops += learned * 4 * wide * config["vocab_size"]
    norms = layers * (2 * wide + queries + 2 * keys) + wide  # and Qwen2's biases
    weights = base + config["vocab_size"] * wide * (1 if config.get("tie_word_embeddings") else 2) + norms
    ids = sum(sum(row["input_ids"]) for row in rows)
    return {"tokens": tokens, "learned_tokens": learned, "ids": ids, "flops": flops, "weights": weights, "lora": lora}


def peak() -> dict[str, float]:
    """GFLOP/s of the fastest product in bfloat16, and of each size, measured in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training.work"], capture_output=True, text=True, check=True
    )
    made: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return made


def measure() -> dict[str, float]:
    import torch

    where = "cuda" if torch.cuda.is_available() else "cpu"
    made = {}
    for rows, wide, out in SIZES:
        x = torch.randn(rows, wide, device=where).bfloat16()
        weight = torch.randn(out, wide, device=where).bfloat16()
        best, until = float("inf"), time.perf_counter() + SECONDS
        while time.perf_counter() < until or best == float("inf"):
            began = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            if where == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        made[f"{rows}x{wide}x{out}"] = round(2 * rows * wide * out / best / 1e9, 1)
    return {"peak": max(made.values())} | made


if __name__ == "__main__":
    print(json.dumps(measure()))
