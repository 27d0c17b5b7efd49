"""One run as one typed object: YAML, command line, Python and docs are all made from it."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PositiveFloat,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from luthier.data.formats.base import FORMATS
from luthier.data.settings import DataConfig
from luthier.errors import ConfigError, InputError, did_you_mean
from luthier.evaluation.settings import EvaluateConfig
from luthier.exports.base import EXPORTS, Export
from luthier.methods.base import METHODS, QUANTIZED, Method
from luthier.plugins import AUTO, Config, Count, Family, Seed, Share
from luthier.strict_yaml import parse_value, parse_yaml
from luthier.tasks.base import TASKS, Task

Optimizer = Literal["adamw", "adam", "sgd", "adafactor", "rmsprop", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
OPTIMIZER_SPELLINGS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw",
}
"""TrainingArguments' names of the optimizers -> ours."""


def _trainer_spelling(value: Any) -> Any:
    return OPTIMIZER_SPELLINGS.get(value, value) if isinstance(value, str) else value


class ModelConfig(Config):
    """The base model."""

    aliases: ClassVar[dict[str, str]] = {
        "model_name_or_path": "path",
        "torch_dtype": "dtype",
        "llm_int8_threshold": "int8_threshold",
        "bnb_4bit_compute_dtype": "compute_dtype",
    }

    path: str = "builtin"
    """Local folder or hub id; `builtin` is the embedded small model."""
    revision: str | None = None
    """Branch, tag or commit on the hub; pin a commit for runs that must repeat. none: main."""
    hub: Literal["huggingface", "modelscope"] = "huggingface"
    """Where a hub id is looked up."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` takes only config.json and the tokenizer and draws new weights: pretraining from scratch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the frozen weights; auto is float32 on a CPU, and on a GPU the type they are stored in."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to run; auto takes a GPU if there is one."""
    quantize: Literal["none", "int8", "nf4", "fp4"] = "none"
    """Load the base in 8 bit (LLM.int8(), arXiv 2208.07339) or 4 bit (QLoRA, arXiv 2305.14314)."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type that 4-bit weights are unpacked to for a matrix product."""
    double_quant: bool = True
    """Quantize the 4-bit scales as well: saves 0.37 bit per parameter (arXiv 2305.14314, section 3)."""
    int8_threshold: Annotated[float, Field(ge=0)] = 6.0
    """Columns with larger inputs stay in 16 bit (arXiv 2208.07339, section 3.2); 0 puts all in 8."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for code you have read."""


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
    """Peak learning rate of the new head of a classifier; auto takes `lr`. Many labels want more than most methods
    have."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; linear and cosine end at zero."""
    warmup: Annotated[float, Field(ge=0)] = 0.03
    """Steps of linear warm-up; below 1 a share of all steps."""
    optimizer: Annotated[Optimizer, BeforeValidator(_trainer_spelling)] = "adamw"
    """From torch, or from bitsandbytes: adamw_8bit keeps its states in 8 bit, paged ones move them to the CPU's
    memory when the GPU's is full."""
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
    """Steps between lines on the terminal when it is no screen; metrics.jsonl has every step."""
    keep: Count = 2
    """Checkpoints to keep beside the best one."""
    keep_best: bool = True
    """End with the weights of the lowest validation loss, not the last ones."""
    patience: Count | None = None
    """Stop when this many evaluations in a row brought no lower validation loss; none never does."""

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch {self.micro_batch}; "
                f"try batch_size={self.micro_batch * max(1, self.batch_size // self.micro_batch)}"
            )
        return self

    @property
    def rows_per_pass(self) -> int:
        """Rows of one forward pass."""
        if self.micro_batch:
            return self.micro_batch
        return max(size for size in range(1, 9) if self.batch_size % size == 0)


