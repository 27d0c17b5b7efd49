"""How many parameters every method trains: the published and computed numbers of three real models, without memory."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from luthier.methods.base import METHODS
from tests.methods.parity.test_reference import SEVEN, bert_base, count, deepseek, qwen2_half_billion

pytestmark = pytest.mark.matrix

HEAD = 768 * 2 + 2
"""BERT's classification head with two labels: trains with every method, and counts with none."""

MODELS: dict[str, Callable[[], Any]] = {"bert": bert_base, "qwen2": qwen2_half_billion, "deepseek": deepseek}
HIDDEN = {"bert": 768, "qwen2": 896, "deepseek": 4096}
LAYERS = {"bert": 12, "qwen2": 24, "deepseek": 30}
KEYS = {"bert": 768, "qwen2": 128, "deepseek": 4096}
"""Size of the keys, and of the values, of one token."""
INNER = {"bert": 3072, "qwen2": 4864, "deepseek": 11008}


def lora(kind: str, rank: int, *, per_output: int = 0) -> int:
    """On query and value: rank * (in + out), and `per_output` numbers for each output."""
    hidden, outputs = HIDDEN[kind], HIDDEN[kind] + KEYS[kind]
    return LAYERS[kind] * (rank * (2 * hidden + outputs) + per_output * outputs)


def bottleneck(kind: str, size: int, per_layer: int = 1) -> int:
    return LAYERS[kind] * per_layer * (2 * size * HIDDEN[kind] + size + HIDDEN[kind])


def compacter(kind: str, size: int, per_layer: int) -> int:
    """Two matrices of 4 products, s of in / 4 and t of out / 4 each, and two biases; one rule of 4^3 for all."""
    return LAYERS[kind] * per_layer * (2 * (size + HIDDEN[kind]) + size + HIDDEN[kind]) + 4**3


def fusion(kind: str) -> int:
    return LAYERS[kind] * (3 * HIDDEN[kind] ** 2 + 2 * HIDDEN[kind])


def fusion_of(kind: str) -> dict[str, Any]:
    """Two Pfeiffer adapters of the model, to fuse."""
    return {"name": "fusion", "adapters": saved_adapters(kind)}


@cache
def saved_adapters(kind: str) -> list[str]:
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    auto = t.AutoModelForSequenceClassification if kind == "bert" else t.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(MODELS[kind]())
        tuned = METHODS.parse({"name": "pfeiffer", "size": 1}).attach(model, steps=1, classify=kind == "bert")
    state = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    for folder in (root / "1", root / "2"):
        tuned.peft_config["default"].save_pretrained(folder)
        save_file(
            {name: torch.zeros(value.shape) for name, value in state.items()}, folder / "adapter_model.safetensors"
        )
    return [str(root / "1"), str(root / "2")]


def prefix(kind: str, length: int) -> int:
    return LAYERS[kind] * 2 * length * KEYS[kind]


def prefix_mlp(kind: str, length: int, middle: int) -> int:
    hidden = HIDDEN[kind]
    return length * hidden + (hidden + 1) * middle + (middle + 1) * LAYERS[kind] * 2 * KEYS[kind]


def lstm(kind: str, length: int) -> int:
    """Two layers in two directions of width d, four gates of two biases each, and two linear layers on 2 d."""
    d = HIDDEN[kind]
    first, second = 2 * 4 * (d * d + d * d + 2 * d), 2 * 4 * (2 * d * d + d * d + 2 * d)
    return length * d + first + second + (2 * d * 2 * d + 2 * d) + (2 * d * d + d)


def gates(kind: str) -> int:
    """UniPELT: one each for the prefix, the adapter, and the LoRA of query and of value."""
    return LAYERS[kind] * 4 * (HIDDEN[kind] + 1)


