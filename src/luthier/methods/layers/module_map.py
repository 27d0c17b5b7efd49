"""Where the parts of a transformer layer are called what, per architecture.

All names are regular expressions for whole module names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Sites:
    """Places of one architecture that adapters attach to."""

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
    """Beside the feed-forward block: the norm that the residual stream enters it through (pre-norm models)."""
    ffn_call: Literal["block", "bert_output"] = "block"
    """How `ffn` is called: block(x), or BertOutput(hidden, input) = norm(dense(hidden) + input)."""
    causal: bool = True
    prefix: bool = True
    """Keys and values can be put in front of its attention (not with T5's relative position bias)."""


LLAMA = Sites(
    attention=r".*\.self_attn",
    attention_out=r".*\.self_attn\.o_proj",
    ffn=r".*\.mlp",
    ffn_out=r".*\.mlp\.down_proj",
    query=r".*\.self_attn\.q_proj",
    key=r".*\.self_attn\.k_proj",
    value=r".*\.self_attn\.v_proj",
    ffn_last=r".*\.mlp\.down_proj",
)
GEMMA2 = Sites(
    attention=LLAMA.attention,
    attention_out=LLAMA.attention_out,
    ffn=LLAMA.ffn,
    ffn_out=LLAMA.ffn_out,
    query=LLAMA.query,
    key=LLAMA.key,
    value=LLAMA.value,
    ffn_last=LLAMA.ffn_last,
    ffn_norm="pre_feedforward_layernorm",
)
GPT2 = Sites(
    attention=r".*\.attn",
    attention_out=r".*\.attn\.c_proj",
    ffn=r".*\.mlp",
    ffn_out=r".*\.mlp\.c_proj",
    query=r".*\.attn\.c_attn",
    key=r".*\.attn\.c_attn",
    value=r".*\.attn\.c_attn",
    ffn_last=r".*\.mlp\.c_proj",
    ffn_norm="ln_2",
)
BERT = Sites(
    attention=r".*layer\.\d+\.attention\.self",
    attention_out=r".*layer\.\d+\.attention\.output\.dropout",
    ffn=r".*layer\.\d+\.output",
    ffn_out=r".*layer\.\d+\.output\.dropout",
    query=r".*attention\.self\.query",
    key=r".*attention\.self\.key",
    value=r".*attention\.self\.value",
    ffn_last=r".*layer\.\d+\.output\.dense",
    ffn_norm="",
    ffn_call="bert_output",
    causal=False,
)
T5 = Sites(
    attention=r".*\.SelfAttention",
    attention_out=r".*\.SelfAttention\.o",
    ffn=r".*\.DenseReluDense",
    ffn_out=r".*\.DenseReluDense\.wo",
    query=r".*\.SelfAttention\.q",
    key=r".*\.SelfAttention\.k",
    value=r".*\.SelfAttention\.v",
    ffn_last=r".*\.DenseReluDense\.wo",
    ffn_norm="layer_norm",
    prefix=False,
)

SITES: dict[str, Sites] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma", "granite", "smollm3"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA2),
    "gpt2": GPT2,
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), BERT),
    **dict.fromkeys(("t5", "mt5"), T5),
}


def sites_of(config: Any) -> Sites:
    """The sites of a model by its configuration (object or dict). Raises ValueError that lists what is known."""
    kind = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", None)
    if kind not in SITES:
        raise ValueError(
            f"no adapter sites are known for the architecture {kind!r}; known are {', '.join(sorted(SITES))}"
        )
    return SITES[str(kind)]