class RunConfig(Config):
    """One fine-tuning run."""

    run: str = ""
    """Folder of the run; default runs/<recipe or data>-<method>. The same command again goes on where it stopped."""
    model: ModelConfig = ModelConfig()
    """The base model."""
    data: DataConfig = DataConfig()
    """The rows to learn from and to test on."""
    task: Annotated[Annotated[Task, TASKS] | None, AUTO] = None
    """What to learn; auto follows the data: dialogues chat, plain text complete, labels classify."""
    method: Annotated[Method, METHODS] = Field(default_factory=lambda: METHODS.parse("lora"))
    """How to tune."""
    train: TrainConfig = TrainConfig()
    """Length, speed and exactness."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured."""
    seed: Seed = 0
    """Seed of initial weights, order of rows and dropout."""

    @property
    def sources(self) -> str:
        """Base and data, as they are named on the terminal."""
        return f"{self.model.path}, data {self.data.path}" if self.data.path else self.model.path

    @model_validator(mode="before")
    @classmethod
    def _quantizing_method(cls, value: Any, info: ValidationInfo) -> Any:
        """`method: qlora` is lora on a base in 4 bit: the other blocks follow where they are silent."""
        method = value.get("method") if isinstance(value, dict) else None
        name = str(method.get("name") if isinstance(method, dict) else method)
        if name not in QUANTIZED:
            return value
        quantize, optimizer = QUANTIZED[name]
        model, train = dict(value.get("model") or {}), dict(value.get("train") or {})
        if model.setdefault("quantize", quantize) == "none":
            raise ValueError(f"method {name} is lora on a quantized base, and model.quantize is none: take method=lora")
        said = [f"model.quantize={model['quantize']}"]
        if optimizer and not {"optimizer", "optim"} & train.keys():
            train["optimizer"] = optimizer
            said.append(f"train.optimizer={optimizer}")
        if isinstance(info.context, dict):
            info.context.setdefault("notes", []).append(f"method {name} is lora with {' and '.join(said)}")
        return {**value, "model": model, "train": train}

    @model_validator(mode="after")
    def _a_stream_has_steps(self) -> Self:
        if self.data.streaming and not self.train.steps:
            raise ValueError("data.streaming=true needs train.steps, for nobody knows how many rows there are")
        return self

    @classmethod
    def load(cls, path: Path | None = None, overrides: Sequence[str] = (), notes: list[str] | None = None) -> RunConfig:
        """Read a YAML recipe and apply `key.path=value` overrides, whose values are YAML too.

        ConfigError reports all mistakes at once. `notes` receives what was read under another spelling.
        """
        data, problems = (read_yaml(path) if path else {}), list[str]()
        for override in overrides:
            key, equals, text = override.partition("=")
            if not equals or not key:
                problems.append(f"{override!r} is no override; write key.path=value")
                continue
            try:
                assign(data, _keys(key), parse_value(text))
            except (yaml.YAMLError, InputError) as error:
                problems.append(f"{key[:60]}: {getattr(error, 'problem', None) or error}")
        if isinstance(data.get("method"), dict):
            data["method"].setdefault("name", "lora")
        context: dict[str, Any] = {}
        try:
            config = cls.model_validate(data, context=context)
        except ValidationError as error:
            problems += [line for part in error.errors() for line in _problems(cls, dict(part))]
        if problems:
            raise ConfigError(str(path) if path else "the command line", problems)
        (notes if notes is not None else []).extend(context.get("notes", []))
        return config

    def dump(self) -> str:
        """The resolved recipe as YAML; loading it gives the same run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


SHORT = {"model": "path", "data": "path"}
"""`model=DIR` and `data=FILE` are short for `model.path` and `data.path`."""

MOST_BYTES = 2**20
"""Of a recipe; a larger file is no recipe, and reading it as one would take minutes."""
MOST_PARTS = 8
"""Of a key such as evaluate.judge.url."""


def parse_export(name: str, settings: Sequence[str]) -> Export:
    """A form to deploy with its `key=value` settings; ConfigError names what is wrong."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise InputError(f"{setting!r} is no setting", mend=f"KEY=VALUE; luthier explain export {name}")
        try:
            values[key] = parse_value(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--to {name}", [f"{key}: {getattr(error, 'problem', None) or error}"]) from None
    found = EXPORTS.get(name)
    try:
        return found.model_validate(values)
    except ValidationError as error:
        told = [_problem_text(dict(each), sorted(found.model_fields)) for each in error.errors()]
        raise ConfigError(f"--to {name}", told) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; InputError names file and line."""
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else [])
        raise InputError(f"{path}: no such recipe{near}", mend="give a YAML file, or key.path=value settings")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(
            f"{path} holds {path.stat().st_size / 2**20:.1f} MiB, which is too much for a recipe",
            mend="a YAML recipe; data goes behind --data",
        )
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: a recipe is a mapping of keys such as model, data, method, train")
    return {
        key: {SHORT[key]: value} if key in SHORT and isinstance(value, str) else value for key, value in data.items()
    }


def _keys(path: str) -> list[str]:
    """`train.lr` as its parts. InputError where there are more than any key of a recipe has."""
    keys = path.strip().split(".")
    if len(keys) > MOST_PARTS:
        raise InputError(f"a key has at most {MOST_PARTS} parts, this one has {len(keys)}")
    return keys


def assign(data: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set data[k1][k2]... = value. `method: lora` counts as `method: {name: lora}`, `data: FILE` as its path."""
    *parents, last = keys
    for depth, key in enumerate(parents):
        inner = data.get(key)
        if inner is None:
            inner = {}
        elif isinstance(inner, str):
            inner = {SHORT.get(key, "name"): inner}
        elif not isinstance(inner, dict):
            raise InputError(f"{'.'.join(parents[: depth + 1])} is a value, not a block")
        data[key] = inner
        data = inner
    if not parents and last in SHORT and isinstance(value, str | int | float):
        data.setdefault(last, {})
        assign(data, [last, SHORT[last]], str(value))
    elif not parents and last == "method" and isinstance(data.get("method"), dict) and isinstance(value, str):
        # Another method has other fields; the recipe's ones would be unknown keys there.
        data["method"] = {**data["method"], "name": value} if data["method"].get("name") == value else value
    else:
        data[last] = value


def _problems(model: type[BaseModel], error: dict[str, Any]) -> list[str]:
    """A line for each mistake in one pydantic error: key, what is wrong, suggestion."""
    context = error.get("ctx", {})
    if error["type"] == "plugin_fields":
        prefix = _key(error["loc"])
        return [f"{prefix}.{_problem_text(dict(part), context['known'])}" for part in context["errors"]]
    return [_problem_text(error, fields_at(model, error["loc"][:-1]))]


def _problem_text(error: dict[str, Any], known: Sequence[str]) -> str:
    key, kind = _key(error["loc"]), error["type"]
    if kind == "extra_forbidden":
        name = str(error["loc"][-1])
        near = did_you_mean(name, known)
        return f"{key}: unknown key{near or ('; known are ' + ', '.join(known) if known else '')}"
    if kind == "missing":
        return f"{key}: is needed, and has no default"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    given = error.get("input")
    shown = (
        f", not {given!r}"
        if isinstance(given, str | int | float) and kind not in ("value_error", "unknown_plugin")
        else ""
    )
    near = ""
    if kind == "literal_error" and isinstance(given, str):
        near = did_you_mean(given, re.findall(r"'([^']+)'", str(error.get("ctx", {}).get("expected", ""))))
    return f"{key}: {message}{shown}{near}" if key else f"{message}{shown}"


def _key(location: Sequence[Any]) -> str:
    """Dotted path; pydantic adds names of union members, which are no keys."""
    return ".".join(
        str(part) for part in location if not re.search(r"[\[\]()]|^(str|float|int)$|^constrained", str(part))
    )


def fields_at(model: Any, location: Sequence[Any]) -> list[str]:
    """Names of the keys allowed in the block at `location`, aliases left out."""
    for part in location:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = _model_of(field.annotation) if field is not None else None
    return sorted(model.model_fields) if model is not None else []


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        return next((found for part in typing.get_args(annotation) if (found := _model_of(part))), None)
    return None


FAMILIES: Mapping[str, Family[Any]] = {"method": METHODS, "task": TASKS, "format": FORMATS}
"""Every family of plugins that a recipe can name, by the word for one of it."""
