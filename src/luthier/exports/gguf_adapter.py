"""LoRA as a GGUF file, which llama.cpp lays over a GGUF of the base: one base in memory for many small adapters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import InputError
from luthier.core.shell import command, literal
from luthier.exports.base import Export
from luthier.exports.checking.proof import Player
from luthier.exports.checking.tuned import Tuned
from luthier.exports.llama_cpp.file import (
    BITS,
    LIMITS,
    NAMES,
    Kind,
    in_order,
    name_of,
    refuse_gguf,
    vocabulary_of,
    write_model,
    write_tensors,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from luthier.exports.checking.proof import Prompt

FILE, BASE = "adapter.gguf", "base.gguf"


class GgufAdapter(Export):
    """An adapter for a base that is there as GGUF already, or is written beside it."""

    @property
    def needs(self) -> Literal["adapter", "merged"]:
        return "adapter"

    @property
    def on_plain_base(self) -> bool:
        return True

    base: Literal["none", "f32", "f16", "bf16", "q8_0"] = "none"
    """Write the untouched base too, as base.gguf in this type; none where you have it. The proof plays it then."""
    replay: bool = True
    """Play adapter and base in llama.cpp as a proof. Without it the adapter is only read back and compared."""

    @property
    def replays(self) -> bool:
        return self.replay

    @property
    def _kind(self) -> Kind:
        return "f32" if self.base == "none" else self.base

    def refuse(self, tuned: Tuned) -> None:
        refuse_gguf(tuned, replay=self.replay)
        settings = _settings(tuned)
        told = {
            "trains the size of each output apart (DoRA)": settings.get("use_dora"),
            "keeps whole modules beside it (modules_to_save)": settings.get("modules_to_save"),
            "trains single tokens (trainable_token_indices)": settings.get("trainable_token_indices"),
            "trains biases": settings.get("bias", "none") != "none" or settings.get("lora_bias"),
            "repeats layers (layer_replication)": settings.get("layer_replication"),
            "adapts bare parameters (target_parameters)": settings.get("target_parameters"),
        }
        why = next((text for text, found in told.items() if found), "")
        if settings.get("peft_type") != "LORA":
            why = f"is of method {tuned.method.name}, and llama.cpp knows LoRA alone"
        elif not why and (
            odd := [key for key in _pairs(tuned) if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
        ):
            why = f"holds {odd[0]}"
        elif tuned.config.tie_word_embeddings and any(".lm_head." in key for key in _pairs(tuned)):
            why = "adapts lm_head, which in this base is the embeddings: llama.cpp has no such layer"
        if why:
            raise InputError(
                f"{tuned.run}: GGUF cannot hold this adapter, which {why}", fix=tuned.export_command("gguf")
            )

    def room(self, tuned: Tuned) -> int:
        adapter = sum(file.stat().st_size for file in tuned.weights.glob("adapter_model*.safetensors"))
        whole = self.replay or self.base != "none"
        return int(adapter + (BITS[self._kind] / 8 * tuned.facts["parameters"] if whole else 0))

    def limit(self, tuned: Tuned) -> float:
        return LIMITS[self._kind]

    def write(self, tuned: Tuned, folder: Path) -> None:
        import gguf

        settings = _settings(tuned)
        writer = gguf.GGUFWriter(folder / FILE, NAMES[tuned.config.model_type].lower())
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(Path(tuned.run).name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, _alpha(settings))
        write_tensors(folder / FILE, writer, _tensors(tuned, settings), "f32")
        if self.base != "none":
            _write_base(tuned, folder / BASE, self.base)

    def open(self, tuned: Tuned, folder: Path) -> nn.Module | Player:
        from tempfile import mkdtemp

        from luthier.exports.llama_cpp.player import LlamaPlayer

        if self.base != "none":
            return LlamaPlayer(folder / BASE, tuned.ends, folder / FILE)
        own = Path(mkdtemp(prefix=".staging-base-", dir=folder.parent))
        _write_base(tuned, own / BASE, "f32")
        return LlamaPlayer(own / BASE, tuned.ends, folder / FILE, own)

    def check(self, tuned: Tuned, opened: Any, prompts: Sequence[Prompt]) -> dict[str, Any]:
        from luthier.exports.llama_cpp.player import told

        return told(tuned.tokenizer, opened, prompts)

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        base = "BASE.gguf" if self.base == "none" else f"{folder}/{BASE}"
        length = min(4096, tuned.config.max_position_embeddings)
        return [
            f"from llama_cpp import Llama  # or: {command('llama-server', '-m', base, '--lora', FILE, '--jinja')}",
            f"llama = Llama({literal(base)}, lora_path={literal(f'{folder}/{FILE}')}, n_ctx={length})",
            'llama.create_chat_completion([{"role": "user", "content": "..."}], temperature=0, repeat_penalty=1)',
        ]


def _settings(tuned: Tuned) -> dict[str, Any]:
    """adapter_config.json of the run; empty where it has none."""
    file = tuned.weights / "adapter_config.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _pairs(tuned: Tuned) -> list[str]:
    """Keys of the adapter's file."""
    from safetensors import safe_open

    with safe_open(tuned.weights / "adapter_model.safetensors", framework="np") as stored:
        return list(stored.keys())


def _alpha(settings: dict[str, Any]) -> float:
    """llama.cpp multiplies by alpha / rank: rsLoRA's alpha / sqrt(rank) needs a larger one."""
    return float(settings["lora_alpha"]) * (float(settings["r"]) ** 0.5 if settings.get("use_rslora") else 1.0)


def _tensors(tuned: Tuned, settings: dict[str, Any]) -> dict[str, Callable[[], NDArray[Any]]]:
    """{llama.cpp's name: how to get A or B in float32}."""
    from peft.utils.other import get_pattern_key
    from safetensors.numpy import load_file

    from luthier.kernels.finite import refuse_file

    refuse_file(tuned.weights / "adapter_model.safetensors")
    state = load_file(tuned.weights / "adapter_model.safetensors")
    tensors: dict[str, Callable[[], NDArray[Any]]] = {}
    for key, numbers in state.items():
        layer, _, part = key.removeprefix("base_model.model.").partition(".lora_")
        weight = f"{layer}.weight"
        made = numbers.astype("float32")
        if part.startswith("B."):
            # A file has one alpha: what a layer has of its own (alpha_pattern, rank_pattern) goes into its B.
            own = {name: settings.get(f"{name}_pattern") or {} for name in ("alpha", "rank")}
            alpha, rank = (own[name].get(get_pattern_key(list(own[name]), layer)) for name in ("alpha", "rank"))
            rank = rank or settings["r"]
            alpha = _alpha({**settings, "r": rank, **({"lora_alpha": alpha} if alpha else {})})
            if alpha != _alpha(settings):
                made = (made * (alpha / _alpha(settings))).astype("float32")
            made = in_order(tuned.config, weight, made)
        tensors[f"{name_of(tuned.config, weight)}.lora_{part[0].lower()}"] = lambda made=made: made  # type: ignore[misc]
    return tensors


def _write_base(tuned: Tuned, path: Path, kind: Kind) -> None:
    """The untouched base, not packed."""
    write_model(path, tuned.open_plain_base(), vocabulary_of(tuned), kind, Path(tuned.base).name)
