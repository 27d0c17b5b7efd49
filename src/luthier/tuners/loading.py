"""Put an adapter's folder on a base. Every way to load one goes through here; weights that do not fit are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from luthier.errors import InputError, OutOfMemory
from luthier.ledger import read_object
from luthier.training.space import is_out_of_memory

WEIGHTS = "adapter_model.safetensors"
FIX = "give the base that it was trained on; or the file is damaged, then restore or retrain it"
RESTORE = "restore it from a copy, or retrain"
SIZES = ("r", "init_r", "target_r", "num_virtual_tokens")
"""Keys of adapter_config.json that say how large its weights are."""


def load_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """A PeftModel of `model` with the adapter in `folder`.

    InputError where its weights are not exactly those that its configuration makes on this base. PEFT ignores weights
    without a place and initializes missing ones, both in silence: the model would answer as the base does.
    """
    from peft import PeftModel

    shapes = shapes_of(folder)
    try:
        tuned: Any = PeftModel.from_pretrained(model, str(folder))
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS} is damaged: {error}", mend=RESTORE) from None
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unfit(folder, error) from error
    _check_names(tuned, shapes, folder / WEIGHTS)
    return tuned  # type: ignore[no-any-return]


def check_fit(skeleton: nn.Module, folder: Path) -> None:
    """InputError as of `load_adapter`, without any weights: `skeleton` is the base on the meta device."""
    from peft import PeftConfig, get_peft_model

    shapes = shapes_of(folder)
    try:
        with torch.device("meta"):
            tuned = get_peft_model(skeleton, PeftConfig.from_pretrained(str(folder)))
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _unfit(folder, error) from error
    _check_names(tuned, shapes, folder / WEIGHTS)


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each weight in an adapter's file, from its header; InputError where it is a pickle, damaged, or not
    what adapter_config.json says.
    """
    file, settings = folder / WEIGHTS, read_object(folder / "adapter_config.json", RESTORE)
    if not file.is_file():  # PEFT would open a pickle instead
        raise InputError(
            f"{folder} holds no {WEIGHTS}; a pickle (.bin) can run code and is not opened",
            mend="save the adapter again with PEFT, which writes safetensors",
        )
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{file} is damaged: {error}", mend=RESTORE) from None
    largest = max(map(math.prod, shapes.values()), default=0)
    for key in SIZES if shapes else ():  # PEFT would make the memory for it before it compares
        if isinstance(settings.get(key), int) and settings[key] > largest:
            raise InputError(
                f"{folder / 'adapter_config.json'}: {key} is {settings[key]}, and no weight of {WEIGHTS} has so many "
                "elements",
                mend=RESTORE,
            )
    return shapes


def _unfit(folder: Path, error: Exception) -> Exception:
    if is_out_of_memory(error):
        return OutOfMemory(
            f"the memory is too small for the adapter {folder}", mend="a smaller base, or fewer adapters at once"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()
    return InputError(f"{folder} is not an adapter for this base: {' '.join(reason[:2])}", mend=FIX)


def _check_names(tuned: Any, shapes: dict[str, tuple[int, ...]], file: Path) -> None:
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    # PEFT adds the embeddings to the file where tokens were added; they are loaded by their own names.
    own = {name.removeprefix("base_model.model."): tuple(tensor.shape) for name, tensor in tuned.state_dict().items()}
    foreign = sorted(
        name for name, shape in shapes.items()
        if name not in wanted and own.get(name.removeprefix("base_model.model.")) != shape
    )  # fmt: skip
    missing = sorted(set(wanted) - set(shapes))
    odd = sorted(name for name in wanted if name in shapes and tuple(wanted[name].shape) != shapes[name])
    if foreign or missing or odd:
        told = [
            f"{len(names)} of {total} weights {what}, among them {names[0]}"
            for names, total, what in (
                (foreign, len(shapes), "in it have no place in this model"),
                (missing, len(wanted), "that the model needs are not in it"),
                (odd, len(shapes), "in it have another shape"),
            )
            if names
        ]
        raise InputError(f"{file} is not an adapter for this base: {'; '.join(told)}", mend=FIX)


def sort_settings(folder: Path) -> None:
    """Sort what PEFT keeps as sets: it writes them in an order that differs from process to process."""
    file = folder / "adapter_config.json"
    saved = json.loads(file.read_text(encoding="utf-8"))
    for value in saved.values():
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            value.sort()
    file.write_text(json.dumps(saved, indent=2, sort_keys=True), encoding="utf-8")


def check_same(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], file: Path) -> None:
    """InputError where a checkpoint's weights are not exactly those of the model, by name and shape."""
    odd = sorted(
        name
        for name in {*expected, *stored}
        if name not in expected or name not in stored or expected[name].shape != stored[name].shape
    )
    if odd:
        raise InputError(
            f"{file}: {len(odd)} weights do not match this model, among them {odd[0]}",
            mend="restore the checkpoint; or put it aside, and the run goes on from the one before",
        )
