"""Models with experts, routers and gates, tiny and random: each method adapts what it can and says what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from luthier.core.errors import InputError
from luthier.kernels.apply import patched
from luthier.methods.base import METHODS
from luthier.models.targets import read_as_experts
from tests.methods.zoo import base, loss, shake

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {**SIZES, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
CONFIGS: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: t.MixtralConfig(**EXPERTS, num_local_experts=4),
    "qwen2_moe": lambda: t.Qwen2MoeConfig(
        **EXPERTS, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=24
    ),
    "deepseek_v3": lambda: t.DeepseekV3Config(
        **{**EXPERTS, "num_key_value_heads": 4},
        **LATENT,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=16,
        n_shared_experts=1,
        first_k_dense_replace=1,
    ),
    "phimoe": lambda: t.PhimoeConfig(**EXPERTS, num_local_experts=4),
    "llama4_text": lambda: t.Llama4TextConfig(
        **{**EXPERTS, "num_experts_per_tok": 1},
        num_local_experts=4,
        intermediate_size_mlp=48,
        head_dim=8,
        interleave_moe_layer_step=1,
    ),
    "gemma3n_text": lambda: t.Gemma3nTextConfig(
        **{**SIZES, "intermediate_size": [48, 48]},
        head_dim=8,
        vocab_size_per_layer_input=96,
        hidden_size_per_layer_input=8,
        layer_types=["sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
        laurel_rank=8,
        activation_sparsity_pattern=[0.5, 0.0],
    ),
}
ROUTED = [kind for kind in CONFIGS if kind != "gemma3n_text"]
METHOD: dict[str, dict[str, Any]] = {
    "lora": {"rank": 8},
    "oft": {"block": 8},
    "vera": {"rank": 8},
    "adalora": {"rank": 4, "target_rank": 2},
    "bitfit": {"missing": "add"},
}


def build(kind: str) -> Any:
    torch.manual_seed(2)
    model = t.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def tune(name: str, kind: str, **fields: Any) -> tuple[Any, Any]:
    method = METHODS.parse({"name": name, **METHOD[name], **fields})
    torch.manual_seed(3)
    return method, method.attach(build(kind), steps=20)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", METHOD)
def test_every_target_learns_and_no_router_is_one(kind: str, name: str) -> None:
    method, model = tune(name, kind)
    method.check(build(kind))
    shake(model, 0.02)
    x = torch.arange(3, 25).view(2, 11)
    with patched(model):
        loss(model.train(), x, use_cache=False).backward()
    adapted = {n: p for n, p in model.named_parameters() if p.requires_grad and "mlp.gate." not in n}
    assert len(adapted) == sum(p.requires_grad for p in model.parameters()), "DeepSeek's and Mixtral's routers"
    assert not [n for n in adapted if "router" in n or "shared_expert_gate" in n]
    still = [n for n, p in adapted.items() if p.grad is None]
    assert not still


@pytest.mark.parametrize("kind", ROUTED)
@pytest.mark.parametrize("fields", [{"name": "oft"}, {"name": "dora"}, {"name": "lora", "dropout": 0.1}])
def test_experts_that_stay_are_reported_with_their_share(kind: str, fields: dict[str, Any]) -> None:
    model = build(kind)
    said = METHODS.parse(fields).caveat(model)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    assert f"{experts / sum(p.numel() for p in model.parameters()):.0%} (" in said
    assert "experts.gate_up_proj: holds all experts in one tensor" in said
    assert METHODS.parse(fields).caveat(base("llama")) == ""


@pytest.mark.parametrize("kind", ROUTED)
def test_lora_adapts_experts_and_a_step_of_them_alone_changes_the_logits(kind: str) -> None:
    method, model = tune("lora", kind)
    assert "experts" not in method.caveat(build(kind))
    of_experts = {n: p for n, p in model.named_parameters() if p.requires_grad and ".experts." in n}
    assert len(of_experts) == 4 * sum(".experts.gate_up_proj" in n for n, _ in build(kind).named_parameters())
    x = torch.arange(3, 25).view(2, 11)
    with torch.no_grad():
        before = model(input_ids=x).logits
    loss(model.train(), x, use_cache=False).backward()
    with torch.no_grad():
        for parameter in of_experts.values():
            parameter.sub_(0.5 * parameter.grad)
        assert (model.eval()(input_ids=x).logits - before).abs().max() > 1e-4


def test_experts_are_adapted_where_they_are_asked_for_and_can_be() -> None:
    model = build("mixtral")
    parse = METHODS.parse
    for fields in ({"experts": False}, {"targets": ["q_proj"]}, {"dropout": 0.1}, {"dora": True}):
        assert parse({"name": "lora", **fields}).parameters(model) == []
    named = parse({"name": "lora", "targets": ["q_proj"], "experts": True, "layers": [1]}).parameters(model)
    assert named == [f"model.layers.1.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")]
    with pytest.raises(ValueError, match="experts=true needs dropout=0"):
        parse({"name": "lora", "experts": True, "dropout": 0.1})
    with pytest.raises(InputError, match="this model has no experts held as whole tensors"):
        parse({"name": "lora", "experts": True}).check(base("llama"))
    with pytest.raises(InputError, match=r"20 is more than the 16 of layer .*\.experts\."):
        parse({"name": "lora", "experts": True, "targets": ["q_proj"], "rank": 20}).check(build("qwen2_moe"))


@pytest.mark.parametrize(("kind", "target"), [("mixtral", "gate"), ("phimoe", "router"), ("llama4_text", "router")])
def test_a_router_that_is_named_is_refused(kind: str, target: str) -> None:
    with pytest.raises(InputError, match=f"'{target}' takes no (adapter|LoRA)"):
        METHODS.parse({"name": "lora", "targets": ["q_proj", target]}).check(build(kind))


def test_a_name_that_peft_reads_as_experts_is_no_target_of_lora() -> None:
    """PEFT 0.21 would adapt the experts in the place of the layer that is named so, and save it so."""
    model = build("deepseek_v3")
    assert "gate_proj" in read_as_experts(model)
    with pytest.raises(InputError, match="PEFT reads this name as the experts"):
        METHODS.parse({"name": "lora", "targets": ["gate_proj"]}).check(model)
    stay = METHODS.parse({"name": "dora"}).caveat(model)
    assert "mlp.gate_proj" in stay
    assert "PEFT reads this name as experts" in stay


def test_their_weights_are_adapted_with_the_experts_as_plain_peft_reads_it(tmp_path: Path) -> None:
    from peft import PeftModel

    method, model = tune("lora", "deepseek_v3")
    shake(model.eval(), 0.05)
    assert any("mlp.shared_experts.gate_proj.lora_A" in n for n, p in model.named_parameters() if p.requires_grad)
    x = torch.arange(3, 25).view(2, 11)
    method.save(model, tmp_path)
    with torch.no_grad():
        told = model(input_ids=x).logits
        for read in (PeftModel.from_pretrained, t.PreTrainedModel.load_adapter):
            plain = build("deepseek_v3")
            tuned = read(plain, str(tmp_path))  # transformers changes the model itself
            again = tuned if isinstance(tuned, PeftModel) else plain
            torch.testing.assert_close(again.eval()(input_ids=x).logits, told)


@pytest.mark.parametrize("name", ["lora", "oft", "vera", "adalora"])
def test_layers_to_transform_is_honored(name: str) -> None:
    _, model = tune(name, "mixtral", layers_to_transform=1)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".layers.1." in n for n in trained if not n.endswith(("vera_A.default", "vera_B.default")))
    with pytest.raises(InputError, match=r"method\.layers: no target is in layer 7"):
        tune(name, "mixtral", layers_to_transform=[7])


@pytest.mark.parametrize("name", ["BitFitConfig", "BottleneckConfig", "PrefixKVConfig"])
def test_our_peft_configurations_honor_it_too(name: str) -> None:
    from peft import get_peft_model

    from luthier.methods.layers import bias, bottleneck, prefix

    made = next(getattr(m, name) for m in (bias, bottleneck, prefix) if hasattr(m, name))(layers_to_transform=[0])
    model = get_peft_model(base("qwen2"), made)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".layers.0." in n for n in trained)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_added_biases_are_merged_where_the_architecture_has_a_place_and_else_refused_first(
    kind: str, tmp_path: Path
) -> None:
    method = METHODS.parse({"name": "bitfit", "missing": "add"})
    if kind == "qwen2":
        assert "cannot be saved as one merged model" in method.caveat(base(kind))
        return
    assert method.caveat(base(kind)) == ""
    model = method.attach(base(kind), steps=1).eval()
    shake(model)
    x = torch.arange(3, 25).view(2, 11)
    with torch.no_grad():
        told = model(input_ids=x).logits
        method.merge(model).save_pretrained(tmp_path)
        loaded = t.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert (loaded(input_ids=x).logits - told).abs().max() <= 1e-5
