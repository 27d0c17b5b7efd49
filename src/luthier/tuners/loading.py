"""Put an adapter's folder on a base. Every way to load one goes through here; weights that do not fit are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from luthier.errors import InputError
from luthier.ops.finite import refuse_file
from luthier.origin import refuse_imports

WEIGHTS = "adapter_model.safetensors"
FIX = "give the base that it was trained on; or the file is damaged, then restore or retrain it"


def load_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """A PeftModel of `model` with the adapter in `folder`.

    InputError where its weights are not exactly those that its configuration makes on this base. PEFT ignores weights
    without a place and initializes missing ones, both in silence: the model would answer as the base does.
    """
    from peft import PeftModel

    file = folder / WEIGHTS
    if not file.is_file():  # PEFT would open a pickle instead
        raise InputError(
            f"{folder} holds no {WEIGHTS}; a pickle (.bin) can run code and is not opened",
            mend="save the adapter again with PEFT, which writes safetensors",
        )
    refuse_imports(folder)
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        refuse_file(file)
        tuned: Any = PeftModel.from_pretrained(model, str(folder))
    except SafetensorError as error:
        raise InputError(f"{file} is damaged: {error}", mend="restore it from a copy, or retrain") from None
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()
        raise InputError(f"{folder} is not an adapter for this base: {' '.join(reason[:2])}", mend=FIX) from error
    _check_names(tuned, shapes, file)
    return tuned  # type: ignore[no-any-return]


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
