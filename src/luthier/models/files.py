"""What a model folder may hold, checked before any of it is opened: weights without pickle, sizes that can be true.

transformers opens what model.safetensors.index.json names, also a pickle, and builds any layers that config.json says.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers.activations import ACT2FN

from luthier.core.errors import InputError, ModelError, did_you_mean
from luthier.core.files import read_object
from luthier.core.resources import refuse_closed

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FETCH = "download the model again"
OTHER_CONFIG = f"{FETCH}; its config.json may belong to another"
ADAPTER_TOO = "model.path: {} holds an adapter beside the model, and a base is loaded without one"

SIZES = re.compile(r"(num|n)_\w+|\w+_(size|dim|rank|layers|heads|positions|embeddings)|d_\w+")
"""Keys of config.json whose whole numbers say how large the model is."""
LARGEST = {"layer": 1_000, "labels": 100_000, "": 2**31}
"""By the word a key has in it: more than any model has. A hundred thousand labels take transformers seconds."""
SHARED = 200
"""Layers that may share the weights of one, as ALBERT's do; a few too many show by weights that are missing."""
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
WIDTHS = re.compile(r"(vocab|hidden|intermediate)_size|n_embd|n_inner|d_model|d_ff|(ffn|head)_dim|(num|n)_\w*heads?")
"""Sizes that some weight has as a side, so none is beyond the largest weight."""
POSITIVE = {*LAYERS, "vocab_size", "hidden_size", "n_embd", "d_model", "n_head", "num_attention_heads"}
POSITIVE |= {"n_positions", "max_position_embeddings"}
ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation")
TOKENS = ("pad_token_id", "decoder_start_token_id")
"""What is fed to a model. An end beyond its vocabulary is never chosen, and the tokenizer's own is used."""
IMPLEMENTATIONS = ("eager", "paged|eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")
"""Implementations within transformers. For others it imports a package or fetches code from a hub."""
MOST_MODULES = 300_000
"""More layers of torch's than any model has; building them takes a minute."""


