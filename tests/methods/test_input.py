"""What a method cannot do ends in one clear message with the possible values, before any weights are loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from luthier.core.errors import InputError
from luthier.methods.base import METHODS
from luthier.planning.tracing import Trace
from luthier.training.settings import TrainConfig
from luthier.training.step import build_optimizer
from tests.cli.test_cli import main
from tests.conftest import alpaca_rows, build_tokenizer, review_rows, write_jsonl
from tests.methods.zoo import SPECS, base, classifies

LAYERS = (
    "choose from down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj, or method.targets=all-linear"
)
PLACED = ("prefix", "p_tuning_v2", "houlsby", "pfeiffer", "parallel_adapter", "mam", "unipelt", "ia3")
"""Methods that look for the places of their layers in the model."""
VIRTUAL = ("prefix", "p_tuning_v2", "prompt", "p_tuning", "mam", "unipelt")

CASES: list[tuple[str, list[str], list[str], list[str] | None]] = [
    # model, overrides, what is said, what to change so that it goes (None: another method or base)
    (
        "llama",
        ["method.targets=qproj,v_proj"],
        ["method.targets: no layer is named 'qproj' (did you mean 'q_proj'?)", LAYERS],
        ["method.targets=all-linear"],
    ),
    (
        "gpt2",
        ["method.targets=q_proj"],
        ["no layer is named 'q_proj'", "choose from c_attn, c_fc, c_proj, lm_head"],
        ["method.targets=c_attn"],
    ),
    *[
        (
            "llama",
            [f"method={name}", "method.targets=nix"],
            ["no layer is named 'nix'", LAYERS],
            ["method.targets=q_proj,v_proj"],
        )
        for name in ("rslora", "dora", "pissa", "lora_plus", "vera")
    ],
    ("llama", ["method=adalora", "method.targets=nix"], ["no layer is named 'nix'", LAYERS], ["method.targets=q_proj"]),
    (
        "llama",
        ["method=oft", "method.block=8", "method.targets=nix"],
        ["no layer is named 'nix'", LAYERS],
        ["method.targets=q_proj"],
    ),
    (
        "bert",
        ["method.targets=query,classifier", "method.rank=2"],
        [
            "'classifier' is the classification head, which trains as a whole with every method",
            "choose from dense, key,",
        ],
        ["method.targets=query"],
    ),
    *[
        (
            kind,
            [f"method={name}", f"method.length={length}"],
            [
                f"method.length: a prompt of {length} tokens leaves none of the model's 256 positions",
                "method.length=20",
            ],
            ["method.length=20"],
        )
        for kind in ("llama", "bert")
        for name in ("prompt", "p_tuning")
        for length in (256, 1000)
    ],
    (
        "llama",
        ["method=prompt", "method.length=200", "train.max_length=100"],
        ["train.max_length: 100 is more than the 56 tokens that the model takes beside the method's 200"],
        ["train.max_length=56", "data.on_long_row=truncate_prompt"],
    ),
    *[
        (
            "llama",
            [f"method={name}", "method.rank=17"],
            ["method.rank: 17 is more than the 16 of layer model.layers.0.self_attn.", "method.rank=16"],
            ["method.rank=16"],
        )
        for name in ("lora", "rslora", "dora", "pissa", "lora_plus", "adalora", "unipelt")
    ],
    (
        "llama",
        ["method=oft", "method.block=24"],
        ["method.block: 24 does not divide the 32 inputs of model.layers.0.self_attn.q_proj", "method.block=16"],
        ["method.block=16"],
    ),
    (
        "gpt2",
        ["method=oft"],
        ["method oft cannot turn transformer.h.0.attn.c_attn, which is a Conv1D", "method=lora"],
        None,
    ),
    *[
        (
            "gpt2",
            [f"method={name}"],
            [f"method {name} cannot adapt transformer.h.0.attn.c_attn, which is a Conv1D"],
            None,
        )
        for name in ("loha", "lokr")
    ],
    (
        "llama",
        ["method=peft", "method.type=boft", "method.boft_block_size=7"],
        ["method peft: in_features (32) must be divisible by boft_block_size (7)"],
        ["method.boft_block_size=8"],
    ),
    (
        "llama",
        ["method=peft", "method.type=boft", "method.boft_blok_size=4", "method.boft_dropout=much", "method.bias=all"],
        [
            "method.boft_blok_size: type boft has no such field (did you mean 'boft_block_size'?); known are bias, boft_",
            "method.boft_dropout: should be a valid number, not 'much'",
            "method.bias: trains the base's own biases",
        ],
        None,
    ),
    ("llama", ["method=peft"], ["method.type: is needed"], ["method.type=miss", "method.r=4"]),
    ("llama", ["method=peft", "method.type=bft"], ["has no type 'bft' (did you mean 'boft'?); choose one of: "], None),
    ("llama", ["method=peft", "method.type=LoRA"], ["LoRA is a method of its own here: method=lora"], None),
    ("llama", ["method=peft", "method.type=ln_tuning"], ["method=layernorm"], None),
    ("llama", ["method=peft", "method.type=xlora"], ["method.type: xlora mixes adapters that were trained"], None),
    ("llama", ["method=peft", "method.type=trainable_tokens"], ["needs the ids", "method.token_indices=[5,6]"], None),
    (
        "llama",
        ["method=peft", "method.type=shadow", "method.shadow_model=someone/model"],
        ["method.shadow_model: opens a model that it names"],
        None,
    ),
    (
        "llama",
        ["method=peft", "method.type=miss", "model.quantize=nf4"],
        ["method peft cannot train a quantized base"],
        None,
    ),
    ("qwen2", ["method=peft", "method.type=adaption_prompt"], ["Unsupported model type"], None),
    (
        "llama",
        ["method=bitfit"],
        ["llama has no bias that BitFit could train (terms: all)", "method.missing=add gives each linear layer a bias"],
        ["method.missing=add"],
    ),
    (
        "qwen2",
        ["method=bitfit", "method.terms=intermediate"],
        ["qwen2 has no bias that BitFit could train (terms: ('intermediate',))"],
        ["method.terms=query,value"],
    ),
    (
        "qwen2",
        ["method=bitfit", "method.terms=querry"],
        ["not 'querry' (did you mean 'query'?)"],
        ["method.terms=query"],
    ),
    *[
        ("t5", [f"method={name}"], [f"method {name} does not work on the encoder-decoder t5", "method=lora"], None)
        for name in VIRTUAL
    ],
    ("t5", ["method=lora", "task=chat"], ["is a t5, which cannot serve as a causal decoder"], None),
    (
        "bert",
        ["method=lora", "task=chat"],
        ["is a bert, which cannot serve as a causal decoder", "task=classify"],
        ["task=classify", "data=REVIEWS"],
    ),
    *[
        (
            "bloom",
            [f"method={name}"],
            [f"method {name}: no prefix can stand", "has a bias for each pair of tokens"],
            None,
        )
        for name in ("prefix", "p_tuning_v2", "mam", "unipelt")
    ],
    *[
        (
            "llama",
            ["method=freeze", f"method.layers={number}"],
            [f"method.layers: {number} of 2 layers", "1 to 2, or -1 to -2"],
            ["method.layers=-2"],
        )
        for number in (0, 3, -3)
    ],
    (
        "llama",
        ["method=freeze", "method.extra=nrm"],
        ["method.extra: no module is named 'nrm' (did you mean 'norm'?)", "embed_tokens"],
        ["method.extra=norm"],
    ),
    (
        "llama",
        ["method=unipelt", "method.gate=mean"],
        ["method.gate=mean pools over the whole sequence, which shows a causal model its future", "method.gate=token"],
        ["method.gate=token"],
    ),
    (
        "llama",
        ["method=adalora", "method.rank=8"],
        ["method.rank 8 must be above target_rank 8: the budget falls"],
        ["method.rank=12"],
    ),
    (
        "llama",
        ["method=adalora", "method.warmup=0.6", "method.final=0.5"],
        ["warmup and final leave no share of the run for the budget to fall"],
        ["method.final=0.2"],
    ),
    (
        "llama",
        ["method=prompt", "method.init=text"],
        ["init: text needs a text, and a text needs init: text"],
        ["method.text=Say it"],
    ),
    (
        "llama",
        ["method=adapter", "method.place=pfeifer"],
        ["method.place: should be 'houlsby', 'pfeiffer' or 'output'", "(did you mean 'pfeiffer'?)"],
        ["method.place=pfeiffer"],
    ),
    (
        "llama",
        ["method=lroa"],
        [
            "method: unknown method 'lroa' (did you mean 'lora'?)",
            "choose one of: adalora, adapter, bitfit, freeze, full,",
        ],
        ["method=lora"],
    ),
    (
        "llama",
        ["method=prefix", "method.targets=q_proj"],
        ["method.targets: unknown key; known are dropout, from_adapter, hidden, init_std, length"],
        None,
    ),
    (
        "llama",
        ["method=adalora", "method.rnk=3", "train.lr=fast"],
        ["2 mistakes", "method.rnk: unknown key (did you mean 'rank'?)", "train.lr: should be a valid number"],
        None,
    ),
    (
        "llama",
        ["method.rank=0", "method.dropout=1"],
        ["method.rank: should be greater than 0", "method.dropout: should be less than 1"],
        ["method.rank=2", "method.dropout=0"],
    ),
    (
        "llama",
        ["method=qlora", "model.quantize=none"],
        ["method qlora is lora on a quantized base, and model.quantize is none: take method=lora"],
        None,
    ),
    *[
        (
            "llama",
            [f"method={name}", f"model.quantize={kind}"],
            [
                f"method {name} cannot train a quantized base (model.quantize={kind})",
                "method=lora, or model.quantize=none",
            ],
            ["model.quantize=none"],
        )
        for name in ("full", "freeze")
        for kind in ("int8", "nf4", "fp4")
    ],
    (
        "llama",
        ["method=pissa", "model.quantize=nf4"],
        ["method.init=pissa needs the unpacked weights of the base", "method.init=default, or model.quantize=none"],
        ["model.quantize=none"],
    ),
]

GOES = [
    ("llama", ["method=prefix", "method.length=500"]),  # longer than the model's positions: it takes none of them
    ("llama", ["method=p_tuning_v2", "method.length=500"]),
    ("llama", ["method=houlsby", "method.size=500"]),  # no rank: a bottleneck may be wide
    ("llama", ["method=vera", "method.rank=500"]),
    ("llama", ["method=unipelt", "method.rank=16"]),
    ("bert", ["method=unipelt", "method.gate=mean"]),
    ("qwen2", ["method=bitfit"]),
    *[
        ("gpt_neox", [f"method={name}", *settings])  # on an OPT all of them train, below
        for name, settings in (
            ("lora", []),
            ("dora", []),
            ("pissa", []),
            ("adalora", []),
            ("vera", []),
            ("oft", ["method.block=8"]),
            ("bitfit", []),
            ("prompt", []),
            ("p_tuning", []),
            ("full", []),
            ("freeze", []),
            *((name, []) for name in PLACED),
        )
    ],
]
"""What looks like the cases above and is in order."""


@pytest.fixture(scope="module")
def strange_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Decoders of which no table names the parts."""
    import transformers as t

    small = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    root = tmp_path_factory.mktemp("strange")
    for kind, config in (
        ("opt", t.OPTConfig(**small, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0)),
        ("gpt_neox", t.GPTNeoXConfig(**small, intermediate_size=64)),
        ("bloom", t.BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4)),
    ):
        torch.manual_seed(1)
        t.AutoModelForCausalLM.from_config(config).save_pretrained(root / kind)
        build_tokenizer().save_pretrained(root / kind)
    return lambda kind: root / kind


