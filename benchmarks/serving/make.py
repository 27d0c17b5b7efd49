"""What all servers read: a model of Qwen2-0.5B's shape, the same as a GGUF file, and adapters of every method over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LIMIT = 2048
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {},
    "adalora": {},
    "vera": {},
    "ia3": {},
    "bitfit": {"missing": "add"},
    "prefix": {},
    "p_tuning_v2": {},
    "prompt": {},
    "p_tuning": {},
    "oft": {},
    "houlsby": {},
    "pfeiffer": {},
    "parallel_adapter": {},
    "mam": {},
    "unipelt": {},
}
"""Each with its defaults."""


def make(folder: Path, layers: int, dtype: str, methods: list[str]) -> None:
    """Write `folder`/model, model.gguf, and `folder`/adapters/NAME; what is there stays."""
    model = folder / "model"
    if not model.is_dir():
        _model(model, layers, dtype)
    if not (folder / "model.gguf").is_file():
        _gguf(model, folder / "model.gguf", "bf16" if dtype == "bfloat16" else "f32")
    for name in methods:
        if not (folder / "adapters" / name).is_dir():
            _adapter(model, folder / "adapters" / name, name.split("-", maxsplit=1)[0], sum(name.encode()))


def _model(where: Path, layers: int, dtype: str) -> None:
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from luthier.builtin import BASE

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
        tie_word_embeddings=True,
        max_position_embeddings=LIMIT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        # No answer ends before its length, and none holds what the tokenizer does not know: these logits are zero.
        embeddings = model.get_input_embeddings().weight
        embeddings[len(tokenizer) :] = 0
        embeddings[tokenizer.all_special_ids] = 0
    model.to(getattr(torch, dtype)).save_pretrained(where)
    tokenizer.model_max_length = LIMIT
    tokenizer.save_pretrained(where)


def _gguf(model: Path, where: Path, kind: Any) -> None:
    from transformers import AutoModelForCausalLM

    from luthier.exports.llama_cpp.file import write_model
    from luthier.exports.llama_cpp.vocabulary import vocabulary
    from luthier.models.load import load_tokenizer
    from luthier.models.settings import ModelConfig
    from luthier.rendering.chat_template import Template

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    template = Template(load_tokenizer(ModelConfig(path=str(model)), str(model)))
    words = vocabulary(template.tokenizer, loaded.config.vocab_size, sorted(template.end_ids), dialogues=True)
    write_model(where, loaded, words, kind, "model")


def _adapter(base: Path, where: Path, method: str, seed: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from luthier.methods.base import METHODS as KNOWN

    torch.manual_seed(seed)
    tuner = KNOWN.parse({"name": method, **METHODS[method]})
    model = tuner.attach(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), steps=100)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.01)
    where.mkdir(parents=True)
    tuner.save(model, where)
    settings = where / "adapter_config.json"
    told = json.loads(settings.read_text())
    told["base_model_name_or_path"] = str(base)
    settings.write_text(json.dumps(told))
