"""Base model and tokenizer from a folder, a hub id or the embedded default, in one way for all."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from luthier.builtin import BASE
from luthier.core.errors import InputError, MissingExtra, ModelError, did_you_mean, install
from luthier.core.resources import closed_file, is_out_of_memory, no_access
from luthier.models.files import (
    FETCH,
    check_config,
    check_folder,
    check_hub,
    check_left_out,
    check_vocabulary,
    damaged,
    few_modules,
    refuse_not_finite,
)
from luthier.models.heads import UNPACKED
from luthier.models.quantized import repair
from luthier.models.settings import ModelConfig

MOST_TOKENS = 2048
"""Default limit of a row, where the model would take more."""


def locate(config: ModelConfig) -> str:
    """Local folder or hub id to hand to transformers; ModelError where a folder lacks what a model needs."""
    if config.path == "builtin":
        return str(BASE)
    folder = Path(config.path).expanduser()
    if folder.is_dir():
        check_folder(folder, weights=config.init == "pretrained")
        return str(folder)
    if config.path.startswith((".", "/", "~")) or config.path.count("/") > 1 or folder.exists():
        near = did_you_mean(folder.name, [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else [])
        raise ModelError(
            f"model.path: {config.path} is no folder{near}", fix="give a model folder, a hub id, or builtin"
        )
    if config.hub == "modelscope":
        try:
            from modelscope import snapshot_download  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise MissingExtra(
                f"model {config.path}: ModelScope's package is not installed", fix=install("modelscope")
            ) from None
        folder = Path(snapshot_download(config.path, revision=config.revision))
        check_folder(folder, weights=config.init == "pretrained")
        return str(folder)
    return config.path


def load_tokenizer(config: ModelConfig, source: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of the base. A missing pad token becomes the end token; the mask goes by place, not id."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=config.revision or "main", trust_remote_code=config.trust_remote_code
        )
    except Exception as error:  # transformers and its hub client raise many kinds
        if Path(source).is_dir():
            config_of(config, source)  # which AutoTokenizer reads first, and which may be what is at fault
        raise _unloadable(config, "tokenizer", error) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"model.path: {config.path} has no fast tokenizer (tokenizer.json), which the loss mask needs",
            fix="save it once with transformers' AutoTokenizer(..., use_fast=True).save_pretrained",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer


def row_limit(
    config: ModelConfig, source: str, tokenizer: PreTrainedTokenizerBase, wanted: int | None, taken: int
) -> int:
    """Longest row in tokens: the recipe's, checked against the model's, or the model's, at most 2048.

    `taken` are the positions that the method's virtual tokens take.
    """
    model = config_of(config, source)
    check_vocabulary(config.path, model, tokenizer)
    own = getattr(model, "max_position_embeddings", None) or getattr(model, "n_positions", None) or MOST_TOKENS
    # RoBERTa has 514 positions and takes 512 tokens: its tokenizer knows. Without a limit that is a huge number.
    own = min(own, tokenizer.model_max_length)
    if own < 1:
        raise ModelError(
            f"model.path: the tokenizer of {config.path} takes {own} tokens at most (model_max_length)",
            fix="correct model_max_length in its tokenizer_config.json",
        )
    if taken >= own:
        raise InputError(
            f"method.length: a prompt of {taken} tokens leaves none of the model's {own} positions to the text",
            fix=f"method.length={max(1, min(20, own // 4))}" if own > 1 else "another base, or method=lora",
        )
    own -= taken
    if wanted and wanted > own:
        raise InputError(
            f"train.max_length: {wanted} is more than the {own} tokens that the model takes"
            + (f" beside the method's {taken}" if taken else ""),
            fix=f"train.max_length={own}",
        )
    return wanted or min(own, MOST_TOKENS)


def load_model(
    config: ModelConfig, source: str, *, labels: tuple[str, ...] | None, tokenizer: PreTrainedTokenizerBase
) -> nn.Module:
    """The base model; with `labels` a classification head for them. Weights come from safetensors only."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # in a log file a bar is a line of noise
    options, model_config, auto = _architecture(config, source, labels)
    quantize = quantization(config, model_config)
    # A decoder's head pools the last token that is not this one.
    model_config.pad_token_id = tokenizer.pad_token_id
    check_vocabulary(config.path, model_config, tokenizer)
    where = device(config)
    dtype = _dtype(config, where)
    try:
        if config.init == "random":
            with few_modules():
                model = auto.from_config(model_config, dtype=torch.float32, trust_remote_code=config.trust_remote_code)
        else:
            if quantize != "none":
                options["device_map"] = {"": where}
            if Path(source).is_dir():  # also of a run, which nobody has looked at before
                check_folder(Path(source), weights=True)
            else:  # of the commit that config.json came from: the branch may have moved since
                options["revision"] = getattr(model_config, "_commit_hash", None) or options["revision"]
                check_hub(source, options["revision"])
            if config.quantize != "none":
                options["quantization_config"] = _quantization(config, labels)
            model = _read(auto, source, labels, config=model_config, dtype=dtype, **options)
    except (MissingExtra, ModelError):
        raise
    except Exception as error:
        raise _unloadable(config, "weights", error) from error
    if quantize == "none":
        model = model.to(where)
    else:
        repair(model)
    refuse_not_finite(model, source)
    return model  # type: ignore[no-any-return]


