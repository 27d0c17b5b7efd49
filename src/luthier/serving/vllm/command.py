"""The command with which vLLM serves runs, adapters and models: what it cannot serve is refused before it starts.

vLLM pins versions of torch and transformers of its own, so it lives in another environment and is only ever started.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.builtin import BASE
from luthier.core.errors import InputError
from luthier.core.shell import command
from luthier.core.strict_json import to_json
from luthier.methods.layers.loading import check_fit, shapes_of
from luthier.models.load import locate, skeleton
from luthier.models.settings import ModelConfig
from luthier.recipe.consent import Allow
from luthier.recipe.identity import read_recipe
from luthier.runs.folder import RunFolder
from luthier.serving.engine.sources import Source, refuse_equal_names, refuse_two_bases, source_of
from luthier.serving.settings import Sizes

VERSION, PLUGIN = "0.33.0", "0.0.3"
"""Of vLLM, and of vllm-bnb-plugin, which packs a base in 4 bit there."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank may be."""
MOST_AT_ONCE = 8
"""Adapters in one step of vLLM's: each holds memory on the GPU; the others wait in the machine's."""
GUARD = Path(__file__).parent / "guard"
MIDDLEWARE = "luthier_vllm_guard.OnlyV1"

UNKNOWN_TO_VLLM = {
    "use_dora": "DoRA",
    "modules_to_save": "modules trained whole (modules_to_save)",
    "rank_pattern": "ranks of their own for some layers (rank_pattern)",
    "alpha_pattern": "scales of their own for some layers (alpha_pattern)",
    "lora_bias": "a bias in the update (lora_bias)",
    "layer_replication": "repeated layers (layer_replication)",
    "alora_invocation_tokens": "aLoRA",
    "use_bdlora": "BD-LoRA",
    "use_qalora": "QALoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "target_parameters": "updates of bare parameters (target_parameters)",
    "trainable_token_indices": "trained token embeddings (trainable_token_indices)",
}
"""Setting of a LoRA adapter -> what vLLM refuses or, worse, leaves out in silence."""
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Beginnings of a LoRA that leave the base's weights as they are."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one vLLM serves. Nothing of it is loaded."""

    base: ModelConfig
    name: str
    """What a request calls the model that is loaded: "base", or the name of a whole one."""
    adapters: Mapping[str, Path]
    """Name -> folder in PEFT's format; empty where a whole model is served."""
    rank: int = 0
    """The largest of the adapters' ranks."""
    tokenizer: Path | None = None
    """Folder with the runs' tokenizer; None where it is the base's own."""
    template: bool = False
    """Is a chat template in that folder?"""
    ends: bool = False
    """Does that folder say which tokens end an answer, and nothing of sampling?"""
    limit: int | None = None
    """Tokens that the model takes, where its config.json is at hand."""

    @property
    def folder(self) -> Path | None:
        """Where the model's files lie; None where vLLM asks a hub for them."""
        return model_folder(self.base)


def model_folder(base: ModelConfig) -> Path | None:
    """Folder of a model on this machine, absolute; None of a hub id."""
    if base.path == "builtin":
        return BASE
    folder = Path(base.path).expanduser()
    return folder.resolve() if folder.is_dir() else None


def plan_of(given: Sequence[str], allow_code: Allow = False) -> Plan:
    """What lies in these folders (NAME=PATH or PATH) as one vLLM serves it; InputError where it cannot."""
    sources = [source_of(each, allow_code) for each in given]
    refuse_two_bases(sources)
    refuse_equal_names(sources)
    whole = [source for source in sources if source.load is None]
    if whole:
        return _whole(whole[0], sources)
    settings = {source.name: _settings(source) for source in sources}
    for source in sources:
        _refuse_adapter(source, settings[source.name])
    first = sources[0]
    _refuse_base(first)
    for source in sources:
        if model_folder(source.base) is not None:
            source.check(locate(source.base))
            check_fit(skeleton(source.base, locate(source.base), labels=None), adapter_folder(source))
        else:
            shapes_of(adapter_folder(source))  # vLLM would open a pickle
        _refuse_another_template(first, source)
    own = first.tokenizer if _holds_tokenizer(first.tokenizer) else None
    return Plan(
        first.base,
        "base",
        {source.name: adapter_folder(source).resolve() for source in sources},
        rank=max(int(each["r"]) for each in settings.values()),
        tokenizer=own.resolve() if own else None,
        template=own is not None and _template(own) is not None,
        ends=own is not None and _only_ends(own),
        limit=_limit(first.base),
    )


