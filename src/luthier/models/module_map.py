"""What the parts of a transformer layer are called, per architecture.

All names are regular expressions for whole module names.
"""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class ModuleMap:
    """Names of the modules of one architecture that adapters attach to."""

    attention: str
    """Self-attention: called with hidden_states, attention_mask and past_key_values."""
    attention_out: str
    """Its output is the attention sub-layer's, before the residual is added."""
    ffn: str
    """The feed-forward block."""
    ffn_out: str
    """Its output is the feed-forward sub-layer's, before the residual is added."""
    query: str
    key: str
    value: str
    ffn_last: str
    """The feed-forward's last linear layer, whose input are the hidden units."""
    ffn_norm: str = "post_attention_layernorm"
    """Beside the feed-forward block: the norm that the residual stream enters it through (pre-norm models).

    Empty where `ffn` is not called as block(x), but as BertOutput(hidden, input) = norm(dense(hidden) + input).
    """
    causal: bool = True
    prefix: bool = True
    """Keys and values can be put in front of its attention (not with T5's relative position bias)."""


def _named(attention: str, inner: str, ffn: str, last: str, **others: Any) -> ModuleMap:
    """The map of an architecture, by its attention and what is in it (output, query, key, value), and by its FFN."""
    out, query, key, value = (rf"{attention}\.{name}" for name in inner.split())
    down = rf"{ffn}\.{last}"
    return ModuleMap(attention, out, ffn, down, query, key, value, down, **others)


LLAMA = _named(r".*\.self_attn", "o_proj q_proj k_proj v_proj", r".*\.mlp", "down_proj")
GEMMA2 = replace(LLAMA, ffn_norm="pre_feedforward_layernorm")
GPT2 = _named(r".*\.attn", "c_proj c_attn c_attn c_attn", r".*\.mlp", "c_proj", ffn_norm="ln_2")
BERT = ModuleMap(
    attention=r".*layer\.\d+\.attention\.self",
    attention_out=r".*layer\.\d+\.attention\.output\.dropout",
    ffn=r".*layer\.\d+\.output",
    ffn_out=r".*layer\.\d+\.output\.dropout",
    query=r".*attention\.self\.query",
    key=r".*attention\.self\.key",
    value=r".*attention\.self\.value",
    ffn_last=r".*layer\.\d+\.output\.dense",
    ffn_norm="",
    causal=False,
)
T5 = _named(r".*\.SelfAttention", "o q k v", r".*\.DenseReluDense", "wo", ffn_norm="layer_norm", prefix=False)

MODULE_MAPS: dict[str, ModuleMap] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma", "granite", "smollm3"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA2),
    "gpt2": GPT2,
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), BERT),
    **dict.fromkeys(("t5", "mt5"), T5),
}


def module_map_of(config: Any) -> ModuleMap:
    """The module map of a model's configuration (object or dict); a ValueError lists the known architectures."""
    kind = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    if kind not in MODULE_MAPS:
        known = ", ".join(sorted(MODULE_MAPS))
        raise ValueError(f"no module names are known for the architecture {kind!r}; known are {known}")
    return MODULE_MAPS[str(kind)]
