"""Put an adapter's folder on a base. Every way to load one goes through here; weights that do not fit are refused."""

import math
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.core.errors import InputError, OutOfMemory, first_line
from luthier.core.files import cache_root, read_object
from luthier.core.resources import is_out_of_memory
from luthier.core.strict_json import to_json
from luthier.models.files import refuse_file, shapes_in

WEIGHTS = "adapter_model.safetensors"
FIX = "give the base that it was trained on; or the file is damaged, then restore or retrain it"
RESTORE = "restore it from a copy, or retrain"
SIZES = ("r", "init_r", "target_r", "num_virtual_tokens")
"""Keys of adapter_config.json that say how large its weights are."""
MOVED = "save it with PEFT's path_initial_model_for_weight_conversion, and it is a plain LoRA"
"""What to say of an adapter that `moves_base`."""
HARMLESS = ("merge_weights",)
"""Keys of the first versions of PEFT that later ones do not read, and that change no result."""
MOST_COPIES = 100
"""Of parts of the model, in an adapter that repeats some. Each takes time to build."""
MOST_PARTS = 9
"""Of a fused layer. Each takes memory, and no layer fuses more."""
MATCHING = 10.0
"""Seconds that the regular expressions of an adapter may take; those of real ones take milliseconds."""
MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for form in ("%s", r"(.*\\.)?(%s)$", r".*\\.%s\\.(\\d+)\\."):
        try:
            compiled = re.compile(form % pattern)
        except (re.error, RecursionError, OverflowError):
            continue  # PEFT refuses it
        for name in names:
            compiled.match(name)
            compiled.fullmatch(name)
"""


def load_adapter(model: nn.Module, folder: Path, train_as: Any = None) -> nn.Module:
    """A PeftModel of `model` with the adapter in `folder`; on the meta device without weights, to see if they fit.

    `train_as` is PEFT's configuration with which its weights train on. InputError where they are not exactly those that
    the configuration makes on this base. PEFT ignores weights without a place and initializes missing ones, both in
    silence: the model would answer as the base does.
    """
    from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    from luthier.methods.layers.prefix import from_peft

    file, shapes = folder / WEIGHTS, shapes_of(folder)
    empty = next(model.parameters()).is_meta
    if not empty:
        refuse_file(file)
    _check_patterns(model, folder / "adapter_config.json")
    try:
        # What PEFT warns of here is refused by `shapes_of` or below, or changes nothing.
        warnings.filterwarnings(
            "ignore", "Unexpected keyword arguments|Found missing adapter keys|fan_in_fan_out is set"
        )
        config = train_as or PeftConfig.from_pretrained(str(folder))
        config.inference_mode = train_as is None
        if config.peft_type == "PREFIX_TUNING":
            prefixed: nn.Module = from_peft(model, config, None if empty else load_file(file), shapes)
            return prefixed
        if empty or train_as:
            config.base_model_name_or_path = None  # PEFT would warn that this base has another name
            with torch.device("meta") if empty else nullcontext():
                tuned: Any = get_peft_model(model, config)
            if not empty:
                set_peft_model_state_dict(tuned, load_file(file))
        else:
            tuned = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # PEFT builds what the file says, and fails in many ways
        if is_out_of_memory(error):
            message = f"the memory is too small for the adapter {folder}"
            raise OutOfMemory(message, fix="a smaller base, or fewer adapters at once") from error
        reason = (str(error).strip() or type(error).__name__).splitlines()
        raise InputError(f"{folder} is not an adapter for this base: {' '.join(reason[:2])}", fix=FIX) from error
    if train_as and config.is_prompt_learning:  # PEFT would run these through the encoder, which has no numbers here
        wanted = {"prompt_embeddings": tuned.prompt_encoder["default"].embedding.weight}
    else:
        wanted = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    # PEFT adds the embeddings to the file where tokens were added; they are loaded by their own names.
    own = {name.removeprefix("base_model.model."): tuple(tensor.shape) for name, tensor in tuned.state_dict().items()}
    extra = shapes.keys() - wanted.keys()
    foreign = [name for name in extra if own.get(name.removeprefix("base_model.model.")) != shapes[name]]
    odd = [name for name in wanted if name in shapes and tuple(wanted[name].shape) != shapes[name]]
    if config.is_prompt_learning and "prompt_embeddings" in shapes:  # PEFT makes them as wide as the file says
        width = tuned.word_embeddings.weight.shape[-1]
        odd = odd or ["prompt_embeddings"] * (shapes["prompt_embeddings"][-1] != width)
    found = (
        (foreign, len(shapes), "in it have no place in this model"),
        (wanted.keys() - shapes.keys(), len(wanted), "that the model needs are not in it"),
        (odd, len(shapes), "in it have another shape"),
    )
    bad = [f"{len(names)} of {n} weights {what}, among them {min(names)}" for names, n, what in found if names]
    if bad:
        raise InputError(f"{file} is not an adapter for this base: {'; '.join(bad)}", fix=FIX)
    if not empty:
        fill(wanted, load_file(file))
    return tuned  # type: ignore[no-any-return]


def moves_base(settings: Mapping[str, Any]) -> bool:
    """Whether PEFT changes the base's own weights when it loads the adapter with this adapter_config.json."""
    return str(settings.get("init_lora_weights", "")).lower().startswith(("pissa", "olora", "corda", "loftq"))


