"""One arm of a recipe in a process of its own: train, measure, print what came of it as a line of JSON.

    python -m benchmarks.recipes.arm WAY RECIPE FOLDER OVERRIDE...     # WAY: luthier, trainer or plain

`luthier` is `luthier train RECIPE OVERRIDE...`. `trainer` trains by transformers.Trainer and PEFT on the tokens that
Luthier's reading of the recipe gives, in the same steps. `plain` measures the adapter of the second with transformers
alone. FOLDER keeps the run or the adapter.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from luthier.core.events import Progress
from luthier.core.files import read_jsonl
from luthier.data.batches import step_numbers
from luthier.evaluation.records.context import EvalContext, split_answer
from luthier.evaluation.scores import evaluations, measure, scores
from luthier.pipeline.measure import subject_of
from luthier.pipeline.prepare import Encoding, load_base, on_this_machine, prepare_data, tokenize
from luthier.pipeline.train import train
from luthier.planning.machine import peak, watch_peak
from luthier.recipe.config import RunConfig
from luthier.rendering.row import IGNORED, Row
from luthier.runs.folder import RunFolder
from luthier.training.settings import total_steps

PLAIN = 30
"""Held-out rows that transformers alone measures: it reads a prompt once for each label."""
Found = dict[str, Any]


def processor_seconds() -> float:
    """User and system seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Clock(Progress):
    """Processor seconds of the steps: evaluations, checkpoints and the trial of layers before the first one are not in."""

    def __init__(self) -> None:
        self.used = self.mark = 0.0
        self.steps = 0

    def train_begins(self, start: int, steps: int) -> None:
        self.mark = processor_seconds()

    def step(self, record: dict[str, Any], tokens_per_second: float) -> None:
        now = processor_seconds()
        self.used, self.mark, self.steps = self.used + now - self.mark, now, self.steps + 1

    def evaluated(self, step: int, loss: float, best: bool) -> None:
        self.mark = processor_seconds()

    saved = train_ends = lambda self, *_: self.evaluated(0, 0.0, False)


class Steps(TrainerCallback):
    """The same of transformers.Trainer."""

    def __init__(self) -> None:
        self.clock = Clock()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock.train_begins(0, 0)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.step({}, 0.0)


def opened(recipe: str, overrides: Sequence[str]) -> tuple[RunConfig, Encoding]:
    """The recipe on this machine, and its rows as tokens."""
    config = on_this_machine(RunConfig.load(Path(recipe), list(overrides)))
    return config, tokenize(config, prepare_data(config, Progress()), Progress())


def outcome(record: Found) -> Found:
    """What is kept of a held-out row, so that arms can be compared row by row."""
    kept = {"loss_sum": round(record["loss_sum"], 5), "targets": record["targets"]}
    return kept | {key: record[key] for key in ("label", "chosen", "rouge_l") if key in record}


def luthier(recipe: str, folder: Path, overrides: Sequence[str]) -> Found:
    clock = Clock()
    config = RunConfig.load(Path(recipe), [*overrides, f"run={folder}"])
    result = train(config, progress=clock)
    run = RunFolder(folder)
    predictions = list(read_jsonl(run.predictions))
    lines = [line for line in run.history() if "loss" in line]
    whole = clock.steps == len(lines)  # of a run that was resumed nobody knows what the steps before cost
    return {
        "primary_metric": result["primary_metric"],
        "base": result["base"],
        "tuned": result["tuned"],
        "difference": result["difference"],
        "forgetting": result["forgetting"].get("all", result["forgetting"]),
        "records": {side: [outcome(each[side]) for each in predictions] for side in ("base", "tuned")},
        "trainable": result["trainable"],
        "steps": result["steps"],
        "kept_step": result["kept_step"],
        "tokens": result["tokens"],
        "losses": [line["loss"] for line in lines],
        "peak": result["memory"]["measured"] if whole else None,
        "planned": {"bytes": result["memory"]["planned"], "seconds": result["time"]["planned"]},
        "train_seconds": result["train_seconds"],
        "processor_seconds": clock.used if whole else None,
    }


def quantized(config: RunConfig) -> Found:
    """Arguments of `from_pretrained` that load the base as the recipe does, with transformers' own names."""
    from transformers import BitsAndBytesConfig

    model = config.model
    dtype = torch.float32 if model.dtype == "auto" else getattr(torch, model.dtype)
    if model.quantize == "none":
        return {"dtype": dtype}
    if model.quantize == "int8":
        packed = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=model.int8_threshold)
    else:
        packed = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=model.quantize,
            bnb_4bit_use_double_quant=model.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"dtype": dtype, "quantization_config": packed, "device_map": {"": config.model.device}}


