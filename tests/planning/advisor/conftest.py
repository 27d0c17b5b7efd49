"""Bases known by their shape alone: a config.json, no weights, and a tokenizer only where rows are to be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import InputError
from luthier.pipeline import choose as choosing
from luthier.planning.advisor.candidates import Planner, shape_key
from luthier.planning.advisor.question import ChooseOptions
from luthier.recipe.config import RunConfig
from tests.conftest import build_tokenizer

Choose = Callable[..., dict[str, Any]]


def shapes() -> dict[str, Any]:
    import transformers as t

    return {
        "llama-7b": t.LlamaConfig(
            dtype="bfloat16",
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=4096,
        ),
        "qwen2-0.5b": t.Qwen2Config(
            dtype="bfloat16",
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
        "bert-base": t.BertConfig(),
        "minilm": t.BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12),
        "t5-small": t.T5Config(is_gated_act=True, dense_act_fn="gelu_new"),
    }


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base of each shape; those that rows are read for have a tokenizer."""
    root = tmp_path_factory.mktemp("bases")
    for name, config in shapes().items():
        config.save_pretrained(root / name)
    build_tokenizer().save_pretrained(root / "bert-base")
    return root


@pytest.fixture(scope="session", autouse=True)
def shapes_are_made_once() -> Iterator[None]:
    """What depends on a base's shape alone is made once for all cases: checks, bases with a method on them."""
    checks: dict[str, InputError | None] = {}
    tuned: dict[str, Any] = {}
    check, attach = Planner.check, Planner._tuned

    def check_once(self: Planner, arm: str, quantize: str | None = None) -> None:
        key = repr((self.base.source, self.base.labels, self.base.other is None, self.method(arm), quantize, arm))
        if key not in checks:
            try:
                check(self, arm, quantize)
                checks[key] = None
            except InputError as error:
                checks[key] = error
        if (found := checks[key]) is not None:
            raise found

    def attach_once(self: Planner, method: Any) -> Any:
        key = repr((self.base.source, self.base.labels, shape_key(method)))
        if key not in tuned:
            tuned[key] = attach(self, method)
        return tuned[key]

    patch = pytest.MonkeyPatch()
    patch.setattr(Planner, "check", check_once)
    patch.setattr(Planner, "_tuned", attach_once)
    yield
    patch.undo()


@pytest.fixture
def choose(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """`choose("llama-7b", ["train.epochs=1"], memory="12GB")` as the command does it, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def ask(base: str, overrides: Any = (), evidence: Any = (), **options: Any) -> dict[str, Any]:
        path = base if base == "builtin" else str(bases / base)
        config = RunConfig.load(None, [f"model={path}", *overrides])
        return choosing.choose(config, ChooseOptions.parse(**options), evidence=evidence)

    return ask