@torch.no_grad()
def fill(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Copy `stored` weights into those of the adapter, `own`, that PEFT left as they were."""
    # PEFT 0.21.2 renames keys as transformers renames the base's (shared_experts of Laguna), finds no such weights in
    # the model and says nothing. Goes when it renames only keys that the model lacks.
    for name, tensor in own.items():
        if name in stored and not torch.equal(tensor, value := stored[name].to(tensor)):
            tensor.copy_(value)


def without_pickle(folder: Path) -> Path:
    """The folder, or where its weights are a pickle (PEFT before 0.8), a copy of it in the cache with safetensors.

    InputError where the pickle holds more than tensors: opening that could run code.
    """
    pickled, settings = folder / "adapter_model.bin", folder / "adapter_config.json"
    if (folder / WEIGHTS).is_file() or not pickled.is_file():
        return folder
    state, said = pickled.stat(), read_object(settings, RESTORE)
    key = sha256(f"{pickled.resolve()} {state.st_size} {state.st_mtime_ns} {to_json(said)}".encode()).hexdigest()[:32]
    made = cache_root() / f"adapter-{key}" / folder.resolve().name
    if (made / WEIGHTS).is_file():
        return made
    try:
        found = torch.load(pickled, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not all(isinstance(each, Tensor) for each in found.values()):
            raise ValueError("it is no table of tensors")
        found = {name: tensor.contiguous().clone() for name, tensor in found.items()}
    except Exception as error:  # torch's reader raises many kinds
        message = f"{pickled} is a pickle that holds more than weights, or is damaged: {first_line(error)}"
        raise InputError(message, fix="save the adapter again with PEFT, which writes safetensors") from error
    made.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".txt", ".model"):
            shutil.copy(file, made)
    if said.get("enable_lora"):
        (made / settings.name).write_text(to_json(_as_plain_lora(found, said, settings)), encoding="utf-8")
    temporary = made / f".{WEIGHTS}"
    save_file(found, temporary)
    temporary.rename(made / WEIGHTS)
    return made


def _as_plain_lora(tensors: dict[str, Tensor], settings: dict[str, Any], file: Path) -> dict[str, Any]:
    """Settings of the LoRA that computes the same as one with `enable_lora`, whose `tensors` are changed to its.

    Before 0.3, PEFT cut the outputs of a fused layer into equal parts (GPT-2's query, key and value). Each of the n
    that `enable_lora` marks had r rows of A and, in a grouped convolution, B of [outputs of the part, r, 1]. Plain LoRA
    of rank n * r has these B as blocks of [outputs, n * r], and 0 elsewhere; alpha grows with r. InputError where the
    weights are not so.
    """
    marks, rank, alpha = settings["enable_lora"], settings.get("r"), settings.get("lora_alpha")
    real = isinstance(marks, list) and len(marks) <= MOST_PARTS
    on = [part for part, mark in enumerate(marks) if mark] if real else []
    for name in [each for each in tensors if each.endswith("lora_B.weight")]:
        grouped = tensors[name]
        if not on or not isinstance(rank, int) or grouped.shape[1:] != (rank, 1) or len(grouped) % len(on):
            message = f"{file}: enable_lora={marks} and r={rank} do not fit {name}, which is {list(grouped.shape)}"
            raise InputError(message, fix=RESTORE)
        blocks = grouped.squeeze(-1).chunk(len(on))
        plain = grouped.new_zeros(len(marks), len(blocks[0]), len(on), rank)
        for place, (part, block) in enumerate(zip(on, blocks, strict=True)):
            plain[part, :, place] = block
        tensors[name] = plain.flatten(2).flatten(0, 1)
    scaled = {
        key: value * len(on) for key, value in (("r", rank), ("lora_alpha", alpha)) if isinstance(value, int | float)
    }
    return {**settings, **scaled, "enable_lora": None}


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each weight of an adapter, from its file's header.

    InputError where that is bad, or where adapter_config.json makes PEFT import a module or open a pickle that it
    names, or holds a number that would take memory or time without end, or make NaN.
    """
    weights, file = folder / WEIGHTS, folder / "adapter_config.json"
    settings = read_object(file, RESTORE)
    if not weights.is_file():  # PEFT would open a pickle instead
        message = f"{folder} holds no {WEIGHTS}; a pickle (.bin) can run code and is not opened"
        raise InputError(message, fix="save the adapter again with PEFT, which writes safetensors")
    for key in ("megatron_config", "prompt_tuning_init_state_dict_path"):
        if settings.get(key):
            message = f"{file}: {key} makes PEFT run or open what the file names, which Luthier does not do"
            raise InputError(message, fix=f"set {key} to null there if the adapter works without")
    if settings.get("peft_type") == "XLORA":
        message = f"{file}: an X-LoRA adapter opens other adapters that it names, which may be pickles"
        raise InputError(message, fix="give one of the adapters that it is made of")
    if settings.get("shadow_model", "mirror") != "mirror":
        message = f"{file}: shadow_model makes PEFT open another model, which Luthier does not do"
        raise InputError(message, fix="an adapter whose shadow_model is mirror")
    _refuse_unknown(settings, file)
    shapes = shapes_in(weights, RESTORE)
    largest = max(map(math.prod, shapes.values()), default=0)
    numbers = dict(settings)
    for key in ("rank_pattern", "alpha_pattern"):
        inner = settings.get(key)
        numbers |= {f"{key}.{name}": each for name, each in inner.items()} if isinstance(inner, dict) else {}
    for key, value in numbers.items():
        if isinstance(value, int | float) and not abs(value) < torch.finfo(torch.float32).max:
            raise InputError(f"{file}: {key} is {value}, so every answer would be NaN", fix=RESTORE)
        # PEFT would make the memory for it before it compares.
        if (key in SIZES or key.startswith("rank_pattern")) and isinstance(value, int) and value > largest > 0:
            raise InputError(f"{file}: {key} is {value}, and no weight of {WEIGHTS} has so many elements", fix=RESTORE)
    copies = settings.get("layer_replication")
    if isinstance(copies, list) and len(copies) > MOST_COPIES:
        raise InputError(f"{file}: layer_replication has {len(copies)} parts, which no model has", fix=RESTORE)
    return shapes


def _refuse_unknown(settings: Mapping[str, Any], file: Path) -> None:
    """InputError where a kind, or a key with a value, is unknown to PEFT, which drops such keys with a warning only."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, __version__

    kind = str(settings.get("peft_type"))
    found: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)  # type: ignore[call-overload]
    newer = f"install the PEFT that wrote it ({settings.get('peft_version') or 'newer'})"
    if found is None:
        message = f"{file}: peft_type {kind} is no kind of adapter that PEFT {__version__} knows"
        raise InputError(message, fix=newer)
    known = {each.name for each in fields(found)} | {*HARMLESS, "peft_version"}
    if odd := sorted(key for key, value in settings.items() if key not in known and value):
        message = f"{file}: PEFT {__version__} does not know {odd[0]}={str(settings[odd[0]])[:80]}, and would ignore it"
        raise InputError(message, fix=f"{newer}; or remove the key there, if the adapter computes the same without")


def _check_patterns(model: nn.Module, file: Path) -> None:
    """InputError where matching the regular expressions of a configuration takes too long in another process."""
    patterns = []
    for value in read_object(file, RESTORE).values():
        each = [value] if isinstance(value, str) else value if isinstance(value, list | dict) else ()
        patterns += [text for text in each if isinstance(text, str) and re.search(r"[*+{]", text)]
    if not patterns:
        return
    command, names = [sys.executable, "-I", "-c", MATCH], [name for name, _ in model.named_modules()]
    given = to_json([patterns, names])
    try:
        subprocess.run(command, input=given, text=True, timeout=MATCHING, check=False, capture_output=True)
    except subprocess.TimeoutExpired:
        what = f"take more than {MATCHING:g} s on this model's names: {patterns[0][:100]!r}, ..."
        raise InputError(f"{file}: its regular expressions {what}", fix="name the layers in a list instead") from None


def check_same(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], file: Path) -> None:
    """InputError where a checkpoint's weights are not exactly those of the model, by name and shape."""
    both = expected.keys() & stored.keys()
    odd = (expected.keys() ^ stored.keys()) | {name for name in both if expected[name].shape != stored[name].shape}
    if odd:
        message = f"{file}: {len(odd)} weights do not match this model, among them {min(odd)}"
        fix = "restore the checkpoint; or put it aside, and rerun to resume from an earlier one"
        raise InputError(message, fix=fix)


@torch.no_grad()
def copy_same(stored: Mapping[str, Tensor], own: Mapping[str, Tensor], file: Path) -> None:
    """Copy a checkpoint's weights into the model's `own`; InputError as of `check_same`."""
    check_same(own, stored, file)
    for name, value in stored.items():
        own[name].copy_(value)
