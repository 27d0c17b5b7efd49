"""The block `train` of a recipe."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from luthier.core.errors import InputError
from luthier.core.registry import AUTO, Config, Count, NameOf, Share
from luthier.data.batches import steps_per_epoch
from luthier.tracking.base import TRACKERS, Tracker
from luthier.training.optimizers.base import OPTIMIZERS

OPTIMIZER_SPELLINGS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw",
}
"""TrainingArguments' names of the optimizers -> ours."""


class TrainConfig(Config):
    """How long, how fast and how exactly to train."""

    aliases: ClassVar[dict[str, str]] = {
        "learning_rate": "lr",
        "num_train_epochs": "epochs",
        "max_steps": "steps",
        "per_device_train_batch_size": "micro_batch",
        "max_seq_length": "max_length",
        "cutoff_len": "max_length",
        "warmup_steps": "warmup",
        "lr_scheduler_type": "schedule",
        "max_grad_norm": "clip",
        "save_steps": "save_every",
        "eval_steps": "evaluate_every",
        "logging_steps": "log_every",
        "optim": "optimizer",
        "save_total_limit": "keep",
        "torch_compile": "compile",
        "report_to": "track",
        "listeners": "track",  # of runs from before there were trackers
    }

    steps: Count | None = None
    """Optimizer steps; they overrule epochs. none: as many as the epochs have."""
    epochs: Annotated[float, Field(gt=0, le=1_000_000)] = 3.0
    """Passes over the training rows."""
    batch_size: Count = 16
    """Rows per optimizer step, over all micro-batches and devices."""
    micro_batch: Annotated[Count | None, AUTO] = None
    """Rows per padded forward pass and device: fewer need less memory and give the same result; auto: at most 8."""
    micro_tokens: Annotated[Count | None, AUTO] = None
    """Most tokens of a forward pass, padding counted; auto: packed rows take 1,024 on a CPU, 8,192 on a GPU, or as
    many as there is memory for. One row is a pass however long it is."""
    lr: Annotated[PositiveFloat | None, AUTO] = None
    """Peak learning rate; auto takes the method's own suggestion."""
    head_lr: Annotated[PositiveFloat | None, AUTO] = None
    """Peak learning rate of a classifier's head; auto: by the size of the features that a new head reads, whatever `lr`
    is; `lr` for a head that was trained before, and with optimizers other than adamw, adam and rmsprop."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; linear and cosine end at zero."""
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Steps of linear warm-up; below 1 a share of all steps."""
    optimizer: Annotated[str, NameOf(OPTIMIZERS, OPTIMIZER_SPELLINGS)] = "adamw"
    """The optimizer; adamw_8bit keeps its states in 8 bit, paged ones move them to the CPU's memory when the GPU's is
    full (both from bitsandbytes)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of matrices; biases and norms are spared."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of the first and second moment (Adam's)."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 never does."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What to do with a step whose loss or gradient is no finite number: stop before it, or leave it out and count it;
    five in a row stop the run. The same for a held-out loss. Weights that are no finite numbers always stop the run and
    are never saved."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type of the matrix products; auto is bf16 where a GPU has it, fp16 on other GPUs, fp32 on a CPU."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: far less memory for about a third more time; auto does so where the
    run would not fit else."""
    max_length: Annotated[Count | None, AUTO] = None
    """Longest row in tokens; auto takes the model's own limit, at most 2048."""
    group_by_length: bool = True
    """Put rows of like length into a micro-batch, which saves padding; steps stay random."""
    packing: bool | Literal["auto"] = "auto"
    """Put the rows of a step into as few sequences of micro_tokens as will hold them: no padding, and no row sees
    another. The run learns the same; each sequence is one pass. Auto does so where task, method and model allow it."""
    compile: bool = False
    """Let torch.compile make the model's layers, in place of Luthier's own functions: a minute or more at the first
    step. Slower on a CPU (benchmarks/training/README.md); on a GPU it depends on the model: measure it."""
    evaluate_every: Annotated[PositiveFloat | None, AUTO] = None
    """Steps between evaluations on the validation rows, below 1 a share of an epoch; auto: once an epoch."""
    save_every: Annotated[PositiveFloat | None, AUTO] = None
    """Steps between checkpoints, below 1 a share of an epoch; auto: once an epoch."""
    log_every: Count = 10
    """Steps between lines on the terminal when it is no screen, which come at least twice a minute; metrics.jsonl has
    every step."""
    keep: Count = 2
    """Checkpoints to keep beside the best one."""
    keep_best: bool = True
    """End with the weights of the lowest validation loss, not the last ones."""
    patience: Count | None = None
    """Stop when this many evaluations in a row brought no lower validation loss; none never does."""
    processes: Annotated[Count | None, AUTO] = None
    """Processes of this machine that train together, each with its share of a step; auto: one for each GPU, or one. The
    run stays the same except for rounding and dropout. torchrun starts them, and may be used itself."""
    parallel: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto"
    """How several processes hold the model. ddp: each holds all of it. fsdp: each holds its part of the base's weights,
    and of gradients and optimizer states where those train (FSDP2), for full fine-tuning and large bases. hsdp: so
    within each host, and the same on each of them. auto: ddp where the run fits so, else hsdp, else fsdp."""
    offload: bool = False
    """With fsdp and hsdp: what is divided lies in host memory, and comes to the device for the time of a layer: less
    memory of the GPU, and slower."""
    track: tuple[Annotated[Tracker, TRACKERS], ...] = ()
    """What else shows the run, beside the terminal and metrics.jsonl: [swanlab], for example; luthier list trackers."""

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.micro_batch and self.batch_size % self.micro_batch:
            nearest = self.micro_batch * max(1, self.batch_size // self.micro_batch)
            what = f"batch_size {self.batch_size} is no multiple of micro_batch {self.micro_batch}"
            raise ValueError(f"{what}; try batch_size={nearest}")
        return self

    @field_validator("track", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        """One name is a list of one, and `none` an empty one, as in TrainingArguments.report_to."""
        return [value] * (value != "none") if isinstance(value, str | dict | Tracker) else value or ()

    @model_validator(mode="after")
    def _trackers_differ(self) -> Self:
        names = [each.name for each in self.track]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"track: {', '.join(sorted(twice))} is named twice: one entry for each tracker")
        return self

    def precision_on(self, device: str) -> Literal["fp32", "bf16", "fp16"]:
        """What matrix products are computed in; InputError where the device cannot serve what the recipe asks."""
        if self.precision == "auto":
            import torch

            return "fp32" if device != "cuda" else ("bf16" if torch.cuda.is_bf16_supported() else "fp16")
        if self.precision == "fp16" and device == "cpu":
            message = "train.precision=fp16 cannot serve on a CPU: autocast to fp16 would do nothing, in silence"
            raise InputError(message, fix="train.precision=auto (fp32 here, bf16 or fp16 on a GPU)")
        return self.precision

    @property
    def rows_per_pass(self) -> int:
        """Rows of one forward pass."""
        return self.micro_batch or max(size for size in range(1, 9) if self.batch_size % size == 0)


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a run trains, with nothing left open: decided once, when the base is loaded, and handed down."""

    train: TrainConfig
    """The recipe's block, with lr, head_lr, precision, packing, micro_tokens and gradient_checkpointing decided."""
    pack: int | None
    """Tokens of a packed sequence; None: rows are padded."""
    steps: int
    """Optimizer steps of the whole run."""
    seed: int


def total_steps(config: TrainConfig, rows: int) -> int:
    """Optimizer steps of the run: half an epoch of 63 steps is 32."""
    return config.steps or max(1, math.ceil(config.epochs * steps_per_epoch(rows, config.batch_size)))