def biases(kind: str) -> int:
    """BERT: every bias. Qwen2: of query, key and value. DeepSeek has none: one is added to each linear layer."""
    d, k, f, n = HIDDEN[kind], KEYS[kind], INNER[kind], LAYERS[kind]
    return {
        "bert": n * (4 * d + f + d + 2 * d) + d + d,  # norms too, of the embeddings too, and the pooler
        "qwen2": n * (d + 2 * k),
        "deepseek": n * (5 * d + 2 * f),
    }[kind]


def layer(kind: str) -> int:
    """One whole layer: attention, feed-forward (gated but in BERT), norms, and the biases that the model has."""
    d, k, f = HIDDEN[kind], KEYS[kind], INNER[kind]
    if kind == "bert":
        return 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
    return 2 * d * d + 2 * d * k + 3 * d * f + 2 * d + (d + 2 * k if kind == "qwen2" else 0)


def everything(kind: str) -> int:
    """All layers, the embeddings (Qwen2's are the output as well), the last norm, and BERT's pooler."""
    d = HIDDEN[kind]
    rest = {"bert": (30522 + 512 + 2) * d + 2 * d + d * d + d, "qwen2": 151936 * d + d, "deepseek": 2 * 102400 * d + d}
    return LAYERS[kind] * layer(kind) + rest[kind]


def query_value(kind: str) -> list[str]:
    return ["query", "value"] if kind == "bert" else ["q_proj", "v_proj"]


Row = tuple[str, Callable[[str], dict[str, Any]], Callable[[str], int], dict[str, int]]