def _whole(source: Source, sources: Sequence[Source]) -> Plan:
    if len(sources) > 1:
        other = next(each for each in sources if each is not source)
        raise InputError(
            f"one vLLM serves one model with adapters for it: {source.path} is a whole model, and {other.path} is "
            + ("an adapter" if other.load is not None else "another"),
            fix="start one for each, with another --port",
        )
    _refuse_base(source)
    locate(source.base)  # refuses pickles and code, which vLLM would open
    return Plan(source.base, source.name, {}, limit=_limit(source.base))


def adapter_folder(source: Source) -> Path:
    """Where adapter_config.json lies."""
    return source.tokenizer if (source.tokenizer / "adapter_config.json").is_file() else source.path


def _settings(source: Source) -> dict[str, Any]:
    file = adapter_folder(source) / "adapter_config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is no JSON object: {error}") from None


def _refuse_adapter(source: Source, settings: Mapping[str, Any]) -> None:
    """InputError where vLLM cannot load it, or would leave a part of it out."""
    kind = str(settings.get("peft_type", ""))
    if settings.get("task_type") in ("SEQ_CLS", "TOKEN_CLS"):
        raise InputError(
            f"{source.path} is a classifier, which does not talk", fix=command("luthier", "evaluate", source.path)
        )
    if kind != "LORA":
        raise InputError(f"{source.path}: vLLM loads plain LoRA alone, and this is {source.kind}", fix=_mend(source))
    held = [what for key, what in UNKNOWN_TO_VLLM.items() if settings.get(key)]
    if settings.get("bias", "none") != "none":
        held.append(f"trained biases (bias={settings['bias']})")
    if settings.get("init_lora_weights") not in PLAIN_STARTS:
        held.append(f"a start out of the base's weights (init_lora_weights={settings['init_lora_weights']})")
    if held:
        raise InputError(
            f"{source.path}: vLLM loads plain LoRA alone, and this has {', '.join(held)}", fix=_mend(source)
        )
    if not isinstance(settings.get("r"), int) or not 1 <= settings["r"] <= RANKS[-1]:
        raise InputError(
            f"{source.path}: its rank is {settings.get('r')}, and vLLM takes at most {RANKS[-1]}", fix=_mend(source)
        )


def _refuse_base(source: Source) -> None:
    """InputError where the base is none that vLLM can load as it was in training."""
    base, folder = source.base, model_folder(source.base)
    if base.init == "random":
        raise InputError(
            f"{source.path} was trained on weights that were drawn anew (model.init=random), which vLLM cannot do",
            fix=_mend(source),
        )
    if base.quantize not in ("none", "nf4"):
        raise InputError(
            f"{source.path} was trained on a base in {base.quantize}; vLLM packs one in nf4 alone", fix=_mend(source)
        )
    settings = _read(folder / "config.json") if folder else {}
    kind = (settings.get("architectures") or [""])[0]
    if settings.get("is_encoder_decoder") or kind.endswith("ForMaskedLM"):
        raise InputError(
            f"{source.path}: vLLM serves decoders, and {base.path} is {kind}",
            fix=command("luthier", "serve", source.path),
        )


def _mend(source: Source) -> str:
    """A merged export where its weights fold into the base; else our own engine."""
    if (source.path / "recipe.yaml").is_file() and read_recipe(RunFolder(source.path)).method.mergeable:
        return f"{command('luthier', 'export', source.path, '--to', 'merged')}, and serve what it writes"
    return f"{command('luthier', 'serve', source.path)}, whose own engine serves it"


