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
from luthier.methods.layers.loading import MOVED, load_adapter, moves_base, shapes_of, without_pickle
from luthier.models.gguf import gguf_file, unpacked
from luthier.models.load import architecture, locate
from luthier.models.settings import ModelConfig
from luthier.models.targets import in_head
from luthier.recipe.consent import Allow, require
from luthier.recipe.identity import read_recipe
from luthier.recipe.origin import another_name, base_of
from luthier.runs.folder import RunFolder
from luthier.runs.remote import is_url, local
from luthier.tasks.base import TASKS


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
    labels: Callable[[str], tuple[str, ...]] | None = None  # Of a classifier, whose base is in that folder
    caveat: str = ""  # That the base has another name than the adapter's own


def named(given: str) -> tuple[str, Path]:
    """Name and folder of NAME=PATH or PATH, whose name is that of the folder. PATH may be the URL of a run."""
    whole = is_url(given) or Path(given).expanduser().is_dir()  # a folder whose name contains = is a folder
    name, equals, rest = ("", "", "") if whole else given.partition("=")
    path = local(rest if equals else given).expanduser()
    return (name if equals else path.resolve().name), path


def run_of(path: Path) -> Path | None:
    """The folder of the run that this is, or is an export of; None if there is none."""
    path = path.resolve()
    near = (path, path.parent.parent) if path.parent.name == "exports" else (path,)
    return next((folder for folder in near if (folder / "recipe.yaml").is_file()), None)


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
    name, path = named(given)
    if (packed := gguf_file(path)) is not None:
        made = unpacked(packed)
        name = name if given.startswith(f"{name}=") else packed.stem
        return ModelSource(name, packed, ModelConfig(path=str(packed)), "model", made, made)
    if (path / "recipe.yaml").is_file():
        return _run(name, path, allow_code)
    if (path / "adapter_config.json").is_file():
        return _adapter(name, path, base)
    if (path / "config.json").is_file():
        kind = str(read_object(path / "config.json").get("architectures") or "")
        labels = _names if "SequenceClassification" in kind else None
        return ModelSource(name, path, ModelConfig(path=str(path)), "model", path, path, labels=labels)
    if not path.is_dir():
        RunFolder.existing(path)  # its error suggests similar names
    message = f"{path} is not a run, an adapter or a model (no recipe.yaml, adapter_config.json or config.json)"
    raise InputError(message, fix="give the folder that `luthier train` or `luthier export` printed")


def _run(name: str, path: Path, allow_code: Allow) -> ModelSource:
    folder = RunFolder.existing(path)
    config, weights = read_recipe(folder), folder.weights()
    task = TASKS.parse(folder.read_json(folder.data)["task"])
    classes = tuple(getattr(task, "labels", ())) if task.model_class == "classification" else None
    labels = None if classes is None else lambda _: classes
    full = config.method.saves == "model"
    base = config.model.model_copy(update={"path": str(weights), "init": "pretrained"}) if full else config.model
    require(folder.recipe, allow_code, base)
    load = None if full else lambda model: config.method.load(model, weights)
    check = partial(folder.refuse_another_base, config.model)
    return ModelSource(name, path, base, config.method.name, weights, weights, load, check, labels)


def _adapter(name: str, path: Path, base: str | None) -> ModelSource:
    refuse_closed(path)
    settings = read_object(path / "adapter_config.json")
    base = base_of(path, base)
    task = str(settings.get("task_type") or "CAUSAL_LM")
    if task not in ("CAUSAL_LM", "SEQ_CLS"):
        what = f"{path} is an adapter of neither a language model nor a classifier (task_type {task})"
        raise InputError(what, fix="give an adapter with task_type CAUSAL_LM or SEQ_CLS")
    given, path = path, without_pickle(path)
    shapes = shapes_of(path)  # before the base is loaded; vLLM would also read a pickle in this folder
    if moves_base(settings):
        message = f"{path}: init_lora_weights={settings['init_lora_weights']} changes the base, which others share"
        raise InputError(message, fix=f"{MOVED}; or {shell_line('luthier', 'export', path, '--to', 'merged')}")
    kind = str(settings.get("peft_type", "adapter")).lower()
    config = ModelConfig(path=base)
    found = locate(config)
    own = path if (path / "tokenizer_config.json").is_file() else Path(found)
    caveat = another_name(given, base, found)
    # The last layer of its head has an output for each label; without a head the adapter is for the base's own.
    heads = [shape[0] for key, shape in shapes.items() if in_head(key) and len(shape) == 2 and "lora_" not in key]
    labels = partial(_names, count=min(heads, default=None)) if task == "SEQ_CLS" else None
    attach = partial(load_adapter, folder=path)
    return ModelSource(name, path, config, kind, path, own, attach, labels=labels, caveat=caveat)


def _names(source: str, count: int | None = None) -> tuple[str, ...]:
    """The labels that config.json of a classifier names; `LABEL_0`, ... where it names another number than `count`."""
    names = architecture(ModelConfig(path=source), source).config.id2label
    if count in (None, len(names)):
        return tuple(str(names[number]) for number in sorted(names))
    return tuple(f"LABEL_{number}" for number in range(count or 0))


def refuse_mixture(sources: list[ModelSource]) -> None:
    """Raise InputError if one server cannot have all: classifiers, adapters of different bases, models of one name."""
    if classifier := next((source for source in sources if source.labels), None):
        why = f"{classifier.path} is a classifier, which generates no text"
        raise InputError(why, fix=shell_line("luthier", "chat", classifier.path))
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