def check_folder(folder: Path, *, weights: bool) -> None:
    """ModelError where `folder` is not a model folder, or holds what must not be opened."""
    refuse_closed(folder)
    file, adapter = folder / "config.json", (folder / "adapter_config.json").is_file()
    if adapter and file.is_file():  # transformers would put the adapter on the base in silence
        raise ModelError(ADAPTER_TOO.format(folder), fix="move adapter_config.json and its weights elsewhere")
    if adapter:
        message = f"model.path: {folder} holds an adapter, not a base model"
        raise ModelError(message, fix="give the base model it was trained on")
    if not file.is_file():
        raise ModelError(f"model.path: {folder} has no config.json, so it is not a model folder")
    config = read_object(file, FETCH)
    if (generation := folder / "generation_config.json").is_file():
        check_tokens(read_object(generation, FETCH), config, generation)
    if weights and not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        if any((folder / name).is_file() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")):
            message = f"model.path: {folder} has only pickled weights (.bin), which can run code when opened"
            raise ModelError(message, fix="convert them to safetensors first")
        message = f"model.path: {folder} has a config.json but no weights (model.safetensors)"
        raise ModelError(message, fix="finish the download, or train from scratch with model.init=random")
    shapes = [shapes_in(each, FETCH) for each in (weight_files(folder) if weights else ())]
    check_config(config, file, {name: math.prod(shape) for each in shapes for name, shape in each.items()})


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers will open, of the index where there is one; ModelError where one is unsafe."""
    names, there = [WEIGHTS] if (folder / WEIGHTS).is_file() else index_names(folder / INDEX), folder.resolve()
    # A hub's cache keeps files as links from snapshots/COMMIT to blobs beside it.
    cache = folder.absolute().parent.parent.resolve() if folder.absolute().parent.name == "snapshots" else there
    for name in names:
        file = folder / name
        if not file.is_file():
            raise ModelError(f"{folder / INDEX} names {name}, which is not there", fix=FETCH)
        if not any(file.resolve().is_relative_to(place) for place in (there, cache)):
            message = f"{file} is a link that leads out of the model's folder, to {file.resolve()}"
            raise ModelError(message, fix="put the file itself there")
    return [folder / name for name in names]


def index_names(index: Path) -> list[str]:
    """The shards that an index names; ModelError where one is not a safetensors file in the index's own folder."""
    shards = read_object(index, FETCH).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{index}: 'weight_map' should name the file of each tensor", fix=FETCH)
    names = sorted(set(shards.values()))
    for name in names:
        outside = name.startswith(("/", "\\")) or ".." in Path(name.replace("\\", "/")).parts or ":" in name
        if not name.endswith(".safetensors") or outside:
            message = f"{index} names {name!r}; only .safetensors files in its folder are opened: others can run code"
            raise ModelError(message, fix="do not use this model, or convert its weights to safetensors")
    return names


def check_config(config: Mapping[str, Any], file: Path, tensors: Mapping[str, int]) -> None:
    """ModelError for an impossible config.json, or one that fetches code; `tensors` (name -> elements) limit sizes."""

    def refuse(what: str, fix: str = FETCH) -> NoReturn:
        raise ModelError(f"{file}: {what}", fix=fix)

    layers = max((int(found[1]) for name in tensors if (found := re.search(r"\.(\d+)\.", name))), default=None)
    check_tokens(config, config, file)
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and shared > 0 and heads % shared:
        refuse(f"num_key_value_heads is {shared}, which does not divide num_attention_heads, {heads}")
    for key, value in _settings(config):
        last = key.rpartition(".")[2]
        if last == "transformers_weights" and value not in (None, WEIGHTS):
            refuse(f"{key} names {value!r} as weights", f"name them {WEIGHTS} and remove the key")
        if last in ("text_config", "quantization_config") and value is not None:
            refuse(f"{key} should be an object, not {value!r}")
        share = "drop" in last and isinstance(value, int | float) and not 0 <= value <= 1
        if share or (last == "sliding_window" and not isinstance(value, int | None)):
            refuse(f"{key} is {value!r}, which no model has")
        installed = value == "flash_attention_2" and find_spec("flash_attn") is not None
        foreign = not installed and value not in (None, *IMPLEMENTATIONS)
        if "implementation" in key and not key.endswith("_autoset") and foreign:
            code = isinstance(value, str) and "/" in value  # a repository
            why = "would fetch code and run it" if code else f"is none of {', '.join(IMPLEMENTATIONS)}"
            fix = f"remove {key} from config.json, if you trust the rest of the model"
            refuse(f"{key} is {value!r}, which {why}", fix)
        elif last in ACTIVATIONS and isinstance(value, str) and value not in ACT2FN:
            refuse(f"{key} is {value!r}, which transformers does not know{did_you_mean(value, list(ACT2FN))}")
        elif isinstance(value, int) and not isinstance(value, bool) and SIZES.fullmatch(last):
            most = next(most for word, most in LARGEST.items() if word in last)
            if layers is not None and key in LAYERS and value > 2 * layers + SHARED:
                refuse(f"{key} is {value}, and the weights have {layers + 1} layers", OTHER_CONFIG)
            if not (1 if last in POSITIVE else -1) <= value <= most:  # -1 means "none" in some
                refuse(f"{key} is {value}, which no model has")
            if tensors and WIDTHS.fullmatch(last) and value > max(tensors.values()):
                refuse(f"{key} is {value}, and no weight has so many elements", OTHER_CONFIG)


def check_tokens(settings: Mapping[str, Any], config: Mapping[str, Any], file: Path) -> None:
    """ModelError where a token that models are fed with is beyond the vocabulary that the model's `config` names."""
    inner = config.get("text_config")
    size = config.get("vocab_size", inner.get("vocab_size") if isinstance(inner, dict) else None)
    for key in TOKENS:
        value = settings.get(key)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int) and isinstance(size, int) and 0 < size <= each:
                message = f"{file}: {key} is {each}, and the model has {size} tokens, numbered from 0"
                raise ModelError(message, fix=f"correct {key} in {file.name}, or {FETCH}")