def _refuse_another_template(first: Source, other: Source) -> None:
    """InputError where two adapters were trained with different chat templates: vLLM has one for all."""
    mine, its = (_template(each.tokenizer) for each in (first, other))
    if mine != its:
        raise InputError(
            f"{first.path} and {other.path} have different chat templates, and a vLLM has one for all its models",
            fix="start one for each, with another --port",
        )


def _holds_tokenizer(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and (folder / "tokenizer_config.json").is_file()


def _template(folder: Path) -> str | None:
    """The chat template that lies there, also of the embedded base."""
    folder = BASE if str(folder) == "builtin" else folder
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = _read(folder / "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None


def _only_ends(folder: Path) -> bool:
    """As Luthier writes generation_config.json; another's may change how a request is sampled."""
    known = {"eos_token_id", "pad_token_id", "bos_token_id", "transformers_version", "_from_model_config"}
    found = _read(folder / "generation_config.json")
    return "eos_token_id" in found and set(found) <= known


def _limit(base: ModelConfig) -> int | None:
    folder = model_folder(base)
    found = _read(folder / "config.json") if folder else {}
    limit = found.get("max_position_embeddings") or found.get("n_positions")
    return limit if isinstance(limit, int) else None


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def arguments(plan: Plan, sizes: Sizes, dtype: str, *, tokenizer: str | None, adapters: Mapping[str, str]) -> list[str]:
    """Options of `vllm serve MODEL`, without address and key. Paths are as vLLM will see them: a name's, and one for
    the tokenizer.
    """
    base = plan.base
    made = ["--served-model-name", plan.name]
    if plan.adapters:
        at_once = min(len(adapters), MOST_AT_ONCE)
        made += ["--enable-lora", "--lora-modules", *(_module(name, path) for name, path in adapters.items())]
        made += ["--max-loras", str(at_once), "--max-cpu-loras", str(len(adapters))]
        made += ["--max-lora-rank", str(next(rank for rank in RANKS if rank >= plan.rank))]
    if tokenizer is not None:
        made += ["--tokenizer", tokenizer]
        if plan.template and plan.tokenizer and (plan.tokenizer / "chat_template.jinja").is_file():
            made += ["--chat-template", f"{tokenizer}/chat_template.jinja"]
    # "vllm" leaves the base's sampling defaults out, and keeps its end tokens; a run's own may be others.
    made += ["--generation-config", tokenizer if tokenizer is not None and plan.ends else "vllm"]
    made += ["--override-generation-config", to_json({"max_new_tokens": sizes.tokens})]
    made += ["--dtype", base.dtype if dtype == "auto" else dtype, "--max-num-seqs", str(sizes.rows)]
    if sizes.prompt is not None:
        wanted = sizes.prompt + sizes.tokens
        made += ["--max-model-len", str(min(wanted, plan.limit) if plan.limit else wanted)]
    if base.quantize == "nf4":
        made += ["--quantization", "bitsandbytes", "--load-format", "bitsandbytes"]
    if base.revision and plan.folder is None:
        made += ["--revision", base.revision]
    if base.trust_remote_code:
        made.append("--trust-remote-code")
    return [*made, "--shutdown-timeout", str(int(sizes.patience)), "--middleware", MIDDLEWARE]


def _module(name: str, path: str) -> str:
    """NAME=PATH as vLLM reads it, or JSON where one of them has a sign that it would read otherwise."""
    if "=" in path or "," in name + path:
        return to_json({"name": name, "path": path}, ensure_ascii=False)
    return f"{name}={path}"


def environment(plan: Plan, key: str | None) -> dict[str, str]:
    """What vLLM reads from its environment. The key stands there alone: everybody sees a command line."""
    made = {"VLLM_NO_USAGE_STATS": "1"}
    if plan.base.hub == "modelscope" and plan.folder is None:
        made["VLLM_USE_MODELSCOPE"] = "True"
    return made | ({"VLLM_API_KEY": key} if key else {})
