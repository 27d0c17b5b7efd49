"""LoRA as a GGUF file, which llama.cpp applies to a GGUF of the base: one base in memory for many small adapters."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

from luthier.core.errors import InputError
from luthier.core.shell import literal, shell_line
from luthier.exports.base import Bounds, Export, Opened, Tuned
from luthier.exports.gguf import refuse_gguf, run_vocabulary, verified
from luthier.exports.llama_cpp import file as gguf_file
from luthier.rendering.row import Row

FILE, BASE, WEIGHTS = "adapter.gguf", "base.gguf", "adapter_model.safetensors"
UNSUPPORTED = "use_dora modules_to_save trainable_token_indices bias lora_bias layer_replication target_parameters"
"""Settings in adapter_config.json that ask for more than A and B of whole layers."""


class GgufAdapter(Export):
    """An adapter for a base that exists as GGUF already, or is written beside it."""

    base: Literal["none", "f32", "f16", "bf16", "q8_0"] = "none"
    """Write the untouched base too, as base.gguf in this type, and check parity with it; none if you have it."""
    replay: bool = True
    """Run the parity check in llama.cpp. Otherwise the adapter is only read back and compared."""

    @property
    def _kind(self) -> gguf_file.Kind:
        return "f32" if self.base == "none" else self.base

    def refuse(self, tuned: Tuned) -> None:
        from safetensors import safe_open

        refuse_gguf(tuned, replay=self.replay)
        settings = _settings(tuned)
        if settings.get("peft_type") != "LORA":
            why = f"is of method {tuned.method.name}, and llama.cpp supports only LoRA"
        elif found := [key for key in UNSUPPORTED.split() if settings.get(key) not in (None, False, "none", [], {})]:
            why = f"has more than LoRA's A and B: {found[0]}={settings[found[0]]}"
        else:
            with safe_open(tuned.weights / WEIGHTS, framework="np") as stored:
                keys = list(stored.keys())
            odd = [key for key in keys if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
            why = f"contains {odd[0]}" if odd else ""
            if not why and tuned.config.tie_word_embeddings and any(".lm_head." in key for key in keys):
                why = "adapts lm_head, which in this base is the embeddings: llama.cpp has no such layer"
        if why:
            text = f"{tuned.run}: GGUF cannot hold this adapter, which {why}"
            raise InputError(text, fix=tuned.export_command("gguf"))

    def required_bytes(self, tuned: Tuned) -> int:
        adapter = sum(file.stat().st_size for file in tuned.weights.glob("adapter_model*.safetensors"))
        whole = self.replay or self.base != "none"
        return int(adapter + (gguf_file.BITS[self._kind] / 8 * tuned.facts["parameters"] if whole else 0))

    def bounds(self, tuned: Tuned) -> Bounds:
        return gguf_file.LIMITS[self._kind], None

    def write(self, tuned: Tuned, folder: Path) -> None:
        import gguf
        from peft.utils.other import get_pattern_key
        from safetensors.torch import load_file

        from luthier.models.files import refuse_file

        settings, tensors = _settings(tuned), dict[str, Any]()  # llama.cpp's name -> function that returns A or B
        refuse_file(tuned.weights / WEIGHTS)
        for key, tensor in load_file(tuned.weights / WEIGHTS).items():
            layer, _, part = key.removeprefix("base_model.model.").partition(".lora_")
            name = gguf_file.name_of(tuned.config, f"{layer}.weight")
            if part.startswith("A."):
                tensors[f"{name}.lora_a"] = tensor.float().numpy
                continue
            # A file has one alpha: if a layer has its own (alpha_pattern, rank_pattern), that goes into its B.
            own = dict(settings)
            for setting, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
                patterns = settings.get(pattern) or {}
                own[setting] = patterns.get(get_pattern_key(list(patterns), layer)) or settings[setting]
            scale = _alpha(own) / _alpha(settings)
            made = tensor.float() if scale == 1 else tensor.float() * scale
            tensors[f"{name}.lora_b"] = partial(gguf_file.permuted, tuned.config, f"{layer}.weight", made)
        writer = gguf.GGUFWriter(folder / FILE, gguf_file.NAMES[tuned.config.model_type].lower())
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(Path(tuned.run).name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, _alpha(settings))
        gguf_file.write_tensors(folder / FILE, writer, tensors, "f32")
        if self.base != "none":
            self._write_base(tuned, folder / BASE)

    def _write_base(self, tuned: Tuned, path: Path) -> None:
        vocabulary = run_vocabulary(tuned)
        gguf_file.write_model(path, tuned.open_plain_base(), vocabulary, self._kind, tuned.base)

    def open(self, tuned: Tuned, folder: Path) -> Opened:
        if self.base != "none":
            return gguf_file.LlamaRunner(folder / BASE, tuned.ends, folder / FILE)
        own = Path(mkdtemp(prefix=".staging-base-", dir=folder.parent))
        self._write_base(tuned, own / BASE)
        return gguf_file.LlamaRunner(own / BASE, tuned.ends, folder / FILE, own)

    def check(self, tuned: Tuned, opened: Any, rows: Sequence[Row]) -> dict[str, Any]:
        return verified(tuned.tokenizer, opened, rows)

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        base = "BASE.gguf" if self.base == "none" else f"{folder}/{BASE}"
        length = min(4096, tuned.config.max_position_embeddings)
        return [
            f"from llama_cpp import Llama  # or: {shell_line('llama-server', '-m', base, '--lora', FILE, '--jinja')}",
            f"llama = Llama({literal(base)}, lora_path={literal(f'{folder}/{FILE}')}, n_ctx={length})",
            'llama.create_chat_completion([{"role": "user", "content": "..."}], temperature=0, repeat_penalty=1)',
        ]


def _settings(tuned: Tuned) -> dict[str, Any]:
    """adapter_config.json of the run; empty if it has none."""
    file = tuned.weights / "adapter_config.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _alpha(settings: dict[str, Any]) -> float:
    """llama.cpp multiplies by alpha / rank, so alpha / sqrt(rank) of rsLoRA needs a larger alpha."""
    return float(settings["lora_alpha"]) * (float(settings["r"]) ** 0.5 if settings.get("use_rslora") else 1.0)