class Train:
    """`luthier train` that ends where the weights would be loaded."""

    def __init__(self, folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, kind: str, overrides: list[str]) -> tuple[int, str]:
        rows = "reviews.jsonl" if kind in ("bert", "t5") and "task=chat" not in overrides else "alpaca.jsonl"
        overrides = ["data=reviews.jsonl" if o == "data=REVIEWS" else o for o in overrides]
        code, _, err = main(["train", f"model={self.folder(kind)}", f"data={rows}", *overrides], self.capsys)
        assert not Path("runs").exists(), "a run that never began leaves no folder"
        return code, " ".join(err.split())


@pytest.fixture
def run_train(
    model_folder: Callable[..., Path],
    strange_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Train:
    write_jsonl(tmp_path / "alpaca.jsonl", alpaca_rows(12))
    write_jsonl(tmp_path / "reviews.jsonl", review_rows(12))
    monkeypatch.chdir(tmp_path)

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights are loaded")

    monkeypatch.setattr("luthier.models.load.load_model", loaded)
    monkeypatch.setattr("luthier.planning.plan._trace", lambda *_: Trace(*[1.0] * len(Trace._fields)))  # it costs most
    there = importlib.util.find_spec
    monkeypatch.setattr(  # whether it is installed must not matter here
        importlib.util, "find_spec", lambda name, package=None: name == "bitsandbytes" or there(name, package)
    )
    return Train(
        lambda kind: strange_folder(kind) if kind in ("opt", "gpt_neox", "bloom") else model_folder(kind), capsys
    )


def name_of(kind: str, overrides: list[str]) -> str:
    return f"{kind} {' '.join(overrides)}"


@pytest.mark.parametrize(
    ("kind", "overrides", "said", "fixed"), [pytest.param(*case, id=name_of(*case[:2])) for case in CASES]
)
def test_one_clear_message_before_any_weights(
    kind: str, overrides: list[str], said: list[str], fixed: list[str] | None, run_train: Train
) -> None:
    code, err = run_train(kind, overrides)
    assert code == 2 and err.startswith("error: ") and err.count("error: ") == 1 and "Traceback" not in err, err
    for part in said:
        assert part in err
    if fixed is not None:
        code, err = run_train(kind, [*overrides, *fixed])
        assert code == 1 and "the weights are loaded" in err, err


@pytest.mark.parametrize(("kind", "overrides"), [pytest.param(*case, id=name_of(*case)) for case in GOES])
def test_what_is_in_order_goes_on_to_the_weights(kind: str, overrides: list[str], run_train: Train) -> None:
    code, err = run_train(kind, overrides)
    assert code == 1 and "the weights are loaded" in err, err


@pytest.mark.parametrize("overrides", [["method=qlora"], ["model.quantize=nf4"], ["method=lora_int8"]], ids=" ".join)
def test_a_missing_package_is_named_with_its_fix(
    overrides: list[str], run_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: None if name == "bitsandbytes" else there(name, package)
    )
    code, err = run_train("llama", overrides)
    assert (
        code == 2 and "needs bitsandbytes, which is not installed" in err and "pip install 'bitsandbytes>=0.50'" in err
    )


def test_the_fixed_block_divides_every_layer() -> None:
    """Inputs of 32 and 48: 32 divides the first only, 24 the second only, 16 both."""
    import transformers as t

    config = t.LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    with torch.device("meta"):
        model = t.AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=r"32 does not divide the 48 inputs of .*down_proj") as refusal:
        METHODS.parse({"name": "oft", "block": 32}).check(model)
    assert refusal.value.fix == "method.block=16"
    METHODS.parse({"name": "oft", "block": 16}).check(model)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "opt") for name in SPECS if name != "fusion"), ("lora", "gpt_neox")]
)
def test_every_method_trains_on_an_architecture_without_a_table(
    name: str, kind: str, strange_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from luthier.pipeline.train import train
    from luthier.recipe.config import RunConfig
    from luthier.runs.folder import RunFolder

    settings = [f"method.{key}={value}" for key, value in SPECS[name].items()]
    rate = 3e-3 if name in ("full", "freeze", "pissa") else 3e-2
    train(
        RunConfig.load(
            None,
            [
                f"method={name.split(' ', maxsplit=1)[0]}",
                *settings,
                f"model={strange_folder(kind)}",
                f"run={tmp_path / 'run'}",
                f"data={write_jsonl(tmp_path / 'a.jsonl', alpaca_rows(8))}",
                "data.validation=none",
                f"train.lr={rate}",
                "train.steps=6",
                "train.batch_size=8",
                "train.schedule=constant",
                "evaluate.before=false",
                "evaluate.generate=0",
            ],
        )
    )
    course = [record["loss"] for record in RunFolder(tmp_path / "run").history() if "loss" in record]
    assert len(course) == 6 and course[-1] < course[0], course


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("lora", {192: 1.9e-3, 576: 7.9e-4, 4096: 1.7e-4}),
        ("full", {192: 2.5e-4, 576: 1.1e-4, 4096: 2.3e-5}),
        ("bitfit", {192: 3e-2, 576: 3.4e-3, 4096: 6.7e-5}),
        ("prefix", {192: 3e-3, 576: 3.4e-4, 1024: 1.1e-4}),
        ("houlsby", {192: 5e-4, 576: 5e-4, 4096: 5e-4}),
        ("prompt", {192: 3e-2, 576: 3e-2, 4096: 3e-2}),
    ],
)
def test_the_default_rate_falls_with_the_width_of_a_decoder(name: str, widths: dict[int, float]) -> None:
    """By the power that Schulman et al. 2025 fit, by more for biases and prefixes, not at all for bottlenecks and prompts."""
    for width, rate in widths.items():
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(hidden_size=width, num_hidden_layers=1, vocab_size=8))
        assert METHODS.parse(name).learning_rate(model) == rate


