"""Luthier, by the call that `luthier train` makes. It alone starts from text: it reads and tokenizes the rows.

Options: `packing`; `micro_tokens`, the tokens of a pass; `precision`; `compile`, by torch.compile.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared import CHECKED, Folder, Seen, Watch, tell

START_TOKENS = 2048
"""Of the pass that the loss at start is computed in: several rows, one behind the other."""


def recipe(folder: Folder) -> Any:
    from luthier.recipe.config import RunConfig

    options, settings = folder.options, folder.settings
    fp32 = options["precision"] == "fp32"
    return RunConfig.model_validate(
        {
            "run": str(folder.out),
            "model": {"path": folder.model, "dtype": "float32" if fp32 else "bfloat16"},
            "data": {"path": str(folder.path / "rows.jsonl"), "validation": "none", "cache": False},
            "method": {"name": "lora"} | settings["lora"],
            "train": {
                "steps": settings["rows"] // settings["step"],
                "batch_size": settings["step"],
                "micro_batch": options["micro"],
                "packing": options["packing"],
                "lr": settings["lr"],
                "max_length": settings["limit"],
                "micro_tokens": options.get("micro_tokens"),
                "schedule": "linear",
                "warmup": 0,
                "precision": "fp32" if fp32 else "bf16",
                "save_every": 10_000,
                "compile": options.get("compile", False),
            },
            "evaluate": {"before": False, "generate": 0},
        }
    )


def start_loss(folder: Folder) -> None:
    """The loss of the first rows before anything is learned, in the run's own layout and precision."""
    import torch

    from luthier.core.events import Progress
    from luthier.data.batches import micro_batches
    from luthier.kernels.attention import row_by_row
    from luthier.pipeline.prepare import load_base, on_this_machine, prepare_data, tokenize
    from luthier.training.step import accelerator_on

    config, quiet, seen = on_this_machine(recipe(folder)), Progress(), Seen()
    accelerator = accelerator_on(config.model.device, config.train.precision)
    loaded = load_base(config, tokenize(config, prepare_data(config, quiet), quiet))
    model = config.method.attach(loaded.model, steps=1).eval()
    rows, task = [loaded.data.rows[number] for number in range(CHECKED)], loaded.data.task
    pack = START_TOKENS if config.train.packing else None
    total = 0.0
    with row_by_row(model), torch.no_grad(), accelerator.autocast():
        for micro in micro_batches(
            [len(row.ids) for row in rows],
            micro_batch=config.train.rows_per_pass,
            by_length=True,
            micro_tokens=None,
            pack=pack,
        ):
            some = [rows[number] for number in micro]
            batch = task.pack(some) if pack else task.collate(some, loaded.template.tokenizer.pad_token_id)
            total += float(
                task.losses(model, {key: value.to(accelerator.device) for key, value in batch.items()})[0].sum()
            )
            seen.around(lambda made: made)([{"input_ids": row.ids, "labels": row.labels} for row in some])
    tell(seen, start_loss=total / seen.learned)


def train(folder: Folder) -> None:
    from luthier.core.events import Progress
    from luthier.pipeline.train import train as train_run

    class Clock(Progress):
        def train_begins(self, start: int, steps: int) -> None:
            watch.begin()

        def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
            watch.step()

    watch, seen = Watch(), Seen()
    result = train_run(recipe(folder), progress=Clock())
    lines = [json.loads(line) for line in (Path(result["run"]) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    seen.tokens, seen.learned = sum(line["tokens"] for line in steps), sum(line["targets"] for line in steps)
    tell(
        seen,
        losses=[line["loss"] for line in steps],
        steps=len(steps),
        planned_memory=result["memory"],
        planned_time=result["time"],
        **watch.made(),
    )


if __name__ == "__main__":
    given = Folder()
    start_loss(given) if given.check else train(given)
