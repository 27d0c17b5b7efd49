"""What an export is: a form of a tuned model on disk, and how the program that will use it opens it.

What was written is opened and replays held-out prompts: it has to answer as what was trained (see pipeline.parity).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from jinja2 import StrictUndefined, Template

from luthier.core.errors import CannotMerge
from luthier.core.registry import Family, Plugin
from luthier.core.shell import shell_line
from luthier.core.strict_json import to_json
from luthier.core.version import __version__
from luthier.methods.base import Method
from luthier.models.pypi import PACKAGED
from luthier.rendering.row import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

Bounds = tuple[float | None, float | None]
"""Allowed (largest, mean) difference of two logits, as a share of their spread; None: differences are reported."""


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
    computed: str  # type of the weights in memory of the model that an export is compared with
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


Opened: TypeAlias = "nn.Module | Runner"
LIBRARIES = {"adapter": "peft", "gguf": "gguf", "gguf_adapter": "gguf", "ollama": "gguf"}
Checks = Sequence[Mapping[str, Any]]


def is_local(base: str) -> bool:
    """Whether it is a folder of this machine or a model that Luthier knows by name, not a hub id."""
    return base in ("builtin", *PACKAGED) or base.startswith((".", "/", "~")) or Path(base).is_dir()


def card(tuned: Tuned, target: str, use: Sequence[str], parity: Checks, checked: Mapping[str, Any], **more: str) -> str:
    """README.md in the form that model hubs read: a block of YAML, with `more` keys, then text. It names no folder."""
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


class Export(Plugin):
    """One form. This class describes a merged model; other forms override `refuse`."""

    required: ClassVar[tuple[str, ...]] = ("required_bytes", "write", "open", "use")

    base_layout: ClassVar[bool] = True
    """Whether a merged model has the weights of the base's architecture, and no others."""

    @property
    def on_plain_base(self) -> bool:
        """Whether it belongs to the unquantized base."""
        return True

    def refuse(self, tuned: Tuned) -> None:
        """Raise InputError or CannotMerge if this form cannot hold the run, before anything is loaded."""
        why = ""
        if not tuned.method.mergeable:
            why = f"method {tuned.method.name} changes what the model computes, so it cannot be merged"
        elif tuned.quantize not in ("none", "int8", "nf4", "fp4"):  # those can be undone
            why = f"the base's files are quantized as {tuned.quantize}, which cannot be undone here to merge weights"
        elif self.base_layout:
            why = tuned.method.unmergeable(tuned.skeleton())
        if why:
            raise CannotMerge(f"{tuned.run}: {why}\n  fix: {tuned.export_command('adapter')}")

    def required_bytes(self, tuned: Tuned) -> int:
        """Estimated bytes on disk."""
        raise NotImplementedError

    def bounds(self, tuned: Tuned) -> Bounds:
        """Allowed differences of logits; None as the second: no bound on the mean."""
        return 1e-3, None

    def write(self, tuned: Tuned, folder: Path) -> None:
        """Write everything that the program needs into `folder`, which is empty."""
        raise NotImplementedError

    def open(self, tuned: Tuned, folder: Path) -> Opened:
        """Open what was written, with the program that will use it."""
        raise NotImplementedError

    def check(self, tuned: Tuned, opened: Any, rows: Sequence[Row]) -> dict[str, Any]:
        """Checks on held-out rows, for export.json; Unproved if one fails. `opened` is None if nothing is replayed."""
        return {}

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        """Lines that load what lies in `folder`."""
        raise NotImplementedError

    def card(self, tuned: Tuned, parity: Sequence[dict[str, Any]], checked: Mapping[str, Any]) -> str:
        """README.md of the folder; `checked` is the result of `check`."""
        return card(tuned, self.name, self.use(tuned, "PATH_OF_THIS_FOLDER"), parity, checked)

    def publish(self, tuned: Tuned, place: Path) -> list[str]:
        """Send the finished folder to where it belongs, and return lines that report it; most forms do nothing."""
        return []


EXPORTS = Family(Export, "export")


def write_words(tokenizer: Any, ends: Sequence[int], folder: Path) -> None:
    """Save the tokenizer with its template; with `ends` also generation settings, so that generation stops there."""
    from transformers import GenerationConfig

    tokenizer.save_pretrained(folder)
    if ends:
        GenerationConfig(eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