def test_on_an_encoder_only_whole_weights_are_scaled() -> None:
    rates = {}
    for width in (384, 768):
        config = BertConfig(hidden_size=width, num_hidden_layers=1, vocab_size=8)
        with torch.device("meta"):
            model = BertForSequenceClassification(config)
        rates[width] = [METHODS.parse(name).learning_rate(model) for name in ("lora", "full")]
    assert rates == {384: [5e-4, 9.1e-5], 768: [5e-4, 5.3e-5]}


@pytest.mark.parametrize(("reparam", "alone"), [("none", "p_tuning_v2"), ("mlp", "prefix")])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_prefix_of_mam_has_a_third_of_the_rate_that_it_has_alone(reparam: str, alone: str, kind: str) -> None:
    model = base(kind)
    wanted = METHODS.parse(alone).learning_rate(model) / 3
    method = METHODS.parse({"name": "mam", "reparam": reparam})
    rate = method.learning_rate(model)
    tuned = method.attach(model, steps=1, classify=classifies(kind))
    names = {id(parameter): name for name, parameter in tuned.named_parameters()}
    for factor in (1.0, 0.5):  # the default, and a train.lr of one's own
        groups = build_optimizer(tuned, TrainConfig(), factor * rate, partial(method.lr_ratio_of, tuned)).param_groups
        assert groups[0]["lr"] == factor * rate, "the rate that is shown"
        for group in groups:
            of_prefix = {".luthier_prefix." in names[id(parameter)] for parameter in group["params"]}
            assert of_prefix == {group["lr"] == pytest.approx(factor * wanted)}
