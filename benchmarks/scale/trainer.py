"""Luthier's full fine-tuning under FSDP2 beside transformers.Trainer under FSDP2, on CPU processes with gloo.

This file as a program is one rank of transformers.Trainer: `python trainer.py FOLDER`, by torchrun.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

BATCH = 32
"""Rows of a step."""


def make(place: Path, base: str, steps: int) -> list[int]:
    """Write base weights and the rows of each step, as tokens, into a folder; returns the tokens of each step.

    Within a step the rows are halved for two ranks by their lengths; Trainer's own `batch_rebalance` does so too, but
    draws the rows of a step by itself.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from luthier.core.events import Progress
    from luthier.data.batches import step_numbers
    from luthier.pipeline.prepare import on_this_machine, prepare_data, tokenize
    from luthier.recipe.config import RunConfig

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(base, dtype="float32")
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    recipe = on_this_machine(
        RunConfig.load(None, [f"model={base}", "data=builtin:reviews", "task=chat", "data.validation=none"])
    )
    rows = tokenize(recipe, prepare_data(recipe, Progress()), Progress()).data.rows
    given: list[dict[str, list[int]]] = []
    tokens: list[int] = []
    for index in range(steps):
        numbers = step_numbers(len(rows), index, batch_size=BATCH, seed=recipe.seed)
        step = sorted((rows[number] for number in numbers), key=lambda row: len(row.ids))
        tokens.append(sum(len(row.ids) for row in step))
        given += [{"input_ids": row.ids, "labels": row.labels} for row in (*step[::2], *step[1::2])]
    (place / "rows.json").write_text(json.dumps(given))
    return tokens


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Rows of tokens as tensors, padded on the right."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)

    def put(key: str, fill: int) -> Any:
        return torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {"input_ids": put("input_ids", 0), "labels": put("labels", -100), "attention_mask": torch.tensor(mask)}


def work(place: Path) -> None:
    """One rank of transformers.Trainer."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import FSDPModule
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from benchmarks.scale.notes import Notes

    rows = json.loads((place / "rows.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    arguments = TrainingArguments(
        output_dir=str(place / "out"),
        per_device_train_batch_size=BATCH // int(os.environ["WORLD_SIZE"]),
        max_steps=len(rows) // BATCH,
        train_sampling_strategy="sequential",
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch",
        use_cpu=True,
        ddp_backend="gloo",
        fsdp=True,
        fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"]},
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    # accelerate 1.15 knows FSDP on accelerators alone (state.py, AcceleratorState.__init__): of processes on a CPU it
    # takes no notice of the plugin, and Trainer trains with DDP without a word. Called GPUs, they run on the CPU.
    assert arguments.device.type == "cpu"
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    notes = Notes(place / f"{os.environ['RANK']}.jsonl")

    class Noting(TrainerCallback):  # type: ignore[misc]
        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            notes.before(model)

        def on_step_end(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
            notes.step(model, optimizer)

    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate, callbacks=[Noting()])
    trainer.train()
    assert isinstance(trainer.model_wrapped, FSDPModule), "sharded indeed"
    trainer.save_model()
    notes.end()
    if arguments.process_index == 0:
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        (place / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