def _read(auto: Any, source: str, labels: tuple[str, ...] | None, **options: Any) -> nn.Module:
    """`from_pretrained`, but weights that the files lack are an error: only a new head may start random."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would report is told below, or is meant
    try:
        with few_modules():
            model, told = auto.from_pretrained(source, use_safetensors=True, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
    head = re.compile(rf"({'|'.join(UNPACKED)})\b" if labels else "(?!)")
    missing = sorted(name for name in told["missing_keys"] if not head.match(name))
    if missing:
        raise ModelError(
            f"model.path: {len(missing)} weights of {source} are not in its files, among them {missing[0]}",
            fix=f"{FETCH}; its config.json may belong to another",
        )
    check_left_out(told["unexpected_keys"], model, source)
    return model  # type: ignore[no-any-return]


def skeleton(
    config: ModelConfig, source: str, *, labels: tuple[str, ...] | None, layers: int | None = None
) -> nn.Module:
    """The model's modules and shapes on the meta device, or its first `layers` only: no weights, and no memory."""
    _, model_config, auto = _architecture(config, source, labels)
    if layers is not None:
        model_config.num_hidden_layers = layers
        if getattr(model_config, "layer_types", None):
            model_config.layer_types = model_config.layer_types[:layers]
    if labels is None and reads_ahead(model_config):
        raise _wrong_task(config, model_config, labels)
    with torch.device("meta"), few_modules():
        try:
            return auto.from_config(model_config, trust_remote_code=config.trust_remote_code)  # type: ignore[no-any-return]
        except ModelError:
            raise
        except Exception as error:  # transformers builds what config.json says, and fails in many ways
            if isinstance(error, ValueError) and "Unrecognized configuration class" in str(error):
                raise _wrong_task(config, model_config, labels) from error
            raise _unloadable(config, "config.json", error) from error


def _architecture(config: ModelConfig, source: str, labels: tuple[str, ...] | None) -> tuple[dict[str, Any], Any, Any]:
    """(options of every call, the model's configuration, the auto class that builds it)."""
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "revision": config.revision or "main"}
    if Path(source).is_dir():
        check_folder(Path(source), weights=False)
    try:
        model_config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:
        raise _unloadable(config, "config.json", error) from error
    if not Path(source).is_dir():
        check_config(type(model_config).get_config_dict(source, **options)[0], Path(source, "config.json"), {})
    if labels is None:
        return options, model_config, AutoModelForCausalLM
    model_config.num_labels = len(labels)
    model_config.id2label = dict(enumerate(labels))
    model_config.label2id = {label: i for i, label in enumerate(labels)}
    model_config.problem_type = "single_label_classification" if len(labels) > 1 else "regression"
    return options, model_config, AutoModelForSequenceClassification


def config_of(config: ModelConfig, source: str) -> Any:
    """The base's config.json, as transformers reads it."""
    return _architecture(config, source, None)[1]


def stored_type(config: ModelConfig, source: str) -> str:
    """float32, bfloat16 or float16: type of the weights in the base's files, as its config.json says."""
    model_config = config_of(config, source)
    name = str(getattr(model_config, "dtype", None)).removeprefix("torch.")
    return name if name in ("bfloat16", "float16") else "float32"


def reads_ahead(model_config: Any) -> bool:
    """Whether it is an encoder such as BERT: as a decoder it loads, but each token sees the answer it must learn."""
    encoder = model_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not model_config.is_encoder_decoder
    return encoder and getattr(model_config, "is_decoder", None) is False


def _wrong_task(config: ModelConfig, model_config: Any, labels: tuple[str, ...] | None) -> ModelError:
    need, fix = (
        ("a causal decoder", "task=classify, or another base") if labels is None else ("a classifier", "another base")
    )
    return ModelError(
        f"model.path: {config.path} is a {model_config.model_type}, which cannot serve as {need}", fix=fix
    )


def device(config: ModelConfig) -> str:
    """cuda, mps or cpu; ModelError where the recipe names one that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if config.device == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[config.device]:
        raise ModelError(f"model.device: there is no {config.device} on this machine", fix="model.device=auto")
    return config.device


def _dtype(config: ModelConfig, where: str) -> Any:
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    return torch.float32 if where == "cpu" else "auto"


def check_quantize(config: ModelConfig, optimizer: str = "adamw") -> None:
    """InputError where the recipe's quantization cannot serve here. Cheap: comes before any download."""
    from importlib.util import find_spec

    installed = find_spec("bitsandbytes") is not None
    if "8bit" in optimizer or "paged" in optimizer:
        _need_bitsandbytes(installed, "train.optimizer", optimizer, "adamw")
    if config.quantize == "none":
        return
    if config.init == "random":
        raise ModelError(
            f"model.init=random trains all weights, and model.quantize={config.quantize} freezes them",
            fix="model.quantize=none",
        )
    _need_bitsandbytes(installed, "model.quantize", config.quantize, "none")
    if config.quantize != "int8" and config.compute_dtype == "float16" and device(config) == "cpu":
        raise MissingExtra(
            "model.compute_dtype=float16 cannot serve on a CPU: a step takes some 25 times as long there",
            fix="model.compute_dtype=auto",
        )


