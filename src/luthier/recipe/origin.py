"""What a recipe leaves to the adapter or run that it starts from (`method.from_adapter`), and an adapter's base."""

from pathlib import Path
from typing import Any

from luthier.core.errors import InputError
from luthier.core.files import read_object
from luthier.methods.base import METHODS
from luthier.models.pypi import PACKAGED
from luthier.recipe.parse import read_yaml
from luthier.runs.folder import RunFolder
from luthier.runs.provenance import local_copy
from luthier.runs.remote import local


def complete(recipe: dict[str, Any]) -> None:
    """Fill in what a recipe, as it was read, does not say of method and base and the folder that it starts from does.

    A run that trained the whole model is a base. InputError where nothing continues such an adapter.
    """
    block = recipe.get("method")
    given = block.get("from_adapter") if isinstance(block, dict) else None
    if not block or not given:
        return
    folder, found, model = local(str(given)).expanduser(), dict[str, Any](), dict[str, Any]()
    if "name" in block and not folder.is_dir():
        return  # a run that has begun can be measured without
    if (folder / "recipe.yaml").is_file():
        run = read_yaml(folder / "recipe.yaml")
        found, model, folder = dict(run["method"]), dict(run["model"]), RunFolder.existing(folder).weights()
        block["from_adapter"] = str(folder)
        if folder.name == "model":
            block["from_adapter"], model = "", {"path": str(folder)}
    elif not (folder / "adapter_config.json").is_file():
        message = f"{folder} is no adapter and no run (no adapter_config.json, no recipe.yaml)"
        raise InputError(message, fix="give the folder of an adapter, or one that `luthier train` printed")
    if block["from_adapter"]:
        from luthier.methods.layers.loading import shapes_of, without_pickle
        from luthier.methods.layers.origin import method_of

        said = method_of(folder)
        found = {**(found if said.get("name", found.get("name")) == found.get("name") else {}), **said}
        if not found and "name" not in block:
            shapes_of(without_pickle(folder))  # is it an adapter at all?
            kind = read_object(folder / "adapter_config.json").get("peft_type")
            message = f"no method here continues an adapter of the kind {kind} ({folder})"
            raise InputError(
                message, fix="luthier chat and serve take it; or merge it with PEFT, and take that as base"
            )
    kept = recipe.get("model")
    kept = {"path": kept} if isinstance(kept, str) else kept if isinstance(kept, dict) else {}
    if "path" not in kept and "model_name_or_path" not in kept:
        recipe["model"] = {**(model or {"path": base_of(folder)}), **kept}
    name = str(block.setdefault("name", found.get("name")))
    plugin, preset = METHODS.presets.get(name, (name, {}))
    if plugin == found.get("name"):
        names = METHODS.get(plugin).aliases
        there = preset.keys() | {names.get(key, key) for key in block}
        block.update({key: value for key, value in found.items() if key not in there})
    if not block["from_adapter"]:
        del block["from_adapter"]


def named_base(folder: Path) -> str:
    """The base that an adapter's adapter_config.json names, or empty."""
    return str(read_object(folder / "adapter_config.json").get("base_model_name_or_path") or "")


def base_of(folder: Path, given: str | None = None) -> str:
    """The base of an adapter: `given`, or the one that it names, where that is on this machine. InputError else."""
    named = named_base(folder)
    if given or named in ("builtin", *PACKAGED):
        return given or named
    if not named:
        raise InputError(f"{folder}/adapter_config.json names no base (base_model_name_or_path)", fix="--base BASE")
    if local_copy(str(Path(named).expanduser()), None) is None:
        message = f"{folder} was trained on {named}, which is not on this machine"
        raise InputError(message, fix=f"name its base: --base FOLDER, or --base {named} to download it from the hub")
    return named


def another_name(folder: Path, base: str, source: str) -> str:
    """That a base, found at `source`, has another name than the adapter's own; empty where they agree or are unknown.

    Names are compared without their folders; config.json may know another one.
    """
    named = named_base(folder)
    config = Path(source) / "config.json"
    known = read_object(config).get("_name_or_path") if config.is_file() else None
    names = {Path(each).name.lower() for each in (base, source, str(known or ""))}
    if not named or Path(named).name.lower() in names:
        return ""
    return f"{folder} names {named} as its base, and this is {base}: answers are wrong if the weights are others"
