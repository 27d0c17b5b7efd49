"""What every arm needs: what the folder says, a clock, a count of what was seen, and the line to print.

An arm is a script: `python with_X.py FOLDER OPTIONS`. It runs in an environment that has no Luthier, so it and this file
import nothing of it. FOLDER holds `model`, `rows.jsonl`, `tokens.json` and `settings.json`; OPTIONS is JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CHECKED = 4
"""Rows of the loss at start: the head of a large vocabulary takes 300 MB a row where all logits are made."""
IGNORED = -100


class Folder:
    """The folder that all arms read."""

    def __init__(self) -> None:
        self.path = Path(sys.argv[1])
        self.settings: dict[str, Any] = json.loads((self.path / "settings.json").read_text())
        self.options: dict[str, Any] = self.settings | json.loads(sys.argv[2])
        self.model = str(self.path / "model")
        self.check = bool(self.options.get("check"))
        self.out = self.path / f"out-{time.time_ns()}"

    def rows(self) -> list[dict[str, list[int]]]:
        """Token ids and labels of each row; the first few alone where only the loss at start is asked for."""
        rows: list[dict[str, list[int]]] = json.loads((self.path / "tokens.json").read_text())
        return rows[:CHECKED] if self.check else rows

    def dtype(self) -> Any:
        import torch

        return torch.float32 if self.options["precision"] == "fp32" else torch.bfloat16

    def lora(self) -> Any:
        from peft import LoraConfig

        given = self.settings["lora"]
        return LoraConfig(
            r=given["rank"],
            lora_alpha=given["alpha"],
            lora_dropout=given["dropout"],
            target_modules=given["targets"],
            task_type="CAUSAL_LM",
        )

    def arguments(self) -> dict[str, Any]:
        """What transformers' TrainingArguments and all that descend from them take, on top of an arm's own options."""
        import torch

        options = self.options
        return {
            "output_dir": str(self.out),
            "per_device_train_batch_size": options["micro"],
            "gradient_accumulation_steps": options.get("accumulate") or options["step"] // options["micro"],
            "num_train_epochs": 1,
            "learning_rate": options["lr"],
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "seed": 0,
            "use_cpu": not torch.cuda.is_available(),
            "bf16": options["precision"] == "bf16",
            "gradient_checkpointing": bool(options.get("checkpointing")),
        } | options.get("arguments", {})


class Seen:
    """Counts what goes through a collator, so that nobody trains on less than the others."""

    def __init__(self) -> None:
        self.tokens = self.learned = self.ids = 0

    def around(self, collate: Any) -> Any:
        def counting(features: list[dict[str, Any]]) -> Any:
            for one in features:
                ids = [int(token) for token in one["input_ids"]]
                mask = one.get("attention_mask") or [1] * len(ids)
                self.tokens += sum(int(place) > 0 for place in mask)
                self.ids += sum(token for token, place in zip(ids, mask, strict=True) if int(place) > 0)
                self.learned += sum(int(label) != IGNORED for label in list(one["labels"])[1:])
            return collate(features)

        return counting


class Watch:
    """Time from the beginning of training to the end of its first and of its last step."""

    def begin(self) -> None:
        self.began, self.processor = time.perf_counter(), time.process_time()
        self.first = self.first_at = 0.0

    def step(self) -> None:
        self.ended = time.perf_counter()
        self.used = time.process_time() - self.processor
        if not self.first:
            self.first, self.first_at = self.ended - self.began, time.time()

    def made(self) -> dict[str, float]:
        """`processor_seconds` over `seconds` are the processors it had: fewer than there are say that others ran too."""
        return {
            "seconds": self.ended - self.began,
            "processor_seconds": round(self.used, 2),
            "first": self.first,
            "first_at": self.first_at,
        }


def drive(trainer: Any, folder: Folder, train: Any = None) -> None:
    """Train and print what came of it, or print the loss at start: for every descendant of transformers.Trainer."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step()

    seen, watch = Seen(), Watch()
    trainer.data_collator = seen.around(trainer.data_collator)
    if folder.check:
        tell(seen, start_loss=start_loss(trainer))
        return
    trainer.add_callback(Clock())
    (train or trainer.train)()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    tell(seen, losses=losses, steps=trainer.state.global_step, **watch.made())


def start_loss(trainer: Any) -> float:
    """Nats per learned token before anything is learned, without dropout, by the trainer's own way to a loss."""
    import torch

    loader = trainer.get_train_dataloader()
    model = trainer.accelerator.prepare_model(trainer.model)  # puts the autocast around it that training has
    total, count = 0.0, 0
    for batch in loader:
        model.eval()
        learned = int((batch["labels"][:, 1:] != IGNORED).sum())
        with torch.no_grad(), trainer.compute_loss_context_manager():
            total += float(trainer.compute_loss(model, batch)) * learned
        count += learned
    return total / count


def tell(seen: Seen, **made: Any) -> None:
    """The line that run.py reads: what is given, the process's peak of memory, and the versions."""
    import torch

    made["peak"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak()
    made |= {"seen_tokens": seen.tokens, "seen_learned": seen.learned, "seen_ids": seen.ids}
    made |= {"versions": versions(), "threads": torch.get_num_threads()}
    print("made " + json.dumps(made), flush=True)


def peak() -> int:
    """Bytes of the process's largest resident set.

    On Linux not ru_maxrss, which begins with the largest set of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def versions() -> dict[str, str]:
    found = {}
    for name in ("luthier", "torch", "transformers", "peft", "trl", "llamafactory", "unsloth"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