def quantization(config: ModelConfig, model_config: Any) -> str:
    """How the weights are packed: as the recipe asks, or as they are stored. ModelError where the two differ."""
    stored = getattr(model_config, "quantization_config", None)
    if stored is None:
        return config.quantize
    told = stored if isinstance(stored, dict) else stored.to_dict() if hasattr(stored, "to_dict") else {}
    kind = str(told.get("bnb_4bit_quant_type" if told.get("load_in_4bit") else "quant_method"))
    if kind == "None":
        raise ModelError(
            f"model.path: quantization_config of {config.path} does not say how its weights are packed", fix=FETCH
        )
    kind = "int8" if told.get("load_in_8bit") else kind
    if config.quantize not in ("none", kind):
        raise ModelError(
            f"model.path: the weights of {config.path} are stored as {kind}, and model.quantize={config.quantize}",
            fix="model.quantize=none takes them as they are",
        )
    return kind


def packed_as(config: ModelConfig, source: str) -> str:
    """The same, from config.json alone."""
    return quantization(config, config_of(config, source))


def _need_bitsandbytes(installed: bool, key: str, value: str, instead: str) -> None:
    if not installed:
        raise MissingExtra(
            f"{key}={value} needs bitsandbytes, which is not installed",
            fix=f"{install('quantize')}, or {key}={instead}",
        )


def _quantization(config: ModelConfig, labels: tuple[str, ...] | None) -> Any:
    from transformers import BitsAndBytesConfig

    unpacked = None if labels is None else UNPACKED  # None: transformers leaves the output embedding alone
    if config.quantize == "int8":
        return BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=config.int8_threshold, llm_int8_skip_modules=unpacked
        )
    compute = "bfloat16" if config.compute_dtype == "auto" else config.compute_dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantize,
        bnb_4bit_compute_dtype=getattr(torch, compute),
        bnb_4bit_use_double_quant=config.double_quant,
        llm_int8_skip_modules=unpacked,
    )


def _unloadable(config: ModelConfig, part: str, error: Exception) -> ModelError:
    if (closed := closed_file(error)) is not None:
        told = no_access(closed)
        return ModelError(f"model.path: {told.message}", fix=told.fix)
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    if "trust_remote_code" in str(error):
        return ModelError(
            f"model.path: {config.path} comes with Python code of its own, which is not run unless you ask for it",
            fix="read that code, then model.trust_remote_code=true",
        )
    if is_out_of_memory(error):
        return ModelError(
            f"model.path: the memory is too small for the {part} of {config.path}",
            fix="a smaller base, or one in 4 bit (method=qlora); luthier plan says what a base needs",
        )
    if isinstance(error, ImportError) or "does not recognize this architecture" in str(error):
        fix = "install that package" if isinstance(error, ImportError) else "pip install -U transformers"
        return ModelError(f"model.path: {config.path}: {' '.join(lines)}", fix=f"{fix}, or another base")
    if damaged(error) or Path(config.path).is_dir() or not isinstance(error, OSError):
        return ModelError(
            f"model.path: cannot use the {part} of {config.path}: {type(error).__name__}: {' '.join(lines[:2])}",
            fix=f"{FETCH}; its files may be damaged, or of another model",
        )
    return ModelError(
        f"model.path: cannot load the {part} of {config.path!r}: {type(error).__name__}: {' '.join(lines[:2])}",
        fix="check the name; offline, give a local folder or model=builtin",
    )


def family_of(config: ModelConfig, source: str) -> Literal["encoder", "decoder", "encoder-decoder"]:
    """What kind of model it is, from config.json."""
    _, model_config, _ = _architecture(config, source, None)
    if model_config.is_encoder_decoder:
        return "encoder-decoder"
    return "encoder" if reads_ahead(model_config) else "decoder"


def positions_of(config: ModelConfig, source: str) -> int:
    """Longest row in tokens that config.json allows, at most 2048; a tokenizer may allow less."""
    _, model_config, _ = _architecture(config, source, None)
    return min(getattr(model_config, "max_position_embeddings", None) or MOST_TOKENS, MOST_TOKENS)


def stored_bytes(whole: nn.Module) -> tuple[int, int]:
    """(parameters, their bytes in the type that config.json names, else float32), from a skeleton."""
    number = parameter_counts(whole)[1]
    stored = getattr(whole.config, "dtype", None) or torch.float32
    return number, number * stored.itemsize


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; tied weights count once, 4-bit weights by their unpacked number."""
    trainable = total = 0
    for parameter in model.parameters():
        packed = getattr(parameter, "quant_state", None)
        number = packed.shape.numel() if packed is not None else parameter.numel()
        total += number
        trainable += number if parameter.requires_grad else 0
    return trainable, total
