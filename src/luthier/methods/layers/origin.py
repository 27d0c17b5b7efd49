"""Adapters that a run starts from, whoever made them: which method continues one, and its weights on a base."""

from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.errors import InputError
from luthier.core.files import read_object
from luthier.methods.layers.loading import MOVED, RESTORE, load_adapter, moves_base, shapes_of, without_pickle

LENGTH = {"num_virtual_tokens": "length"}
PLACES = {"target_modules": "targets", "layers_to_transform": "layers"}
EXPRESSED: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "LORA": (
        "lora",
        {
            **PLACES,
            "r": "rank",
            "lora_alpha": "alpha",
            "lora_dropout": "dropout",
            "bias": "bias",
            "use_rslora": "rslora",
            "use_dora": "dora",
        },
        {"rank": 8, "alpha": 8.0, "dropout": 0.0, "bias": "none", "rslora": False, "dora": False, "init": "default"},
    ),
    "ADALORA": (
        "adalora",
        {**PLACES, "init_r": "rank", "target_r": "target_rank", "lora_alpha": "alpha", "lora_dropout": "dropout"},
        {"rank": 12, "target_rank": 8, "alpha": 8.0, "dropout": 0.0},
    ),
    "IA3": ("ia3", {}, {}),
    "VERA": ("vera", {**PLACES, "r": "rank", "vera_dropout": "dropout"}, {"rank": 256, "dropout": 0.0}),
    "OFT": ("oft", {**PLACES, "oft_block_size": "block", "module_dropout": "dropout"}, {"dropout": 0.0}),
    "BITFIT": ("bitfit", {}, {}),
    "PROMPT_TUNING": ("prompt", LENGTH, {}),
    "P_TUNING": ("prompt", LENGTH, {}),  # its network is not saved: what is left are embeddings
    "PREFIX_TUNING": ("p_tuning_v2", LENGTH, {"shifted": True}),
    "PREFIX_KV": ("p_tuning_v2", {"length": "length", "prefix_dropout": "dropout", "shifted": "shifted"}, {}),
}
"""peft_type -> (method, key of adapter_config.json -> field, fields where the file has no such key)."""


def method_of(folder: Path) -> dict[str, Any]:
    """The block `method` of a recipe for the adapter in `folder`, as far as fields say it; empty for other kinds.

    What they do not say (rank_pattern, modules_to_save) stays in adapter_config.json, from which the layers are made.
    """
    settings = read_object(without_pickle(folder) / "adapter_config.json", RESTORE)
    name, keys, fields = EXPRESSED.get(str(settings.get("peft_type")), ("", {}, {}))
    found = {field: settings[key] for key, field in keys.items() if settings.get(key) is not None}
    for field in {"targets", "layers"} & found.keys():
        value = found[field]
        single = not isinstance(value, list) and value != "all-linear"  # a regular expression, or one number
        found[field] = [value] if single else sorted(value) if isinstance(value, list) else value
    if found.get("block") == 0:  # OFT by number of blocks
        del found["block"]
    return {"name": name, **fields, **found} if name else {}


def refuse_other(block: dict[str, Any], own: dict[str, Any], folder: Path) -> None:
    """InputError where a method's spec `own` contradicts `block`, which the adapter's file says."""
    same = {key: sorted(value) if isinstance(value, list) else value for key, value in own.items()}
    if odd := [key for key, value in block.items() if same.get(key) != value]:
        shown = ", ".join(f"method.{key} is {own.get(key)!r}, and {block[key]!r} there" for key in odd)
        message = f"the recipe contradicts the adapter {folder} that it starts from: {shown}"
        raise InputError(message, fix="leave these settings out, or train a new adapter without --from")


def refuse_other_task(settings: dict[str, Any], folder: Path, *, classify: bool) -> None:
    """InputError where an adapter with these settings is for another kind of model than the task needs."""
    kind = str(settings.get("task_type") or "CAUSAL_LM")
    if kind != ("SEQ_CLS" if classify else "CAUSAL_LM"):
        what = "a classifier" if classify else "a language model"
        message = f"{folder} is an adapter of the task {kind}, and the task of this data needs {what}"
        raise InputError(message, fix="give data of the adapter's own task, or another task=NAME")


def start_on(model: nn.Module, method: Any, steps: int, *, classify: bool) -> nn.Module:
    """`model` with the adapter that `method` starts from, to train on; without weights on the meta device.

    InputError where the method is another one than the adapter's, or the adapter cannot be continued.
    """
    from peft import PeftConfig

    folder = Path(method.from_adapter).expanduser()
    if not (folder / "adapter_config.json").is_file():
        message = f"method.from_adapter: {folder} holds no adapter (adapter_config.json) to start from"
        raise InputError(message, fix="restore the folder, or start another run with --from FOLDER")
    files = without_pickle(folder)
    shapes_of(files)
    settings, block = read_object(files / "adapter_config.json", RESTORE), method_of(files)
    kind, merged = (
        str(settings.get("peft_type")),
        "merge it first (luthier export FOLDER --to merged), and train on that",
    )
    if block and block["name"] == method.name:
        refuse_other(block, method.spec(), folder)
    elif kind != method.peft_config(model, steps).peft_type:
        message = f"method {method.name} cannot continue {folder}, which is an adapter of the kind {kind}"
        raise InputError(message, fix=f"method={block['name']}" if block else merged)
    if kind == "ADALORA":
        message = f"{folder}: AdaLoRA has moved its ranks for the steps of the run that made it, which are over"
        raise InputError(message, fix=merged)
    if moves_base(settings):
        message = (
            f"{folder}: init_lora_weights={settings['init_lora_weights']} changes the base's own weights ({MOVED})"
        )
        raise InputError(message, fix=merged)
    refuse_other_task(settings, folder, classify=classify)
    config = PeftConfig.from_pretrained(str(files))
    if kind in ("PROMPT_TUNING", "P_TUNING"):  # as plain embeddings, whatever made them
        task = config.task_type
        config = method.peft_config(model, steps)
        config.task_type = task
    return load_adapter(model, files, config)
