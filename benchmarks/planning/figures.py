"""`python -m benchmarks.planning.figures`: what others measured beside what is planned, and plans up to 1,024 devices.

It prints the two tables of docs/scale.md. Models are a config.json that is written here; no weights, no network.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import transformers

from luthier.core.units import gigabytes
from luthier.methods.base import METHODS
from luthier.models.settings import ModelConfig
from luthier.planning.devices import Cluster
from luthier.planning.parallel import Layout
from luthier.planning.plan import Plan, PlanInputs, estimate, tuned_skeleton, workload_of
from luthier.tasks.base import TASKS
from luthier.training.settings import TrainConfig

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _llama(hidden: int, layers: int, heads: int, key_value: int, inner: int, words: int, kind: str = "Llama") -> Any:
    return getattr(transformers, f"{kind}Config")(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value,
        intermediate_size=inner,
        vocab_size=words,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def _mpt(hidden: int, layers: int, heads: int) -> Any:
    """MPT's shape: layers of 12 hidden^2 weights. GPT-NeoX has them too, and attention by a fused kernel."""
    return transformers.GPTNeoXConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        vocab_size=50368,
        max_position_embeddings=8192,
        use_parallel_residual=False,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )


MODELS = {
    "Llama-3.1-8B": _llama(4096, 32, 32, 8, 14336, 128256),
    "Llama-3.1-70B": _llama(8192, 80, 64, 8, 28672, 128256),
    "Qwen2.5-7B": _llama(3584, 28, 28, 4, 18944, 152064, "Qwen2"),
    "Qwen2.5-32B": _llama(5120, 64, 40, 8, 27648, 152064, "Qwen2"),
    "Qwen-7B": _llama(4096, 32, 32, 32, 11008, 151936),
    "MPT-7B": _mpt(4096, 32, 32),
    "MPT-13B": _mpt(5120, 40, 40),
    "MPT-30B": _mpt(7168, 48, 56),
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One training run that was measured by others."""

    model: str
    method: str
    """full or lora."""
    devices: str
    nodes: int
    length: int
    """Tokens of each row."""
    rows: int
    """Rows of a step, over all devices."""
    micro_batch: int
    checkpointing: bool
    parallel: str
    tokens: float
    """Tokens a second and device."""
    source: str
    note: str = ""


AUTOMODEL = "NeMo Automodel, docs/performance-summary.mdx"
TITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"
FOUNDRY = "llm-foundry, scripts/train/benchmarking"
QWEN = "Qwen README, Profiling of Memory and Speed"
TENSOR = "measured with tensor parallelism of 2"
SLOW = "500 W instead of 700, memory of 2.4 TB/s; half of the layers' products repeated"
FIGURES = [
    Figure("Llama-3.1-8B", "lora", "1xH100", 1, 4096, 32, 2, False, "ddp", 12_473, AUTOMODEL),
    Figure("Qwen2.5-7B", "lora", "1xH100", 1, 4096, 32, 2, False, "ddp", 14_110, AUTOMODEL),
    Figure("Llama-3.1-70B", "lora", "8xH100", 1, 4096, 32, 2, True, "fsdp", 1_092, AUTOMODEL, TENSOR),
    Figure("Llama-3.1-70B", "lora", "8xH100", 2, 4096, 32, 2, True, "fsdp", 985, AUTOMODEL, TENSOR),
    Figure("Qwen2.5-32B", "lora", "8xH100", 1, 4096, 32, 2, True, "fsdp", 2_250, AUTOMODEL, TENSOR),
    Figure("Qwen2.5-32B", "lora", "8xH100", 2, 4096, 32, 2, True, "fsdp", 2_073, AUTOMODEL, TENSOR),
    Figure("Llama-3.1-8B", "full", "8xH100", 1, 8192, 16, 2, True, "fsdp", 5_762, TITAN, SLOW),
    Figure("Llama-3.1-8B", "full", "8xH100", 16, 8192, 256, 2, True, "fsdp", 5_605, TITAN, SLOW),
    Figure(
        "Llama-3.1-70B", "full", "8xH100", 8, 8192, 128, 1, True, "fsdp", 867, AUTOMODEL, "context parallelism of 2"
    ),
    Figure("MPT-7B", "full", "8xH100", 1, 2048, 48, 6, False, "fsdp", 10_643, FOUNDRY),
    Figure("MPT-30B", "full", "8xH100", 4, 2048, 1344, 14, True, "fsdp", 2_308, FOUNDRY),
    Figure("MPT-7B", "full", "8xA100-80GB", 1, 2048, 96, 6, False, "fsdp", 4_641, FOUNDRY),
    Figure("MPT-30B", "full", "8xA100-80GB", 1, 2048, 504, 3, True, "fsdp", 916, FOUNDRY),
    Figure("MPT-13B", "full", "8xA100-40GB", 16, 2048, 2048, 16, True, "fsdp", 1_972, FOUNDRY),
    Figure("MPT-30B", "full", "8xA100-40GB", 16, 2048, 768, 6, True, "fsdp", 865, FOUNDRY),
    Figure("Qwen-7B", "lora", "1xA100-80GB", 1, 2048, 8, 1, True, "ddp", 8 * 2048 / 5.2, QWEN),
    Figure("Qwen-7B", "lora", "1xA100-80GB", 1, 256, 8, 1, True, "ddp", 8 * 256 / 1.2, QWEN),
]


@cache
def _folder() -> Path:
    return Path(mkdtemp(prefix="shapes-"))


def planned(figure: Figure) -> Plan:
    """The plan of a run like that of `figure`."""
    folder = _folder() / figure.model
    MODELS[figure.model].save_pretrained(folder)
    model = ModelConfig(path=str(folder), dtype="bfloat16", device="cpu")
    spec: Any = {"name": "lora", "rank": 16, "targets": PROJECTIONS} if figure.method == "lora" else figure.method
    if figure.model == "Qwen-7B":
        spec = {"name": "lora", "rank": 64, "targets": PROJECTIONS}
    method = METHODS.parse(spec)
    train = TrainConfig(
        batch_size=figure.rows,
        micro_batch=figure.micro_batch,
        packing=False,
        gradient_checkpointing=figure.checkpointing,
        precision="bf16",
    )
    inputs = PlanInputs(
        model,
        method,
        train,
        TASKS.parse("complete"),
        tuned_skeleton(model, method, str(folder), None),
        str(folder),
        lengths=[figure.length] * figure.rows,
        learned=[figure.length] * figure.rows,
        steps=1,
        labels=None,
        seed=0,
        cluster=Cluster.parse(figure.devices, figure.nodes),
        parallel=figure.parallel,  # type: ignore[arg-type]
    )
    return estimate(inputs, workload_of(inputs, None))


def layout_of(plan: Plan) -> Layout:
    """The layout of a plan on a cluster."""
    assert plan.layout is not None
    return plan.layout


def per_device(plan: Plan, ranks: int) -> float:
    """Tokens a second and device."""
    layout = layout_of(plan)
    return layout.tokens / layout.seconds / ranks


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=1024, help="devices of the largest plan")
    most = parser.parse_args().most
    print("| run | devices | published | planned | planned / published | TFLOP/s | memory |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for figure in FIGURES:
        plan, devices = planned(figure), figure.nodes * int(figure.devices.split("x")[0])
        tokens, rate = per_device(plan, devices), layout_of(plan).flops / 1e12
        what = f"{figure.model}, {figure.method}, {figure.length:,} tokens"
        print(
            f"| {what} | {figure.nodes} x {figure.devices} | {figure.tokens:,.0f} | {tokens:,.0f} "
            f"| {tokens / figure.tokens:.2f} | {rate:,.0f} | {gigabytes(plan.peak)} |"
        )
    print("\n| H100 | run | memory | step | of it waiting | tokens/s and device | tokens/s | of 8 |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for model, method, parallel in (
        ("Llama-3.1-8B", "lora", "ddp"),
        ("Llama-3.1-8B", "full", "fsdp"),
        ("Llama-3.1-70B", "lora", "fsdp"),
        ("Llama-3.1-70B", "full", "fsdp"),
    ):
        first = 0.0
        for nodes in (1, 2, 8, 32, 128):
            if (devices := 8 * nodes) > most:
                break
            again = (model, method) != ("Llama-3.1-8B", "lora")
            run = Figure(model, method, "8xH100", nodes, 4096, 2 * devices, 2, again, parallel, 0, "")
            plan = planned(run)
            layout, tokens = layout_of(plan), per_device(plan, devices)
            first = first or tokens
            print(
                f"| {devices:,} | {model}, {method}, {parallel} | {gigabytes(plan.peak)} "
                f"| {layout.seconds:.2f} s | {layout.waiting:.3f} s | {tokens:,.0f} | {tokens * devices:,.0f} | {tokens / first:.0%} |"
            )


if __name__ == "__main__":
    main()
