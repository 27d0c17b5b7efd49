"""What an export is given and checked against: a finished run, held-out prompts, and the model card."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from luthier.core.shell import shell_line
from luthier.core.strict_json import to_json
from luthier.core.version import __version__
from luthier.methods.base import Method

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

Bounds = tuple[float | None, float | None]
"""Allowed (largest, mean) difference of two logits, as a share of their spread; None: differences are reported."""


@dataclass(frozen=True, slots=True)
class HeldOutPrompt:
    """A held-out row."""

    ids: Sequence[int]  # all its tokens: logits are compared at each
    start: int | None  # where its answer begins; None for a classifier


class Runner(Protocol):
    """A model that answers, in whatever program it runs. It may have `close()`, which frees files and memory."""

    def logits(self, ids: Sequence[int]) -> "NDArray[Any]":
        """Scores of the token that follows each of `ids`: [tokens, vocabulary], or [1, labels] for a classifier."""

    def answer(self, ids: Sequence[int], most: int) -> list[int]:
        """At most `most` greedy tokens, up to and including an end token; a classifier has none."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A finished run, as an export takes it. Nothing is loaded yet."""

    run: str
    weights: Path
    """Folder of the run with the adapter or the whole tuned model, its tokenizer and generation settings."""
    base: str  # folder or hub id, as in the recipe
    method: Method
    task: str
    classifies: bool  # whether it has a classification head
    quantize: str
    """Quantization of the base during training, by the recipe or in its own files; "none" if there was none."""
    stored: str  # type of the base's weights in its files: float32, bfloat16 or float16
    config: Any  # the base's config.json, as transformers reads it
    tokenizer: Any
    ends: tuple[int, ...]  # tokens that end an answer; empty for a classifier
    open_base: "Callable[[], nn.Module]"  # loads the untouched base as it was in training
    open_plain_base: "Callable[[], nn.Module]"  # loads the untouched base in float32, unquantized
    open_plain: "Callable[[], nn.Module]"  # loads the tuned model on the base in float32, unquantized
    skeleton: "Callable[[], nn.Module]"  # builds the base's modules and shapes, without weights
    facts: dict[str, Any]  # the run's result.json

    @property
    def auto_class(self) -> str:
        """Name of transformers' class that loads it."""
        return "AutoModelForSequenceClassification" if self.classifies else "AutoModelForCausalLM"

    def export_command(self, form: str) -> str:
        """What to type for another form of this run."""
        return shell_line("luthier", "export", Path(self.run), "--to", form)

    def merged(self) -> "nn.Module":
        """The plain base with the tuned weights merged in."""
        return self.method.merge(self.open_plain())  # type: ignore[no-any-return]


LIBRARIES = {"adapter": "peft", "gguf": "gguf", "gguf_adapter": "gguf", "ollama": "gguf"}
Checks = Sequence[Mapping[str, Any]]


def is_local(base: str) -> bool:
    """Whether it is a folder of this machine or the embedded model, not a hub id."""
    return base == "builtin" or base.startswith((".", "/", "~")) or Path(base).is_dir()


def card(tuned: Tuned, target: str, use: Sequence[str], parity: Checks, checked: Mapping[str, Any], **more: str) -> str:
    """README.md in the form that model hubs read: a block of YAML, with `more` keys, then text. It names no folder."""
    from jinja2 import StrictUndefined, Template

    facts, local = tuned.facts, is_local(tuned.base)
    library = LIBRARIES.get(target, "transformers")
    head: dict[str, Any] = {"library_name": library, "tags": ["luthier", tuned.method.name]}
    head["pipeline_tag"] = "text-classification" if tuned.classifies else "text-generation"
    head |= ({} if local else {"base_model": tuned.base}) | more
    values = {"target": target, "use": use, "parity": parity, "checked": checked, "facts": {"tuned": {}, **facts}}
    values["head"] = {key: to_json(value, ensure_ascii=False) for key, value in head.items()}  # JSON is YAML, quoted
    values["origin"] = Path(tuned.base).expanduser().name if local else tuned.base
    text = Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8")
    page: Template = Template(text, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return page.render(values, tuned=tuned, name=Path(tuned.run).name, version=__version__)
