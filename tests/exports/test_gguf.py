"""GGUF files, with and without llama.cpp to run them: weights, tokens, template, adapter, Modelfile."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from luthier.core.errors import CannotMerge, InputError, MissingExtra, Unproved
from luthier.exports.llama_cpp import file as gguf_file
from luthier.exports.llama_cpp import vocabulary as gguf_vocab
from luthier.exports.llama_cpp.file import refuse_model, write_model
from luthier.exports.llama_cpp.vocabulary import NAMES, vocabulary
from luthier.exports.merged import Merged
from luthier.exports.ollama import go_template, rendered
from luthier.pipeline.export import export
from luthier.pipeline.parity import TorchRunner
from luthier.recipe.config import RunConfig
from luthier.recipe.parse import parse_export
from luthier.rendering.chat_template import CHATML, PLAIN, Template
from luthier.rendering.example import Message
from tests.conftest import ROOT, build_tokenizer, luthier, model_config
from tests.exports.gguf_models import LLAMA_CPP, TEXTS, byte_level, sentencepiece, variant

UNPLAYED = "replay=false"
LLAMA2 = (ROOT / "tests/rendering/templates/llama2.jinja").read_text()


def held(report: dict[str, Any]) -> dict[str, Any]:
    """The parity check, which held."""
    (parity,) = report["parity"]
    assert parity["held"] and parity["prompts"] > 3
    return dict(parity)


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


# Without llama.cpp


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_a_file_that_is_not_played_is_read_back_and_says_what_is_not_verified(
    run: Callable[..., Path], kind: str
) -> None:
    folder = run()
    report = export(folder, parse_export("gguf", [f"type={kind}", UNPLAYED]))
    assert report["parity"] == [] and "same tokens" in report["checked"]["not_verified"]
    file = folder / "exports/gguf/model.gguf"
    assert "Not verified" in (folder / "exports/gguf/README.md").read_text()
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert found["blk.0.attn_q.weight"].tensor_type.name == kind.upper()
    assert found["blk.1.ffn_norm.weight"].tensor_type.name == "F32"
    told = fields(file)
    assert told["general.architecture"] == "llama" and told["llama.attention.head_count_kv"] == 2
    assert told["tokenizer.ggml.pre"] == "gpt-2" and told["tokenizer.ggml.eos_token_id"] == 1
    assert told["tokenizer.ggml.add_bos_token"] is False, "the template writes it, and the tokenizer does not"
    assert told["tokenizer.chat_template"] == PLAIN
    assert len(told["tokenizer.ggml.tokens"]) == 400 and told["tokenizer.ggml.tokens"][-1] == "[PAD399]"
    size = sum(tensor.n_bytes for tensor in found.values())
    facts = type("Tuned", (), {"facts": json.loads((folder / "result.json").read_text())})
    assert size <= parse_export("gguf", [f"type={kind}"]).required_bytes(facts) < 1.5 * size, (
        "with the adapter's own weights"
    )  # type: ignore[arg-type]


def test_a_file_that_holds_other_weights_leaves_nothing(run: Callable[..., Path], monkeypatch: Any) -> None:
    folder, quantize = run(), gguf.quants.quantize
    monkeypatch.setattr("gguf.quants.quantize", lambda numbers, kind: quantize(numbers * np.float32(1.01), kind))
    with pytest.raises(Unproved, match=r"a weight of .* differs by"):
        export(folder, parse_export("gguf", [UNPLAYED]))
    assert not list((folder / "exports").iterdir())


def test_what_is_not_installed_is_said_before_anything_is_written(run: Callable[..., Path], monkeypatch: Any) -> None:
    folder = run()
    monkeypatch.setattr("luthier.core.errors.find_spec", lambda name: None if name == "llama_cpp" else object())
    with pytest.raises(MissingExtra, match=r"pip install .*llama-cpp-python.*7 to 20 minutes.*replay=false"):
        export(folder, parse_export("gguf", []))
    assert not (folder / "exports").exists()


@pytest.mark.parametrize(("kind", "why"), [("mistral", "architecture mistral"), ("gpt2", "architecture gpt2")])
def test_another_architecture_is_refused_by_name(run: Callable[..., Path], kind: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        export(run(kind=kind), parse_export("gguf", [UNPLAYED]))


def test_what_no_file_can_hold_is_refused_by_name(run: Callable[..., Path]) -> None:
    with pytest.raises(CannotMerge, match="--to adapter"):
        export(run("method=prefix"), parse_export("gguf", [UNPLAYED]))
    with pytest.raises(InputError, match="classification head"):
        export(run(task="classify"), parse_export("gguf", [UNPLAYED]))
    with pytest.raises(InputError, match="task complete"):
        export(run(task="complete"), parse_export("ollama", [UNPLAYED]))


@pytest.mark.parametrize(
    ("kind", "changed", "why"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "scaled by dynamic"),
        ("qwen2", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0}}, "scaled by llama3"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 16}},
            "beta_fast",
        ),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("qwen3", {"attention_bias": True}, "attention biases"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ("qwen2", {"head_dim": 16}, "heads of 16"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(kind: str, changed: dict[str, Any], why: str) -> None:
    config = model_config(kind)
    refuse_model(config)
    for key, value in changed.items():
        setattr(config, key, value)
    with pytest.raises(InputError, match=why):
        refuse_model(config)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("method=dora",), "use_dora=True"),
        (("method=adalora",), "of method adalora"),
        (("method=full",), "of method full"),
        (("method=ia3",), "of method ia3"),
        (("method=lora", "method.bias=all"), "bias=all"),
        (("method=lora", "method.targets=lm_head,q_proj"), "lm_head"),
    ],
)
def test_only_lora_becomes_a_gguf_adapter(run: Callable[..., Path], options: tuple[str, ...], why: str) -> None:
    with pytest.raises(InputError, match=rf"{why}[\s\S]*--to gguf"):
        export(run(*options, kind="qwen2"), parse_export("gguf_adapter", [UNPLAYED]))


def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused_by_name() -> None:
    def refused(tokenizer: Any, why: str) -> None:
        with pytest.raises(InputError, match=why):
            vocabulary(tokenizer, 400, [1], dialogues=False)

    refused(byte_level([r"\p{L}+|\d"], False), re.escape("cuts by " + repr(r"\p{L}+|\d")))
    qwen2 = next(cuts for (cuts, _), name in NAMES.items() if name == "qwen2")
    refused(byte_level(qwen2, True), "with ignore_merges")
    lower = build_tokenizer()
    from tokenizers import normalizers

    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    refused(lower, "normalizes text by Lowercase")
    holes = sentencepiece()
    spec = json.loads(holes.backend_tokenizer.to_str())
    dropped = spec["model"]["merges"].pop(-1)
    from tokenizers import Tokenizer

    holes._tokenizer = Tokenizer.from_str(json.dumps(spec))
    refused(holes, f"lacks '{dropped[0]}' with")
    with pytest.raises(InputError, match="rows"):
        vocabulary(build_tokenizer(), 100, [1], dialogues=False)
    with pytest.raises(InputError, match="four tokens or more"):
        vocabulary(build_tokenizer(), 400, [1, 2, 3, 4], dialogues=False)


def test_end_tokens_and_the_opening_one_are_those_of_the_run() -> None:
    chatml = build_tokenizer(template=CHATML, bos=True, special=["<|im_start|>", "<|im_end|>"])
    made = vocabulary(chatml, 400, [1, 3], dialogues=True)
    assert (made["eos_token_id"], made["eot_token_id"], made["add_bos_token"]) == (1, 3, False), (
        "ChatML writes no opening token"
    )
    assert vocabulary(chatml, 400, [1], dialogues=False)["add_bos_token"], "of plain text the tokenizer does"
    llama = build_tokenizer(template=LLAMA2, bos=True)
    assert vocabulary(llama, 400, [1], dialogues=True)["add_bos_token"]
    none = build_tokenizer(template=PLAIN)
    none.bos_token = None
    assert vocabulary(none, 400, [1], dialogues=True)["chat_template"].startswith("{%- set bos_token = '' -%}")


TEMPLATES = {path.stem: path.read_text() for path in sorted((ROOT / "tests/rendering/templates").glob("*.jinja"))}
NONE_OF_OLLAMA = {"mistral_nemo", "mistral_v3"}
"""These put the system text before the last question, wherever that is."""


@pytest.mark.parametrize("name", [*TEMPLATES, "chatml_default", "plain"])
def test_ollama_gets_the_runs_template_or_none(name: str) -> None:
    text = {**TEMPLATES, "chatml_default": CHATML, "plain": PLAIN}[name]
    template = Template(build_tokenizer(template=text))

    def render(dialogue: Any, prompt: bool) -> str:
        return template.render([Message(role, content) for role, content in dialogue], prompt=prompt)

    if name in NONE_OF_OLLAMA:
        with pytest.raises(InputError, match=r"no Ollama template[\s\S]*--to gguf"):
            go_template(render)
        return
    made, _ = go_template(render)
    dialogue = [
        ("user", "Is 1 < 2?"),
        ("assistant", "是的。"),
        ("user", "Thanks\n!"),
        ("assistant", "x"),
        ("user", "y"),
    ]
    assert rendered(made, dialogue) == render(dialogue, True)


def test_gos_template_is_read_as_go_reads_it() -> None:
    # What Ollama's own test has for its Llama 3 template, in our words.
    text = (
        "{{ if .System }}S({{ .System }}){{ else }}none {{ end }}{{ $first := true }}{{ range .Messages }}"
        '{{ if eq .Role "user" }}{{ if not $first }}, {{ end }}{{ $first = false }}u({{ .Content }})'
        '{{ else if eq .Role "assistant" }}a({{ .Content }}){{ else }}?{{ end }}{{ end }}!'
    )
    assert rendered(text, [("user", "1")]) == "none u(1)!"
    assert rendered(text, [("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3")]) == "S(s)?u(1)a(2), u(3)!"
    for wrong in ("{{ end }}", "{{ if .System }}x", "{{ .Prompt }}", '{{ if gt .Role "a" }}{{ end }}'):
        with pytest.raises((ValueError, IndexError)):
            rendered(wrong, [("user", "1")])


def test_a_modelfile_has_template_stops_and_system_text(run: Callable[..., Path]) -> None:
    folder = run()
    report = export(folder, parse_export("ollama", ["system=Be brief.", "type=q8_0", UNPLAYED]))
    text = (folder / "exports/ollama/Modelfile").read_text()
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{ if .System }}<s>System:\n')
    assert text.endswith(
        'PARAMETER stop """</s>"""\nPARAMETER temperature 0\nPARAMETER repeat_penalty 1\nSYSTEM """Be brief."""\n'
    )
    assert report["use"][0] == f"ollama create run -f {folder}/exports/ollama/Modelfile"


@pytest.mark.parametrize("task", ["chat", "classify", "complete"])
def test_any_runner_is_scored_as_the_run_was(run: Callable[..., Path], monkeypatch: Any, task: str) -> None:
    opened = Merged.open

    def played(self: Merged, tuned: Any, folder: Path) -> Any:
        return TorchRunner(opened(self, tuned, folder), tuned.ends, 1)  # type: ignore[arg-type]

    monkeypatch.setattr(Merged, "open", played)
    report = export(run(task=task), parse_export("merged", []))
    assert report["scores"]["export"].keys() == report["scores"]["run"].keys() != set()
    for name, score in report["scores"]["export"].items():
        assert score["value"] == pytest.approx(report["scores"]["run"][name]["value"], rel=1e-3), name


# With llama.cpp


@LLAMA_CPP
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_llama_cpp_answers_as_the_run(run: Callable[..., Path], kind: str) -> None:
    report = export(run(kind=kind), parse_export("gguf", ["type=f32"]))
    parity = held(report)
    assert parity["largest"] < 1e-4 * parity["spread"] and parity["same_answers"] == 1
    assert "same tokens" in report["checked"]["verified"] and "not_verified" not in report["checked"]
    for name, score in report["scores"]["export"].items():
        assert score["value"] == pytest.approx(report["scores"]["run"][name]["value"], rel=1e-3), name


@LLAMA_CPP
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("model", ["llama", "qwen2", "qwen3"])
def test_smaller_types_are_held_to_their_rounding(run: Callable[..., Path], model: str, kind: str) -> None:
    assert held(export(run(kind=model), parse_export("gguf", [f"type={kind}"])))["largest"] > 1e-5


@LLAMA_CPP
@pytest.mark.parametrize("method", ["full", "dora", "bitfit"])
def test_other_methods_are_merged_first(run: Callable[..., Path], method: str) -> None:
    held(export(run(f"method={method}", kind="qwen2"), parse_export("gguf", ["type=f32"])))


@LLAMA_CPP
@pytest.mark.parametrize("template", [None, LLAMA2])
def test_sentencepiece_gives_the_same_tokens(
    run: Callable[..., Path], model_folder: Callable[..., Path], tmp_path: Path, template: str | None
) -> None:
    base = variant(model_folder("llama"), tmp_path / "base", sentencepiece(template), bos_token_id=1, eos_token_id=2)
    folder = run(base=base)
    held(export(folder, parse_export("gguf", ["type=f32"])))
    told = fields(folder / "exports/gguf/model.gguf")
    assert told["tokenizer.ggml.model"] == "llama" and told["tokenizer.ggml.add_space_prefix"] is True
    assert told["tokenizer.ggml.add_bos_token"] is True
    assert told["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6], "unknown, control, control, byte"
    held(export(folder, parse_export("ollama", ["type=f32"])))


def _write(folder: Path, model: Any, tokenizer: Any, kind: Any = "f32") -> Path:
    made = vocabulary(tokenizer, model.config.vocab_size, [1], dialogues=False)
    write_model(folder / "model.gguf", model, made, kind, "test")
    return folder / "model.gguf"


@LLAMA_CPP
@pytest.mark.parametrize(("cuts", "whole_words", "name"), [(*key, name) for key, name in NAMES.items()])
def test_each_known_pre_tokenizer_cuts_as_llama_cpp(tmp_path: Path, cuts: Any, whole_words: bool, name: str) -> None:
    from transformers import AutoModelForCausalLM

    from luthier.exports.gguf import verified
    from luthier.exports.llama_cpp.file import LlamaRunner
    from luthier.rendering.row import Row

    tokenizer = byte_level(cuts, whole_words)
    file = _write(tmp_path, AutoModelForCausalLM.from_config(model_config("llama")), tokenizer)
    assert fields(file)["tokenizer.ggml.pre"] == name
    texts = [*TEXTS, "I'LL  go\n\n\n 1234567 times！？ Ünïcödé</s>再见"]
    rows = [Row(tokenizer(text)["input_ids"], []) for text in texts]
    assert "splits 10 texts" in verified(tokenizer, LlamaRunner(file, [1]), rows)["verified"]


@LLAMA_CPP
@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"head_dim": 16, "num_key_value_heads": 1}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        (
            "qwen2",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 1e4,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
    ],
)
def test_settings_of_an_architecture_are_the_same_there(tmp_path: Path, kind: str, changed: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    from luthier.exports.llama_cpp.file import LlamaRunner

    config = type(model_config(kind))(**(model_config(kind).to_dict() | changed))
    refuse_model(config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():  # biases start at zero, norms at one: nothing to see
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    ids = list(range(2, 202))
    ours = TorchRunner(model, [1], 1)
    theirs = LlamaRunner(_write(tmp_path, model, build_tokenizer()), [1])
    wanted, found = ours.logits(ids), theirs.logits(ids)
    assert np.abs(wanted - found).max() < 1e-3 * wanted.std()
    assert theirs.answer(ids, 12) == ours.answer(ids, 12)


@LLAMA_CPP
def test_a_prompt_longer_than_the_first_context_gets_one_of_its_size(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from luthier.exports.llama_cpp.file import SMALLEST, LlamaRunner

    config = model_config("qwen3")
    config.max_position_embeddings = 2048
    model = AutoModelForCausalLM.from_config(config)
    runner = LlamaRunner(_write(tmp_path, model, build_tokenizer()), [1])
    ids = [2 + i % 300 for i in range(SMALLEST + 190)]
    wanted = TorchRunner(model, [1], 1).logits(ids)
    assert np.abs(runner.logits(ids) - wanted).max() < 1e-3 * wanted.std()


@LLAMA_CPP
def test_a_spoiled_file_and_other_tokens_are_found_out(run: Callable[..., Path], monkeypatch: Any) -> None:
    folder = run()
    with monkeypatch.context() as patch:  # the rows of Q and K as they are: the reading back cannot know better
        patch.setattr(gguf_file, "permuted", lambda config, key, tensor: tensor.detach().float().numpy())
        with pytest.raises(Unproved, match="does not answer as the run does"):
            export(folder, parse_export("gguf", ["type=f32"]))
    with monkeypatch.context() as patch:
        patch.setattr(gguf_vocab, "NAMES", {((gguf_vocab.GPT2,), False): "deepseek-coder"})
        with pytest.raises(Unproved, match="into other tokens than the run's tokenizer"):
            export(folder, parse_export("gguf", ["type=f32"]))
    assert [each.name for each in (folder / "exports").iterdir()] == ["gguf.failed.json"]


@LLAMA_CPP
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("method", ["lora", "rslora", "pissa"])
def test_lora_lies_over_its_base_in_llama_cpp(run: Callable[..., Path], kind: str, method: str) -> None:
    folder = run(f"method={method}", "method.rank=6", kind=kind)
    parity = held(export(folder, parse_export("gguf_adapter", [])))
    assert parity["largest"] < 1e-4 * parity["spread"] and parity["same_answers"] == 1
    names = {tensor.name for tensor in gguf.GGUFReader(folder / "exports/gguf_adapter/adapter.gguf").tensors}
    assert {"blk.0.attn_q.weight.lora_a", "blk.1.ffn_down.weight.lora_b"} <= names
    assert not [each for each in (folder / "exports").iterdir() if each.name.startswith(".")]


@LLAMA_CPP
def test_the_base_can_be_written_beside_its_adapter(run: Callable[..., Path]) -> None:
    folder = run("method=lora", "method.rank=6")
    held(export(folder, parse_export("gguf_adapter", ["base=q8_0"])))
    assert (folder / "exports/gguf_adapter/base.gguf").is_file()


@LLAMA_CPP
def test_a_run_on_a_packed_base_is_held_to_its_adapter_on_the_plain_one(run: Callable[..., Path]) -> None:
    pytest.importorskip("bitsandbytes")
    report = export(run("method=qlora"), parse_export("gguf_adapter", []))
    assert report["parity"][0]["held"] and "not packed" in report["parity"][0]["against"]
    assert report["parity"][1]["bound"] is None


@LLAMA_CPP
def test_layers_with_a_strength_of_their_own_keep_it(run: Callable[..., Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from luthier.exports.base import Tuned
    from luthier.exports.gguf_adapter import GgufAdapter

    base = AutoModelForCausalLM.from_config(model_config("llama"))
    settings = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 8},
        alpha_pattern={"v_proj": 20},
        init_lora_weights=False,
    )
    torch.manual_seed(2)
    tuned_model: Any = get_peft_model(AutoModelForCausalLM.from_config(base.config), settings)
    tuned_model.load_state_dict({f"base_model.model.{k}": v for k, v in base.state_dict().items()}, strict=False)
    plain = tuned_model.get_base_model()
    for name, value in base.state_dict().items():
        own = dict(plain.named_parameters())
        own.get(name, own.get(name.replace("_proj.weight", "_proj.base_layer.weight"))).data.copy_(value)
    tuned_model.save_pretrained(tmp_path / "weights")
    facts = {"parameters": 1}
    tuned = Tuned(
        run="run",
        weights=tmp_path / "weights",
        base="base",
        method=None,
        task="chat",
        classifies=False,
        quantize="none",  # type: ignore[arg-type]
        stored="float32",
        computed="float32",
        config=base.config,
        tokenizer=Template(build_tokenizer()).tokenizer,
        ends=(1,),
        open_base=lambda: base,
        open_plain_base=lambda: base,
        open_plain=lambda: tuned_model,
        skeleton=lambda: base,
        facts=facts,
    )
    target, place = GgufAdapter(), tmp_path / "made"
    place.mkdir()
    target.refuse(tuned)
    target.write(tuned, place)
    runner: Any = target.open(tuned, place)
    ids = list(range(2, 60))
    wanted = TorchRunner(tuned_model, [1], 1).logits(ids)
    assert np.abs(TorchRunner(base, [1], 1).logits(ids) - wanted).max() > 0.01 * wanted.std()
    assert np.abs(runner.logits(ids) - wanted).max() < 1e-3 * wanted.std()


@LLAMA_CPP
def test_chat_in_llama_cpp_and_ollama_starts_from_the_runs_prompt(run: Callable[..., Path]) -> None:
    import llama_cpp

    folder = run()
    export(folder, parse_export("ollama", ["type=f32"]))
    place = folder / "exports/ollama"
    llama = llama_cpp.Llama(str(place / "model.gguf"), n_ctx=256, verbose=False)
    from luthier.models.load import load_tokenizer

    config = RunConfig.load(folder / "recipe.yaml")
    template = Template(load_tokenizer(config.model, str(folder / "adapter")))
    messages = [Message("user", "这个水壶 😀?"), Message("assistant", "Yes."), Message("user", "Say 3.")]
    made = (place / "Modelfile").read_text().split('"""')[1]
    text = rendered(made, [(message.role, message.content) for message in messages])
    wanted = template.prompt_ids(messages)
    assert llama.tokenize(text.encode(), add_bos=llama._model.add_bos_token(), special=True) == wanted
    said = llama.create_chat_completion(
        [{"role": message.role, "content": message.content} for message in messages],
        temperature=0,
        max_tokens=3,
        repeat_penalty=1.0,
    )
    assert said["usage"]["prompt_tokens"] == len(wanted), "one opening token, not two"


@LLAMA_CPP
def test_the_command_line_shows_what_was_verified(run: Callable[..., Path], tmp_path: Path) -> None:
    done = luthier("export", run(), "--to", "gguf", "type=q8_0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "same answers" in done.stdout and "same tokens" in done.stdout and "from llama_cpp import Llama" in done.stdout
    )


@LLAMA_CPP
@pytest.mark.parametrize("name", ["stories260K-hf", "babyllama-tok361-hf"])
def test_small_published_models_answer_alike(run: Callable[..., Path], shared: Path, name: str) -> None:
    folder = run(base=shared / "weights" / name)
    assert held(export(folder, parse_export("gguf", ["type=f32"])))["same_answers"] == 1
    held(export(folder, parse_export("gguf", ["type=q8_0"])))