def padded(rows: Sequence[Found], pad: int) -> Found:
    """Rows of one micro-batch, padded on the right to the longest of them."""
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": filled("input_ids", pad),
        "labels": filled("labels", IGNORED),
        "attention_mask": torch.tensor(mask),
    }


def in_steps(config: RunConfig, tokens: Encoding) -> list[Found]:
    """The rows of all steps, one after another: those that Luthier takes, and like it the longest of a step first."""
    rows, size = tokens.data.rows, config.train.batch_size
    found: list[Row] = []
    for step in range(total_steps(config.train, len(rows))):
        numbers = step_numbers(len(rows), step, batch_size=size, seed=config.seed)
        if len(numbers) != size:
            raise SystemExit(f"{len(rows)} training rows are no multiple of {size}: Trainer would cut other steps")
        found += sorted((rows[number] for number in numbers), key=lambda row: len(row.ids), reverse=True)
    return [{"input_ids": row.ids, "labels": row.labels} for row in found]


def trainer(recipe: str, folder: Path, overrides: Sequence[str]) -> Found:
    """transformers.Trainer and PEFT, as their documentation has it for a quantized base."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, set_seed

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    config, tokens = opened(recipe, overrides)
    settings, lora, rows = config.train, config.method.model_dump(), in_steps(config, tokens)
    checkpointing = settings.gradient_checkpointing is True
    model = AutoModelForCausalLM.from_pretrained(tokens.source, **quantized(config))
    if config.model.quantize != "none":
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    set_seed(config.seed)
    model = get_peft_model(
        model,
        LoraConfig(
            r=lora["rank"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules=list(lora["targets"]),
            bias=lora["bias"],
            task_type="CAUSAL_LM",
        ),
    )
    micro, pad = settings.micro_batch or settings.batch_size, tokens.template.tokenizer.pad_token_id
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        num_train_epochs=1,
        learning_rate=settings.lr,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=settings.precision == "bf16",
        use_cpu=config.model.device == "cpu",
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=config.seed,
    )
    watch = Steps()
    watch_peak(config.model.device)
    done = InOrder(
        model,
        arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=lambda some: padded(some, pad),
        callbacks=[watch],
    )
    done.train()
    most = peak(config.model.device)
    model.save_pretrained(folder / "adapter")
    logged = [line for line in done.state.log_history if "loss" in line]
    made = {
        "trainable": sum(each.numel() for each in model.parameters() if each.requires_grad),
        "steps": done.state.global_step,
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "losses": [line["loss"] for line in logged],
        "peak": most,
        "train_seconds": done.state.log_history[-1]["train_runtime"],
        "processor_seconds": watch.clock.used,
    }
    del model, done
    return made | measured(config, tokens, folder / "adapter")


def subject(config: RunConfig, tokens: Encoding, adapter: Path) -> EvalContext:
    """The adapter on its base, with the held-out rows, for Luthier's evaluation."""
    loaded = load_base(config, tokens)
    loaded.model = config.method.load(loaded.model, adapter).eval()
    context = subject_of(loaded)
    assert context is not None
    return context


def measured(config: RunConfig, tokens: Encoding, adapter: Path) -> Found:
    """What Luthier's evaluation makes of an adapter."""
    context = subject(config, tokens, adapter)
    records = measure(context)
    return {"tuned": scores(records, evaluations(context)), "records": {"tuned": [outcome(each) for each in records]}}


def plain(recipe: str, folder: Path, overrides: Sequence[str]) -> Found:
    """The losses and labels of the first held-out rows by transformers and PEFT alone, one row a pass."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config, tokens = opened(recipe, overrides)
    model = AutoModelForCausalLM.from_pretrained(tokens.source, **quantized(config))
    model = PeftModel.from_pretrained(model, folder / "adapter").eval()
    _, examples, rows = tokens.data.side(tokens.data.held_out_side)
    answers = {example.label: split_answer(rows[n])[1] for n, example in enumerate(examples) if example.label}

    def loss(ids: list[int], labels: list[int]) -> float:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum"))

    records = []
    for number in range(min(PLAIN, len(rows))):
        row, label = rows[number], examples[number].label
        if label is None:
            records.append({"loss_sum": loss(row.ids, row.labels)})
            continue
        prompt = split_answer(row)[0]
        each = {
            name: loss(prompt + answer, [IGNORED] * len(prompt) + answer) for name, answer in sorted(answers.items())
        }
        records.append({"loss_sum": each[label], "label": label, "chosen": min(each, key=lambda name: each[name])})
    return {"records": {"plain": records}}


def main() -> None:
    way, recipe, folder, *overrides = sys.argv[1:]
    made = {"luthier": luthier, "trainer": trainer, "plain": plain}[way](recipe, Path(folder), overrides)
    print("made " + json.dumps(made | {"threads": torch.get_num_threads()}), flush=True)


if __name__ == "__main__":
    main()
