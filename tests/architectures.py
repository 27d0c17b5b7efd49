"""A tiny random model of every causal architecture of transformers that can be built from its configuration alone."""

from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 96),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "lru_width"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "ffn_intermediate_size"), 48
    ),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads", "linear_num_key_heads", "index_n_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "kv_channels", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim", "laurel_rank"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "sliding_window", "chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("ssm_state_size", "state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("expert_ffn_hidden_size", "embedding_size", "mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "index_topk", "rotary_dim"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "time_step_rank", "mamba_dt_rank", "eos_token_id"), 2),
    **dict.fromkeys(("n_shared_experts", "first_k_dense_replace", "n_group", "topk_group", "bos_token_id"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "mamba_n_groups", "n_groups", "zero_expert_num"), 1),
    **dict.fromkeys(("num_kv_shared_layers", "pad_token_id"), 0),
    "shared_intermediate_size": 24,
}
"""Field of a configuration -> its size here."""

ONLY_IF_SET = ("q_lora_rank", "num_global_key_value_heads", "sliding_window")
"""Fields that switch a part on, so those that are None stay so."""

OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3": {
        "vision_config": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    },
    "gemma4_text": {"per_layer_config": {"01": {"head_dim": 16}}},
    "gemma4_unified_text": {"per_layer_config": {"01": {"head_dim": 16}}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 8},
    "zaya": {"num_experts_per_tok": 1},
}
"""Model type -> fields that its architecture needs set otherwise."""

LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(
        [
            "bert",
            "bert-generation",
            "big_bird",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "megatron-bert",
            "rembert",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "roformer",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
            "xlm",
            "reformer",
            "xlnet",
            "prophetnet",
        ],
        "not made for a decoder alone",
    ),
    **dict.fromkeys(
        [
            "blt",
            "dots3_note",
            "fuyu",
            "gemma3n",
            "gemma4",
            "gemma4_assistant",
            "gemma4_unified",
            "gemma4_unified_assistant",
            "git",
            "got_ocr2",
            "moshi",
            "moss_transcribe_diarize",
            "musicgen",
            "musicgen_melody",
            "phi4_multimodal",
            "qwen4_exp",
            "trocr",
            "whisper",
        ],
        "needs images, sound or another model beside it",
    ),
    **dict.fromkeys(
        ["cohere_compass_text", "dbrx", "dots3_note_text", "qwen4_exp_text", "zamba", "zamba2"],
        "its configuration cannot be made tiny by its fields",
    ),
}
"""Model type -> why it is not among CAUSAL."""

CAUSAL = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in LEFT_OUT]


def sizes(config: Any) -> dict[str, Any]:
    """What makes the configuration tiny."""
    kind = type(config)
    known = {name for name in dir(config) if not name.startswith("_")} | set(getattr(kind, "attribute_map", {}))
    found = {}
    for name in known & SIZES.keys():
        own = getattr(kind, getattr(kind, "attribute_map", {}).get(name, name), None)
        if isinstance(own, property) and own.fset is None:
            continue
        try:
            value = getattr(config, name)
        except Exception:  # Gemma 4: it differs from layer to layer
            value = SIZES[name]
        if not (value is None and name in ONLY_IF_SET):
            found[name] = [SIZES[name]] * 2 if isinstance(value, list | tuple) else SIZES[name]
    if "kv_lora_rank" in found:  # latent attention has one head of keys for each of queries
        found["num_key_value_heads"] = 4
    field = getattr(kind, "attribute_map", {}).get("layer_types", "layer_types")
    layers = getattr(config, "layer_types", None)
    if layers and not isinstance(getattr(kind, field, None), property):
        kinds = list(dict.fromkeys(layers))
        found["layer_types"] = (kinds * 2)[: max(2, len(kinds))]
        for name in {"num_hidden_layers", "n_layer", "num_layers"} & found.keys():
            found[name] = len(found["layer_types"])
    return found


def config_of(kind: str) -> Any:
    """A configuration of the architecture with two layers, or one of each kind of layer."""
    made = CONFIG_MAPPING[kind]
    if "text_config" in getattr(made, "sub_configs", {}):
        text = made().text_config
        tiny_text = {**text.to_dict(), **sizes(text), **OWN.get(text.model_type, {})}
        return made(text_config=tiny_text, **OWN.get(kind, {}))
    return made(**{**sizes(made()), **OWN.get(kind, {})})


def tiny(kind: str) -> Any:
    """The same small model each time, in evaluation mode, with no weight at zero."""
    config = config_of(kind)
    torch.manual_seed(2)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model
