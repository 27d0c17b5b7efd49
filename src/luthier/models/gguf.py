"""GGUF files as bases: unpacked once into a model folder, which is then read as any other."""

import hashlib
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from luthier.core.errors import ModelError, first_line
from luthier.core.files import cache_root

FILE_TYPES = {"F32": "float32", "F16": "float16"}
"""Type of the largest tensor in the file -> type that the unpacked weights are kept in; bfloat16 for all others."""


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` names: itself, or the only one in a folder without config.json; else None."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    found = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / "config.json").is_file() else []
    if len(found) > 1:
        message = f"model.path: {path} holds {len(found)} GGUF files: {', '.join(file.name for file in found[:5])}"
        raise ModelError(message, fix=f"name one: model.path={found[0]}")
    return found[0] if found else None


def unpacked(file: Path) -> Path:
    """The model folder made of a GGUF file: weights, config.json, tokenizer with its template. Kept in the cache.

    ModelError where transformers cannot read the file. Takes about 20 s for 135 million parameters, the first time.
    """
    state = file.stat()
    name = hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:32]
    folder = cache_root() / f"gguf-{name}"
    if folder.is_dir():
        with suppress(OSError):
            os.utime(folder)  # it was used: `luthier cache` deletes what was used longest ago
        return folder
    cache_root().mkdir(parents=True, exist_ok=True)
    made = Path(mkdtemp(prefix=".staging-gguf-", dir=cache_root()))
    try:
        _unpack(file, made)
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # made by another process meanwhile
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _unpack(file: Path, folder: Path) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # in a log file a bar is a line of noise
    try:
        kind = max(GGUFReader(file).tensors, key=lambda tensor: tensor.n_elements).tensor_type.name
        dtype = getattr(torch, FILE_TYPES.get(kind, "bfloat16"))
        packed = GgufConfig(gguf_file=file.name, dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=packed, dtype=dtype, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:  # the reader and transformers raise many kinds
        message = f"model.path: {file} cannot be unpacked: {first_line(error)}"
        raise ModelError(message, fix="download the file again; or give the model as safetensors") from error
    if hasattr(model.config, "quantization_config"):  # the weights are plain now
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
