"""PEFT's own tests of decoders and encoder-decoders, run on the methods that Luthier registers with PEFT.

    python tools/peft_tests.py [pytest's options]        or: make test-peft

PEFT's source package of the installed version is downloaded into build/ (nothing of it is kept in this project). Its
tests name models of the hub; small random ones of the same architectures take their places, so nothing else is
downloaded. In pytest this file is the plugin that puts Luthier's configurations where PEFT's stand.
"""

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Generator, Iterable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "peft-tests"
DECODERS = ("opt", "gpt2", "gptj", "llama", "qwen2", "gemma3_text")
NAMES = {
    "opt": "tiny-random-OPTForCausalLM",
    "gpt2": "tiny-random-GPT2LMHeadModel",
    "gptj": "tiny-random-GPTJForCausalLM",
    "llama": "tiny-random-LlamaForCausalLM",
    "qwen2": "tiny-dummy-qwen2",
    "gemma3_text": "tiny-random-Gemma3ForCausalLM",
    "t5": "tiny-random-T5ForConditionalGeneration",
    "bart": "tiny-random-BartForConditionalGeneration",
}
"""Architecture -> last part of the name that PEFT's tests know a model of it by."""
BY_DEFINITION = ("so it cannot fold into the base's weights", "is not known for the encoder-decoder bart")
"""What these errors say is no fault: such adapters do not merge, and T5 is the encoder-decoder that has adapters."""
UNFIT = {
    (
        "fusion",
        "gradient_checkpointing",
    ): "the adapters that are fused stay frozen, and the test wants a gradient for all",
    ("fusion", "layer_indexing"): "the adapters that are fused stay frozen, and the test wants a gradient for all",
    ("bitfit", "test_merge_layers["): "an architecture without biases has no place for them in its files; "
    "Luthier's export says so before it loads anything",
}
"""(Configuration, part of a test's name) -> why the test cannot hold."""


def source() -> Path:
    """The unpacked source package of the installed PEFT."""
    name = f"peft-{version('peft')}"
    if not (FOLDER / name / "tests").is_dir():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", ":all:", "--dest", str(FOLDER), name.replace("-", "==")]
        subprocess.run(command, check=True)
        with tarfile.open(FOLDER / f"{name}.tar.gz") as packed:
            packed.extractall(FOLDER, filter="data")
        (FOLDER / name / "tests" / "__init__.py").touch()  # left out of the package
    return FOLDER / name


def build_models() -> None:
    """Make the small random models that take the places of the hub's."""
    import torch
    import transformers as t

    sys.path.insert(0, str(ROOT))
    from tests.conftest import build_tokenizer

    # The tests' inputs are tokens 0 to 2. A padding token's embedding is zero: of such rows nothing is computed.
    ids = {"vocab_size": 400, "pad_token_id": 3, "bos_token_id": 0, "eos_token_id": 1}
    width = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    small = {**ids, **width, "num_key_value_heads": 2, "max_position_embeddings": 256}
    made = {
        "opt": t.OPTConfig(**ids, **width, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=256),
        "gpt2": t.GPT2Config(**ids, n_embd=32, n_layer=2, n_head=4, n_positions=256),
        "gptj": t.GPTJConfig(**ids, n_embd=32, n_layer=2, n_head=4, n_positions=256, rotary_dim=4),
        "llama": t.LlamaConfig(**small),
        "qwen2": t.Qwen2Config(**small),
        "gemma3_text": t.Gemma3TextConfig(**small, head_dim=8, sliding_window=64),
        "t5": t.T5Config(
            vocab_size=400,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
            dropout_rate=0.0,  # two passes are compared
        ),
        "bart": t.BartConfig(
            **ids,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            decoder_start_token_id=1,
        ),
    }
    for kind, config in made.items():
        folder = FOLDER / "models" / NAMES[kind]
        if not (folder / "model.safetensors").is_file():
            torch.manual_seed(1)
            auto = t.AutoModelForCausalLM if kind in DECODERS else t.AutoModelForSeq2SeqLM
            auto.from_config(config).save_pretrained(folder)
            build_tokenizer().save_pretrained(folder)


def main() -> int:
    tests = source()
    build_models()
    files = [f"tests/test_{kind}_models.py" for kind in ("decoder", "encoder_decoder")]
    # Only PEFT's tests that are run over a table of configurations; the rest are about its own methods.
    chosen = ["-k", "bitfit or bottleneck or prefixkv or mam or unipelt or compacter or fusion"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "peft_tests",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "-W",
        "ignore",
        *chosen,
        *files,
    ]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tools")])
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, "LUTHIER_PEFT_MODELS": str(FOLDER / "models")}
    return subprocess.run([*command, *sys.argv[1:]], cwd=tests, env={**os.environ, **offline}, check=False).returncode


