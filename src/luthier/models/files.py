"""What a model folder may hold, checked before any of it is opened: weights without pickle, sizes that can be true.

A folder may come from anyone. transformers opens what model.safetensors.index.json names, a pickle too, and builds what
config.json says, a million layers too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.errors import InputError, ModelError, did_you_mean
from luthier.ledger import read_object
from luthier.training.space import refuse_closed

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OLD_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FETCH = "download the model again"

SIZES = re.compile(r"(num|n)_\w+|\w+_(size|dim|rank|layers|heads|positions|embeddings)|d_\w+")
"""Keys of config.json whose whole numbers say how large the model is."""
LARGEST = {"layers": 2_000, "": 2**31}
"""By the word a key has in it: more than any model has."""
SHARED = 200
"""Layers that may share the weights of one, as ALBERT's do; a few too many are told by weights that are missing."""
LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation")


def check_folder(folder: Path, *, weights: bool) -> None:
    """ModelError where `folder` is no model folder, or holds what must not be opened."""
    refuse_closed(folder)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"model.path: {folder} holds an adapter, not a base model", mend="give the base model it was trained on"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.path: {folder} has no config.json, so it is no model folder")
    if not weights:
        check_config(read_object(folder / "config.json", FETCH), folder / "config.json", ())
        return
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        if any((folder / name).is_file() for name in OLD_WEIGHTS):
            raise ModelError(
                f"model.path: {folder} has only pickled weights (.bin), which can run code when opened",
                mend="convert them to safetensors first",
            )
        raise ModelError(
            f"model.path: {folder} has a config.json but no weights (model.safetensors)",
            mend="finish the download, or train from scratch with model.init=random",
        )
    files = weight_files(folder)
    check_config(read_object(folder / "config.json", FETCH), folder / "config.json", tensors_of(files))


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers will open, of the index where there is one; ModelError where one is unsafe."""
    names = [WEIGHTS] if (folder / WEIGHTS).is_file() else index_names(folder / INDEX)
    there = folder.resolve()
    # A hub's cache keeps files as links from snapshots/COMMIT to blobs beside it.
    cache = folder.absolute().parent.parent.resolve() if folder.absolute().parent.name == "snapshots" else there
    for name in names:
        file = folder / name
        if not file.is_file():
            raise ModelError(f"{folder / INDEX} names {name}, which is not there", mend=FETCH)
        if not any(file.resolve().is_relative_to(place) for place in (there, cache)):
            raise ModelError(
                f"{file} is a link that leads out of the model's folder, to {file.resolve()}",
                mend="put the file itself there",
            )
    return [folder / name for name in names]


def index_names(index: Path) -> list[str]:
    """The shards that an index names; ModelError where one is no safetensors file in the index's own folder."""
    shards = read_object(index, FETCH).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{index}: 'weight_map' should say for each tensor in which file it is", mend=FETCH)
    names = sorted(set(shards.values()))
    for name in names:
        outside = name.startswith(("/", "\\")) or ".." in Path(name.replace("\\", "/")).parts or ":" in name
        if not name.endswith(".safetensors") or outside:
            raise ModelError(
                f"{index} names {name!r} as weights; only .safetensors files in its folder are opened, for others can "
                "run code",
                mend="do not use this model, or convert its weights to safetensors",
            )
    return names


def tensors_of(files: list[Path]) -> Iterator[str]:
    """Names of the tensors in safetensors files, from their headers alone."""
    for file in files:
        try:
            with file.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                if size > 2**28:
                    raise ValueError("its header is too long")
                yield from (name for name in json.loads(opened.read(size)) if name != "__metadata__")
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} is damaged: {error}", mend=FETCH) from None


def check_config(config: Mapping[str, Any], file: Path, tensors: Iterator[str] | tuple[str, ...]) -> None:
    """ModelError where config.json says what no model is, or would have code fetched.

    `tensors` are the names in the weights; a model has not many more layers than those are of.
    """
    layers = max((int(found[1]) for name in tensors if (found := re.search(r"\.(\d+)\.", name))), default=None)
    for key, value in _settings(config):
        last = key.rpartition(".")[2]
        if last == "transformers_weights" and value not in (None, WEIGHTS):
            raise ModelError(
                f"{file}: {key} names {value!r} as weights", mend=f"name them {WEIGHTS} and remove the key"
            )
        if "implementation" in last:
            _check_implementation(key, value, file)
        elif last in ACTIVATIONS and isinstance(value, str):
            _check_activation(key, value, file)
        elif isinstance(value, int) and not isinstance(value, bool) and SIZES.fullmatch(last):
            most = LARGEST["layers" if "layers" in last else ""]
            if layers is not None and key in LAYERS and value > 2 * layers + SHARED:
                raise ModelError(
                    f"{file}: {key} is {value}, and the weights have {layers + 1} layers",
                    mend=f"{FETCH}; its config.json may belong to another",
                )
            if not -1 <= value <= most or (value < 1 and last in ("vocab_size", "hidden_size", "num_hidden_layers")):
                raise ModelError(f"{file}: {key} is {value}, which no model has", mend=FETCH)


def _settings(config: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and depth < 8:
            if "implementation" in key:
                yield from ((f"{prefix}{key}.implementation", each) for each in value.values())
            else:
                yield from _settings(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def _check_implementation(key: str, value: Any, file: Path) -> None:
    """A name with a slash is a repository whose kernels transformers would fetch and run."""
    if isinstance(value, str) and not re.fullmatch(r"[a-z0-9_]+(\|[a-z0-9_]+)?", value):
        raise ModelError(
            f"{file}: {key} is {value!r}, which would fetch code and run it",
            mend=f"remove {key} from config.json, if you trust the rest of the model",
        )


def _check_activation(key: str, value: str, file: Path) -> None:
    from transformers.activations import ACT2FN

    if value not in ACT2FN:
        raise ModelError(
            f"{file}: {key} is {value!r}, which transformers does not know{did_you_mean(value, list(ACT2FN))}",
            mend=FETCH,
        )


def check_hub_index(source: str, revision: str | None) -> None:
    """The same for a hub id, whose index is fetched here, before its shards; ModelError as of `index_names`."""
    from transformers.utils.hub import cached_file

    try:
        single = cached_file(source, WEIGHTS, revision=revision, _raise_exceptions_for_missing_entries=False)
        index = single or cached_file(source, INDEX, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError:  # loading will say what is wrong with the hub or the name
        return
    if index is not None and not single:
        index_names(Path(index))


def damaged(error: Exception) -> bool:
    """Is it how a safetensors file that is cut or garbled is refused?"""
    return type(error).__name__ == "SafetensorError" or (isinstance(error, InputError) and "damaged" in str(error))
