"""Sources of served models: a Luthier run, an adapter in PEFT's format, or a full model in transformers' format."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from luthier.core.errors import InputError
from luthier.core.files import read_object
from luthier.core.resources import refuse_closed
from luthier.core.shell import shell_line
from luthier.methods.layers.bottleneck import drop_lowest
from luthier.methods.layers.loading import load_adapter, shapes_of, without_pickle
from luthier.models.gguf import gguf_file, unpacked
from luthier.models.settings import ModelConfig
from luthier.recipe.consent import Allow, require
from luthier.recipe.identity import read_recipe
from luthier.runs.folder import RunFolder


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on disk that is not loaded yet."""

    name: str  # The `model` of a request
    path: Path
    base: ModelConfig  # The base that the adapter was trained on, or the full model itself
    kind: str  # The method, or "model"
    weights: Path  # Folder of the adapter or model, without the rest of a run
    tokenizer: Path  # Folder of the tokenizer and chat template
    load: Callable[[nn.Module], nn.Module] | None = None  # Loads the adapter onto the base; None for a full model
    check: Callable[[str], None] = lambda _: None  # Raises InputError if another base is in that folder


def source_of(given: str, allow_code: Allow = False, base: str | None = None, drop_layers: int = 0) -> ModelSource:
    """Read NAME=PATH or PATH; InputError if it cannot be served or contains code that is not allowed.

    `base` is the base model of an adapter, instead of the one that it names. `drop_layers` leaves the bottlenecks of so
    many of its lowest blocks out.
    """
    source = _source_of(given, allow_code, base)
    if not drop_layers:
        return source
    load = source.load
    if load is None:
        raise InputError(f"--drop-layers {drop_layers}: {source.path} holds no adapter", fix="leave it out")
    return replace(source, load=lambda model: drop_lowest(load(model), drop_layers, str(source.path)))


def _source_of(given: str, allow_code: Allow, base: str | None) -> ModelSource:
    named = not Path(given).expanduser().is_dir()  # a folder whose name contains = is a folder
    name, equals, rest = given.partition("=") if named else (given, "", "")
    path = Path(rest if equals else given).expanduser()
    name = name if equals else path.resolve().name
    if (packed := gguf_file(path)) is not None:
        made = unpacked(packed)
        return ModelSource(name if equals else packed.stem, packed, ModelConfig(path=str(packed)), "model", made, made)
    if (path / "recipe.yaml").is_file():
        return _run(name, path, allow_code)
    if (path / "adapter_config.json").is_file():
        return _adapter(name, path, base)
    if (path / "config.json").is_file():
        kind = str(read_object(path / "config.json").get("architectures") or "")
        if "SequenceClassification" in kind:
            raise InputError(f"{path} is a classifier ({kind}), which cannot chat")
        return ModelSource(name, path, ModelConfig(path=str(path)), "model", path, path)
    if not path.is_dir():
        RunFolder.existing(path)  # its error suggests similar names
    message = f"{path} is not a run, an adapter or a model (no recipe.yaml, adapter_config.json or config.json)"
    raise InputError(message, fix="give the folder that `luthier train` or `luthier export` printed")


def _run(name: str, path: Path, allow_code: Allow) -> ModelSource:
    folder = RunFolder.existing(path)
    config, weights = read_recipe(folder), folder.weights()
    if folder.read_json(folder.data)["task"]["name"] in ("classify", "regress"):
        raise InputError(f"{path} is a classifier, which cannot chat", fix=shell_line("luthier", "evaluate", path))
    full = config.method.saves == "model"
    base = config.model.model_copy(update={"path": str(weights), "init": "pretrained"}) if full else config.model
    require(folder.recipe, allow_code, base)
    load = None if full else lambda model: config.method.load(model, weights)
    check = partial(folder.refuse_another_base, config.model)
    return ModelSource(name, path, base, config.method.name, weights, weights, load, check)


def _adapter(name: str, path: Path, base: str | None) -> ModelSource:
    refuse_closed(path)
    settings = read_object(path / "adapter_config.json")
    base = base or settings.get("base_model_name_or_path")
    if not base:
        message = f"{path}/adapter_config.json names no base (base_model_name_or_path)"
        raise InputError(message, fix="name it: --base BASE")
    if (kind := str(settings.get("task_type") or "CAUSAL_LM")) != "CAUSAL_LM":
        what, fix = "not an adapter of a language model", "give an adapter of a language model (CAUSAL_LM)"
        if kind == "SEQ_CLS":
            what = "the adapter of a classifier"
            fix += ", or use this one from Python: peft.AutoPeftModelForSequenceClassification"
        raise InputError(f"{path} is {what} (task_type {kind}), which cannot chat", fix=fix)
    path = without_pickle(path)
    shapes_of(path)  # before the base is loaded; vLLM would also read a pickle in this folder
    own = path if (path / "tokenizer_config.json").is_file() else Path(base).expanduser()
    kind = str(settings.get("peft_type", "adapter")).lower()
    config = ModelConfig(path=str(base))
    return ModelSource(name, path, config, kind, path, own, lambda model: load_adapter(model, path))


def refuse_mixture(sources: list[ModelSource]) -> None:
    """Raise InputError if one server cannot have all: adapters of different bases, or two models of one name."""
    adapters = [source for source in sources if source.load is not None]
    for other in adapters[1:]:
        mine, its = adapters[0].base.model_dump(), other.base.model_dump()
        if differing := [key for key in mine if mine[key] != its[key]]:
            shown = ", ".join(f"model.{key} is {mine[key]} there and {its[key]} here" for key in differing)
            message = f"{adapters[0].path} and {other.path} are adapters for different bases: {shown}"
            raise InputError(message, fix="use two processes, or merge one: luthier export RUN --to merged")
    seen: dict[str, ModelSource] = {}
    for source in sources:
        if source.name in seen or (source.name == "base" and source.load is not None):
            first = seen.get(source.name)
            what = f"{first.path} and {source.path} have the same name" if first else f"{source.path} is called"
            raise InputError(f"{what} {source.name!r}", fix="give another one: NAME=PATH")
        seen[source.name] = source