ROWS: list[Row] = [
    (
        "bitfit",
        lambda k: {"name": "bitfit", "missing": "add" if k == "deepseek" else "refuse"},
        biases,
        {"bert": 102_912, "qwen2": 27_648, "deepseek": 1_274_880},
    ),
    (
        "lora q v",
        lambda k: {"name": "lora", "rank": 8, "targets": query_value(k)},
        lambda k: lora(k, 8),
        {"bert": 294_912, "qwen2": 540_672, "deepseek": 3_932_160},
    ),
    (
        "lora seven",
        lambda k: {"name": "lora", "rank": 8, "targets": SEVEN},
        lambda k: LAYERS[k] * 8 * (2 * 2 * HIDDEN[k] + 2 * (HIDDEN[k] + KEYS[k]) + 3 * (HIDDEN[k] + INNER[k])),
        {"qwen2": 4_399_104, "deepseek": 18_739_200},
    ),
    (
        "dora q v",
        lambda k: {"name": "dora", "rank": 8, "targets": query_value(k)},
        lambda k: lora(k, 8, per_output=1),
        {"bert": 313_344, "qwen2": 565_248, "deepseek": 4_177_920},
    ),
    # The first numbers of the decoders have PEFT's counters of ranks in them, one per adapted layer, which PEFT lets
    # train where the base is half precision. They are no weights.
    (
        "adalora q v",
        lambda k: {"name": "adalora", "rank": 12, "target_rank": 8, "targets": query_value(k)},
        lambda k: lora(k, 12) + LAYERS[k] * 2 * 12,
        {"bert": 442_656, "qwen2": 811_632 - 2 * 24, "deepseek": 5_899_020 - 2 * 30},
    ),
    # The first numbers are of PEFT's places. Those are the paper's, and ours, but for BERT, where PEFT also scales
    # attention's output, and Qwen2, where it scales the query (896) in the place of the key (128).
    (
        "ia3",
        lambda k: {"name": "ia3"},
        lambda k: LAYERS[k] * (2 * KEYS[k] + INNER[k]),
        {"bert": 64_512 - 12 * 768, "qwen2": 141_312 - 24 * (896 - 128), "deepseek": 576_000},
    ),
    (
        "prompt",
        lambda k: {"name": "prompt", "length": 20},
        lambda k: 20 * HIDDEN[k],
        {"bert": 15_360, "qwen2": 17_920, "deepseek": 81_920},
    ),
    (
        "p_tuning",
        lambda k: {"name": "p_tuning", "length": 20, "hidden": HIDDEN[k]},
        lambda k: 20 * HIDDEN[k] + 3 * (HIDDEN[k] ** 2 + HIDDEN[k]),
        {"bert": 1_787_136, "qwen2": 2_429_056, "deepseek": 50_425_856},
    ),
    (
        "p_tuning lstm",
        lambda k: {"name": "p_tuning", "length": 20, "hidden": HIDDEN[k], "encoder": "lstm"},
        lambda k: lstm(k, 20),
        {"bert": 27_174_144, "qwen2": 36_978_816, "deepseek": 771_977_216},
    ),
    (
        "prefix",
        lambda k: {"name": "prefix", "length": 20, "hidden": 512},
        lambda k: prefix_mlp(k, 20, 512),
        {"bert": 9_864_704, "qwen2": 3_629_056, "deepseek": 128_254_464},
    ),
    (
        "p_tuning_v2",
        lambda k: {"name": "p_tuning_v2", "length": 64},
        lambda k: prefix(k, 64),
        {"bert": 1_179_648, "qwen2": 393_216, "deepseek": 15_728_640},
    ),
    (
        "houlsby",
        lambda k: {"name": "houlsby", "size": HIDDEN[k] // 16},
        lambda k: bottleneck(k, HIDDEN[k] // 16, 2),
        {"bert": 1_789_056, "qwen2": 4_862_592, "deepseek": 126_090_240},
    ),
    (
        "pfeiffer",
        lambda k: {"name": "pfeiffer", "size": HIDDEN[k] // 16},
        lambda k: bottleneck(k, HIDDEN[k] // 16),
        {"bert": 894_528, "qwen2": 2_431_296, "deepseek": 63_045_120},
    ),
    (
        "compacter",  # the paper's width for T5-base, 24, and its count: 3 (768 + 24) in 24 places and 64
        lambda k: {"name": "compacter"},
        lambda k: compacter(k, 24, 2),
        {"bert": 57_088, "qwen2": 132_544, "deepseek": 741_664},
    ),
    (
        "compacter_pp",
        lambda k: {"name": "compacter_pp"},
        lambda k: compacter(k, 24, 1),
        {"bert": 28_576, "qwen2": 66_304, "deepseek": 370_864},
    ),
    (
        "pfeiffer without the lowest five",
        lambda k: {"name": "pfeiffer", "size": 48, "drop": 5},
        lambda k: bottleneck(k, 48) * (LAYERS[k] - 5) // LAYERS[k],
        {"bert": 521_808, "qwen2": 1_652_240, "deepseek": 9_934_000},
    ),
    ("fusion", fusion_of, fusion, {"bert": 21_252_096, "qwen2": 57_845_760}),
    (
        "scaled_parallel",
        lambda k: {"name": "scaled_parallel", "size": HIDDEN[k] // 2},
        lambda k: bottleneck(k, HIDDEN[k] // 2),
        {"bert": 7_091_712, "qwen2": 19_299_840, "deepseek": 503_500_800},
    ),
    (
        "mam as AdapterHub",
        lambda k: {"name": "mam", "length": 30, "reparam": "mlp", "hidden": 512, "size": HIDDEN[k] // 2, "scale": 4},
        lambda k: prefix_mlp(k, 30, 512) + bottleneck(k, HIDDEN[k] // 2),
        {"bert": 16_964_096, "qwen2": 22_937_856, "deepseek": 631_796_224},
    ),
    (
        "mam as for GLUE",
        lambda k: {"name": "mam", "length": 16, "size": 16, "scale": 2},
        lambda k: prefix(k, 16) + bottleneck(k, 16),
        {"bert": 599_232, "qwen2": 808_320, "deepseek": 7_987_680},
    ),
    (
        "unipelt",
        lambda k: {"name": "unipelt", "length": 10, "size": HIDDEN[k] // 16, "rank": 8},
        lambda k: prefix(k, 10) + bottleneck(k, HIDDEN[k] // 16) + lora(k, 8) + gates(k),
        {"bert": 1_410_672, "qwen2": 3_119_520, "deepseek": 69_926_520},
    ),
    (
        "vera",
        lambda k: {"name": "vera", "rank": 256, "targets": query_value(k)},
        lambda k: LAYERS[k] * (2 * 256 + HIDDEN[k] + KEYS[k]),
        {"bert": 24_576, "qwen2": 36_864, "deepseek": 261_120},
    ),
    (
        "oft",
        lambda k: {"name": "oft", "block": 32, "targets": query_value(k)},
        lambda k: LAYERS[k] * 2 * (HIDDEN[k] // 32) * (32 * 31 // 2),
        {"bert": 285_696, "qwen2": 666_624, "deepseek": 3_809_280},
    ),
    (
        "loha",
        lambda k: {"name": "loha", "rank": 8, "targets": query_value(k)},
        lambda k: 2 * lora(k, 8),
        {"bert": 589_824, "qwen2": 1_081_344, "deepseek": 7_864_320},
    ),
    # 768 = 24 * 32, 896 = 28 * 32, 128 = 8 * 16, 4096 = 64 * 64: the even splits; rank 4 is less than half of any.
    (
        "lokr",
        lambda k: {"name": "lokr", "rank": 4, "targets": query_value(k)},
        lambda k: {
            "bert": 12 * 2 * (24 * 24 + 4 * (32 + 32)),
            "qwen2": 24 * (28 * 28 + 4 * (32 + 32) + 8 * 28 + 4 * (16 + 32)),
            "deepseek": 30 * 2 * (64 * 64 + 4 * (64 + 64)),
        }[k],
        {"bert": 19_968, "qwen2": 34_944, "deepseek": 276_480},
    ),
    (
        "layernorm",
        lambda k: {"name": "layernorm"},
        lambda k: (2 * (2 * LAYERS[k] + 1) if k == "bert" else 2 * LAYERS[k] + 1) * HIDDEN[k],
        {"bert": 38_400, "qwen2": 43_904, "deepseek": 249_856},
    ),
    (
        "peft boft",  # blocks of skew matrices, and a scale for each output
        lambda k: {"name": "peft", "type": "boft", "boft_block_size": 4, "targets": query_value(k)},
        lambda k: LAYERS[k] * (2 * HIDDEN[k] * 4 + HIDDEN[k] + KEYS[k]),
        {"bert": 92_160, "qwen2": 196_608},  # the permutations of a wide model's blocks take seconds
    ),
    (
        "freeze",
        lambda k: {"name": "freeze", "layers": 2},
        lambda k: 2 * layer(k),
        {"bert": 14_175_744, "qwen2": 29_824_768, "deepseek": 404_766_720},
    ),
    (
        "full",
        lambda k: {"name": "full"},
        everything,
        {"bert": 109_483_778 - HEAD, "qwen2": 494_032_768, "deepseek": 6_910_365_696},
    ),
]
"""Name, settings, the formula of the paper, and the number: everything the methods can be asked to train."""


@pytest.mark.parametrize(
    ("settings", "formula", "kind", "number"),
    [
        pytest.param(settings, formula, kind, number, id=f"{name}-{kind}")
        for name, settings, formula, numbers in ROWS
        for kind, number in numbers.items()
    ],
)
def test_a_method_trains_as_many_parameters_as_its_formula_and_the_table_say(
    settings: Callable[[str], dict[str, Any]], formula: Callable[[str], int], kind: str, number: int
) -> None:
    trainable, _ = count(MODELS[kind](), settings(kind), classify=kind == "bert")
    assert trainable - (HEAD if kind == "bert" else 0) == number == formula(kind)


def test_the_table_leaves_out_no_method() -> None:
    assert {METHODS.parse(settings("qwen2")).name for _, settings, _, _ in ROWS} == set(METHODS.names())


@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "peft"])  # whose types have their own
def test_the_typical_share_is_the_share_of_qwen2_with_the_defaults(name: str) -> None:
    trainable, total = count(qwen2_half_billion(), fusion_of("qwen2") if name == "fusion" else {"name": name})
    assert METHODS.parse(name).typical_share == pytest.approx(trainable / total, rel=0.02)