def _settings(config: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and depth < 8:
            if "implementation" in key:
                yield from ((f"{prefix}{key}.implementation", each) for each in value.values())
            else:
                yield from _settings(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def check_hub(source: str, revision: str | None) -> None:
    """Check a hub id as `check_folder` does a folder: its index is fetched here, before its shards."""
    from transformers.utils.hub import cached_file

    fetched = partial(cached_file, source, revision=revision, _raise_exceptions_for_missing_entries=False)
    try:
        if fetched("adapter_config.json"):  # transformers would load the base that it names, with the adapter on it
            raise ModelError(ADAPTER_TOO.format(source), fix="give the base model's own id")
        index = None if fetched(WEIGHTS) else fetched(INDEX)
    except OSError:  # loading reports what is wrong with the hub or the name
        return
    if index is not None:
        index_names(Path(index))


@contextmanager
def few_modules() -> Iterator[None]:
    """Within it, a model of more layers than any has is a ModelError, whichever key of config.json asked for them."""
    made = itertools.count(1)

    def count(*_: object) -> None:
        if next(made) > MOST_MODULES:
            raise ModelError(f"config.json asks for more than {MOST_MODULES} modules, which no model has", fix=FETCH)

    with register_module_module_registration_hook(count):
        yield


def check_vocabulary(path: str, model_config: Any, tokenizer: Any) -> None:
    """ModelError where texts may have tokens that the model has no embedding for: they would end a run midway."""
    size = getattr(model_config.get_text_config(), "vocab_size", None)
    added, template = tokenizer.get_added_vocab(), str(tokenizer.chat_template or "")
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    # An added token beyond that no template uses does no harm: Gemma 3 has one for images.
    used = [(n, t) for t, n in tokenizer.get_vocab().items() if t not in added or t in named or t in template]
    number, token = max(used, default=(-1, ""))
    if isinstance(size, int) and number >= size:
        what = f"has token {number} ({token!r}), and the model has {size} tokens, numbered from 0"
        fix = "give the tokenizer that belongs to the model, or enlarge the model once with "
        fix += "model.resize_token_embeddings(len(tokenizer)) and save_pretrained"
        raise ModelError(f"model.path: the tokenizer of {path} {what}", fix=fix)


def check_left_out(unexpected: Iterable[str], model: nn.Module, source: str) -> None:
    """ModelError where the files have more layers than config.json: transformers leaves them out in silence."""
    if getattr(model.config, "num_nextn_predict_layers", None):  # these are stored as layers, and only guess ahead
        return
    own = set(model.state_dict())
    layers = {found[0] for name in own if (found := re.match(r".*?\.\d+\.", name))}
    numbered = [(name, found) for name in unexpected if (found := re.match(r"(.*?\.)\d+\.", name))]
    left = [name for name, at in numbered if at[0] not in layers and f"{at[1]}0.{name[at.end() :]}" in own]
    if left:
        message = f"model.path: {len(left)} weights of {source} are of layers that its config.json leaves out"
        raise ModelError(f"{message}, among them {min(left)}", fix=OTHER_CONFIG)


def refuse_not_finite(model: nn.Module, source: str) -> None:
    """ModelError, with file and name, where a weight is NaN or infinite: before anything is measured with it."""
    if not (name := not_finite(weights_of(model))):
        return
    file, index = (Path(source) / each for each in (WEIGHTS, INDEX))
    if index.is_file() and not file.is_file():
        files = read_object(index, FETCH).get("weight_map", {})
        file = Path(source) / next((files[each] for each in files if name.endswith(each) or each.endswith(name)), INDEX)
    what = f"the weight {name} of {file if file.is_file() else source} holds NaN or infinity"
    fix = f"{FETCH}; where model.dtype=float16 is too small for it, model.dtype=float32"
    raise ModelError(f"model.path: {what}, so every answer would be NaN", fix=fix)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Name of the first tensor that is not finite throughout; empty where there is none."""
    # A NaN or an infinity never leaves a sum. A sum of finite numbers may overflow: such a tensor is looked at twice.
    floats = [(n, t.detach()) for n, t in tensors if t.is_floating_point() and t.device.type != "meta"]
    sums = [tensor.sum(dtype=torch.float32) for _, tensor in floats]
    if not sums or all(torch.stack([each.to(sums[0].device) for each in sums]).isfinite().tolist()):
        return ""
    suspects = (each for each, total in zip(floats, sums, strict=True) if not bool(total.isfinite()))
    return next((name for name, tensor in suspects if not bool(tensor.isfinite().all())), "")


def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter by name; of one packed in 8 or 4 bit its scales, for whole numbers are always finite."""
    for name, parameter in model.named_parameters():
        yield name, parameter
        state: Any = getattr(parameter, "quant_state", None)
        packed = ((parameter, "SCB"), (state, "absmax"), (getattr(state, "state2", None), "absmax"))
        scales = (getattr(owner, key, None) for owner, key in packed)
        yield from ((name, each) for each in scales if isinstance(each, Tensor))


def shapes_in(file: Path, fix: str) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a safetensors file, from its header alone; ModelError with `fix` where it is damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged: {error or 'its header cannot be read'}", fix=fix) from None


def refuse_file(file: Path) -> None:
    """InputError where a tensor of a safetensors file is not finite. For adapters: it reads all of the file."""
    if name := not_finite(load_file(file).items()):
        message = f"{file}: the weight {name} holds NaN or infinity, so every answer would be NaN"
        raise InputError(message, fix="take another adapter, or retrain it with a lower train.lr")