def configurations(task: str) -> list[Any]:
    """Every configuration that Luthier registers, as PEFT's tables have them: class and fields, with a start that is
    not the base."""

    from luthier.methods.layers.bias import BitFitConfig
    from luthier.methods.layers.bottleneck import BottleneckConfig
    from luthier.methods.layers.composite import MamConfig, UniPeltConfig
    from luthier.methods.layers.fusion import FusionConfig
    from luthier.methods.layers.prefix import PrefixKVConfig

    normal = {"size": 8, "init": "normal"}
    table: list[tuple[str, Any, dict[str, Any]]] = [
        ("bitfit", BitFitConfig, {"missing": "add"}),
        *((f"bottleneck_{p}", BottleneckConfig, {"place": p, **normal}) for p in ("houlsby", "pfeiffer", "parallel")),
        ("bottleneck_output", BottleneckConfig, {"place": "output", **normal, "learned_scale": True}),
        *((f"compacter_{p}", BottleneckConfig, {"place": p, "phm": 4, **normal}) for p in ("houlsby", "output")),
        ("fusion", FusionConfig, {"sizes": [8, 4], "activations": ["relu", "gelu"], **normal}),
    ]
    if task == "CAUSAL_LM":  # a prefix, and what has one, does not work on encoder-decoders, and says so
        table += [
            ("prefixkv", PrefixKVConfig, {"length": 3}),
            ("prefixkv_mlp", PrefixKVConfig, {"length": 3, "reparam": "mlp", "encoder_size": 16}),
            ("mam", MamConfig, {"length": 3, **normal}),
            ("unipelt", UniPeltConfig, {"length": 3, **normal}),
        ]
    return [pytest.param(config, {"task_type": task, **fields}, id=name) for name, config, fields in table]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Skip, with Luthier's words, what a method cannot do by definition."""
    for (config, part), why in UNFIT.items():
        biases = config == "bitfit" and any(NAMES[kind] in item.name for kind in ("opt", "gpt2", "bart"))
        if part in item.name and f"{config}-" in item.name and not biases:
            pytest.skip(why)
    try:
        return (yield)
    except ValueError as error:
        if any(words in str(error) for words in BY_DEFINITION):
            pytest.skip(str(error))
        raise


def pytest_configure(config: Any) -> None:
    import torch

    import luthier  # noqa: F401  (registers the methods with PEFT)
    from luthier.methods.layers.base import TunerConfig
    from luthier.methods.layers.bias import BiasDelta
    from luthier.methods.layers.bottleneck import PHM, Bottleneck
    from luthier.methods.layers.fusion import Fused

    # PEFT's test modules import diffusers for tests of image models, which are not run here.
    sys.modules.setdefault(
        "diffusers", SimpleNamespace(StableDiffusionPipeline=type("StableDiffusionPipeline", (), {}))
    )  # type: ignore[arg-type]
    from tests import test_decoder_models, test_encoder_decoder_models, testing_utils

    models = Path(os.environ["LUTHIER_PEFT_MODELS"])
    not_the_base = testing_utils.set_init_weights_false

    def start_elsewhere(layer: Any, weights: Callable[[Any, str], Iterable[torch.Tensor]]) -> None:
        """Give new adapters of this layer other weights than zeros: PEFT's tests want them not to be the base."""
        fill = layer.fill

        def filled(self: Any, adapter: str, settings: Any) -> None:
            fill(self, adapter, settings)
            for weight in weights(self, adapter):
                torch.nn.init.normal_(weight)

        layer.fill = filled

    def projections(self: Any, adapter: str) -> Iterable[torch.Tensor]:
        held = [self.held(name)[adapter] for name in ("down", "up")]
        return [each.rule if isinstance(each, PHM) else each.weight for each in held]

    start_elsewhere(BiasDelta, lambda self, adapter: [self.held("delta")[adapter]])
    start_elsewhere(Bottleneck, projections)
    start_elsewhere(Fused, projections)

    def keep(config_cls: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs if issubclass(config_cls, TunerConfig) else not_the_base(config_cls, kwargs)

    # It means BEFT alone, and asks whether a class is an instance of it, which none is.
    test_decoder_models.check_beft_config = lambda *_: None

    for module, task, kinds in (
        (test_decoder_models, "CAUSAL_LM", DECODERS),
        (test_encoder_decoder_models, "SEQ_2_SEQ_LM", ("t5", "bart")),
    ):
        module.set_init_weights_false = keep
        module.ALL_CONFIGS[:] = configurations(task)
        listed = next(value for name, value in vars(module).items() if name.endswith("MODELS_TO_TEST"))
        listed[:] = [str(models / NAMES[kind]) for kind in kinds]


if __name__ == "__main__":
    sys.exit(main())
