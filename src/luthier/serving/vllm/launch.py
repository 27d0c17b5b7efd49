"""`luthier serve --engine vllm`: start vLLM, or write a folder without secrets from which another machine starts it.

vLLM pins its own version of torch, so it is a program in another environment. What it cannot serve is refused before.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.builtin import BASE
from luthier.core.endpoint import CONNECTION_ERRORS, is_loopback, open_url
from luthier.core.errors import InputError, MissingExtra, Unproved
from luthier.core.events import Progress
from luthier.core.files import read_object, staged
from luthier.core.shell import public, shell_line
from luthier.core.strict_json import to_json
from luthier.methods.layers.loading import load_adapter, shapes_of
from luthier.models.load import locate, skeleton
from luthier.models.pypi import PACKAGED
from luthier.models.settings import ModelConfig
from luthier.recipe.consent import Allow
from luthier.recipe.identity import read_recipe
from luthier.recipe.origin import named_base
from luthier.runs.folder import RunFolder
from luthier.serving.engine.sources import ModelSource, named, refuse_mixture, run_of, source_of
from luthier.serving.http.settings import ServerAddress, ServerLimits

VERSION, PLUGIN = "0.33.0", "0.0.3"
"""Versions of vLLM and of vllm-bnb-plugin, which quantizes a base to 4 bit there."""
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # Values of vLLM's --max-lora-rank
MAX_LORAS = 8  # Adapters in one step of vLLM: each takes GPU memory; others wait in CPU memory
GUARD = Path(__file__).parent / "guard"
MIDDLEWARE = "luthier_vllm_guard.OnlyV1"
TOKENIZER_FILES = "tokenizer* *.jinja *.model vocab.* merges.txt special_tokens* added_tokens* generation_config.json"

UNSUPPORTED = """
use_dora modules_to_save rank_pattern alpha_pattern lora_bias layer_replication alora_invocation_tokens use_bdlora
use_qalora arrow_config kasa_config monteclora_config velora_config target_parameters trainable_token_indices
"""
"""Keys of a LoRA adapter's settings that vLLM refuses or, worse, ignores."""
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Initializations of LoRA that do not change the base's weights."""


@dataclass(frozen=True, slots=True)
class VllmPlan:
    """What one vLLM process serves. Nothing is loaded yet."""

    base: ModelConfig
    folder: Path | None  # Absolute folder of the base; None if vLLM downloads it
    name: str  # Name of the loaded model in requests: "base", or that of a full model
    adapters: Mapping[str, Path]  # Name -> folder in PEFT's format; empty for a full model
    limit: int | None  # Tokens that the model takes, if its config.json is on this machine
    rank: int = 0  # The largest rank of the adapters
    tokenizer: Path | None = None  # Folder of the runs' tokenizer; None if it is the base's own
    runs: Mapping[str, Path] = field(default_factory=dict)  # Name -> folder of what can be checked: runs, their exports


def serve_vllm(
    given: Sequence[str],
    address: ServerAddress,
    limits: ServerLimits,
    *,
    dtype: str,
    vllm: str | None,
    write: Path | None,
    progress: Progress,
    allow_code: Allow = False,
    base: str | None = None,
    check: bool = True,
) -> int:
    """Run vLLM and return its exit code, or write all that another machine needs to start it.

    Errors are reported first. Unproved if `check` finds that vLLM does not answer as the runs: it is stopped then.
    Without a check, or runs to check, this process is replaced by vLLM.
    """
    for name in ("max_waiting", "max_body"):
        if getattr(limits, name) != getattr(ServerLimits(), name):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} has no effect on vLLM", fix="leave it out, or --engine luthier")
    plan = plan_of(given, allow_code, base)
    if write is not None:
        write_files(plan, limits, dtype, write, progress)
        return 0
    program = find_vllm(vllm)
    with address.bind() as free:  # a free port if it is 0
        port: int = free.getsockname()[1]
    words = [program, "serve", str(plan.folder or plan.base.path), *arguments(plan, limits, dtype)]
    words += ["--host", address.host, "--port", str(port)]
    if plan.base.quantize == "nf4":
        progress.note(f"the base is quantized: vLLM needs a plugin (pip install vllm-bnb-plugin=={PLUGIN})")
    progress.stage(shell_line(*words))
    inherited = {name: value for name, value in os.environ.items() if name != "LUTHIER_API_KEY"}
    path = os.pathsep.join(filter(None, (str(GUARD), inherited.get("PYTHONPATH"))))
    environment = inherited | vllm_environment(plan, address.key) | {"PYTHONPATH": path}
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    checking = [*check_words(plan, url), *(["--dtype", dtype] if dtype != "auto" else [])]
    if plan.runs:
        progress.note(f"it is checked {'when it is up' if check else 'by'}: {shell_line('luthier', *checking)}")
    else:
        progress.note("it is not checked: nothing here is a run with held-out prompts")
    sys.stdout.flush()
    if check and plan.runs and is_loopback(host):  # a key is not sent to another address without encryption
        return _supervise(words, environment, url, [sys.executable, "-m", "luthier", *checking], address.key)
    os.execve(program, words, environment)


def check_words(plan: VllmPlan, url: str) -> list[str]:
    """The arguments of `luthier` that check a running vLLM."""
    return ["serve", *(f"{name}={path}" for name, path in plan.runs.items()), "--check", url]


def _supervise(words: Sequence[str], environment: dict[str, str], url: str, check: list[str], key: str | None) -> int:
    """Run vLLM, check it when it is up, and return its exit code. Signals are passed on to it.

    The check is a process of its own, without a GPU: vLLM has taken the memory of all that there are.
    """
    server = subprocess.Popen(words, env=environment, process_group=0)  # ctrl-C comes once, by us
    started, asked = [server], []

    def pass_on(number: int, _: Any) -> None:
        asked.append(number)
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        while server.poll() is None and not _is_up(url):
            time.sleep(0.5)
        if server.poll() is None and not asked:
            hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "LUTHIER_API_KEY": key or ""}
            checker = subprocess.Popen(check, env=hidden, process_group=0)
            started.append(checker)
            code = checker.wait()
            if code == Unproved.exit_code and not asked and server.poll() is None:
                server.terminate()
                server.wait()
                message = "vLLM was stopped: it does not answer as the runs (see above)"
                raise Unproved(message, fix="see docs/vllm.md; --no-check serves it all the same")
            if code and not asked:
                print("! vLLM was NOT checked (see above); it goes on", file=sys.stderr)
        return server.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_up(url: str) -> bool:
    with suppress(*CONNECTION_ERRORS):
        open_url(f"{url}/health", None, "", 5.0).close()
        return True
    return False


def plan_of(given: Sequence[str], allow_code: Allow = False, base: str | None = None) -> VllmPlan:
    """Plan how one vLLM serves these folders (NAME=PATH or PATH); InputError if it cannot."""
    # vLLM downloads the base itself, so it need not be on this machine.
    folders = [path for _, path in map(named, given) if (path / "adapter_config.json").is_file()]
    bases = {path: base or named_base(path) for path in folders}
    sources = [source_of(each, allow_code, bases.get(named(each)[1], base)) for each in given]
    refuse_mixture(sources)
    runs = {source.name: source.path.resolve() for source in sources if run_of(source.path)}
    if full := next((source for source in sources if source.load is None), None):
        if len(sources) > 1:
            message = f"one vLLM serves one model with its adapters, and {full.path} is a full model beside others"
            raise InputError(message, fix="start one for each, with another --port")
        folder, limit = _checked_base(full)
        locate(full.base)  # refuses pickles and code, which vLLM would open
        return VllmPlan(full.base, folder, full.name, {}, limit, runs=runs)
    first, rank = sources[0], max(_checked_rank(source) for source in sources)
    folder, limit = _checked_base(first)
    for source in sources:
        if folder is not None:
            place = locate(source.base)
            source.check(place)
            load_adapter(skeleton(source.base, place, labels=None), source.weights)
        else:
            shapes_of(source.weights)  # refuses pickles, which vLLM would open
        if _template(source.tokenizer) != _template(first.tokenizer):
            message = f"{first.path} and {source.path} have different chat templates, and one vLLM has one for all"
            raise InputError(message, fix="start one for each, with another --port")
    names = ("adapter_config.json", "tokenizer_config.json")
    tokenizer = first.tokenizer.resolve() if all((first.tokenizer / name).is_file() for name in names) else None
    adapters = {source.name: source.weights.resolve() for source in sources}
    return VllmPlan(first.base, folder, "base", adapters, limit, rank, tokenizer, runs)


def _checked_rank(source: ModelSource) -> int:
    """Return the adapter's rank; InputError if vLLM cannot load it, or would ignore a part of it."""
    settings = read_object(source.weights / "adapter_config.json")
    if str(settings.get("peft_type", "")) != "LORA":
        raise _refusal(source, f"vLLM only loads plain LoRA, and this is {source.kind}")
    found = [key for key in UNSUPPORTED.split() if settings.get(key)]
    found += [f"bias={settings['bias']}"] if settings.get("bias", "none") != "none" else []
    if settings.get("init_lora_weights") not in PLAIN_INITS:
        found.append(f"init_lora_weights={settings['init_lora_weights']}")
    if found:
        raise _refusal(source, f"vLLM only loads plain LoRA, and this has {', '.join(found)}")
    rank = settings.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= RANKS[-1]:
        raise _refusal(source, f"its rank is {rank}, and vLLM takes at most {RANKS[-1]}")
    return rank


def _checked_base(source: ModelSource) -> tuple[Path | None, int | None]:
    """Return folder and limit in tokens of the base, if known; InputError if vLLM cannot load it as in training."""
    base = source.base
    if base.init == "random":
        raise _refusal(source, "it was trained on random weights (model.init=random), which vLLM cannot reproduce")
    if base.quantize not in ("none", "nf4"):
        raise _refusal(source, f"it was trained on a base in {base.quantize}; vLLM only quantizes to nf4")
    folder = Path(locate(base) if base.path in ("builtin", *PACKAGED) else base.path).expanduser()
    settings = _read(folder / "config.json")
    kind = (settings.get("architectures") or [""])[0]
    if settings.get("is_encoder_decoder") or kind.endswith("ForMaskedLM"):
        fix = shell_line("luthier", "serve", source.path)
        raise InputError(f"{source.path}: vLLM serves decoders, and {base.path} is {kind}", fix=fix)
    limit = settings.get("max_position_embeddings") or settings.get("n_positions")
    return folder.resolve() if folder.is_dir() else None, limit if isinstance(limit, int) else None


def _refusal(source: ModelSource, why: str) -> InputError:
    """Suggest a merged export if the method can be merged, and Luthier's own engine otherwise."""
    if (source.path / "recipe.yaml").is_file() and read_recipe(RunFolder(source.path)).method.mergeable:
        fix = f"{shell_line('luthier', 'export', source.path, '--to', 'merged')}, and serve the result"
    else:
        fix = f"{shell_line('luthier', 'serve', source.path)}, whose own engine serves it"
    return InputError(f"{source.path}: {why}", fix=fix)


def _template(folder: Path) -> Any:
    """Return the chat template in a folder, or of the built-in base."""
    folder = BASE if str(folder) == "builtin" else folder
    file = folder / "chat_template.jinja"
    own = _read(folder / "tokenizer_config.json").get("chat_template")
    return file.read_text(encoding="utf-8") if file.is_file() else own


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def arguments(
    plan: VllmPlan, limits: ServerLimits, dtype: str, tokenizer: str = "", adapters: Mapping[str, str] | None = None
) -> list[str]:
    """Return the options of `vllm serve MODEL` without address and key; other paths replace those of the plan."""
    tokenizer = tokenizer or str(plan.tokenizer)
    adapters = adapters or {name: str(path) for name, path in plan.adapters.items()}
    base = plan.base
    words = ["--served-model-name", plan.name]
    if plan.adapters:
        words += ["--enable-lora", "--lora-modules"]
        for name, path in adapters.items():
            # JSON if it contains characters that vLLM would split at.
            odd = "=" in path or "," in name + path
            words.append(to_json({"name": name, "path": path}, ensure_ascii=False) if odd else f"{name}={path}")
        words += ["--max-loras", str(min(len(adapters), MAX_LORAS)), "--max-cpu-loras", str(len(adapters))]
        words += ["--max-lora-rank", str(next(rank for rank in RANKS if rank >= plan.rank))]
    # "vllm" ignores the base's sampling defaults and keeps its end tokens. A run's own end tokens may differ: Luthier
    # writes only those into generation_config.json, while a file of somebody else may change sampling.
    generation = "vllm"
    if plan.tokenizer is not None:
        words += ["--tokenizer", tokenizer]
        if (plan.tokenizer / "chat_template.jinja").is_file():
            words += ["--chat-template", f"{tokenizer}/chat_template.jinja"]
        keys = {"eos_token_id", "pad_token_id", "bos_token_id", "transformers_version", "_from_model_config"}
        own = _read(plan.tokenizer / "generation_config.json")
        generation = tokenizer if "eos_token_id" in own and set(own) <= keys else generation
    words += ["--generation-config", generation]
    words += ["--override-generation-config", to_json({"max_new_tokens": limits.max_tokens})]
    words += ["--dtype", base.dtype if dtype == "auto" else dtype, "--max-num-seqs", str(limits.max_batch)]
    if limits.max_prompt is not None:
        wanted = limits.max_prompt + limits.max_tokens
        words += ["--max-model-len", str(min(wanted, plan.limit) if plan.limit else wanted)]
    if base.quantize == "nf4":
        words += ["--quantization", "bitsandbytes", "--load-format", "bitsandbytes"]
    if base.revision and plan.folder is None:
        words += ["--revision", base.revision]
    if base.trust_remote_code:
        words.append("--trust-remote-code")
    return [*words, "--shutdown-timeout", str(int(limits.grace)), "--middleware", MIDDLEWARE]


def vllm_environment(plan: VllmPlan, key: str | None) -> dict[str, str]:
    """Return vLLM's environment variables, including the key: command lines are visible to other users."""
    found = {"VLLM_NO_USAGE_STATS": "1"}
    if plan.base.hub == "modelscope" and plan.folder is None:
        found["VLLM_USE_MODELSCOPE"] = "True"
    return found | ({"VLLM_API_KEY": key} if key else {})


def find_vllm(vllm: str | None) -> str:
    """Return the path of the vllm program; MissingExtra, with the commands that install it, if there is none."""
    found = shutil.which(Path(vllm).expanduser() if vllm else "vllm")
    if found:
        return str(Path(found).absolute())
    if vllm:
        raise InputError(f"--vllm {vllm} is not a program", fix="give the path of vllm in its environment's bin folder")
    message = "vLLM is not installed; it pins its own version of torch and needs a separate environment"
    install = f"python -m venv vllm && vllm/bin/pip install vllm=={VERSION}, then --vllm vllm/bin/vllm"
    raise MissingExtra(message, fix=f"{install}; or --write DIR, which writes all that another machine needs")


def write_files(plan: VllmPlan, limits: ServerLimits, dtype: str, target: Path, progress: Progress) -> None:
    """Write all files into the new folder `target`, or nothing."""
    target = target.expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--write {target} already exists and is not empty", fix="another folder, or move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name that Kubernetes and container registries accept.
    name = re.sub(r"[^a-z0-9]+", "-", target.name.lower()).strip("-")[:40].strip("-") or "models"
    with staged(target) as folder:
        adapters: dict[str, str] = {}
        for adapter, source in plan.adapters.items():
            plain = re.sub(r"[^A-Za-z0-9._-]+", "-", adapter).strip("-.") or "adapter"
            while f"adapters/{plain}" in adapters.values():
                plain += "-2"
            adapters[adapter] = f"adapters/{plain}"
            copy = folder / adapters[adapter]
            copy.mkdir(parents=True)
            shutil.copyfile(source / "adapter_model.safetensors", copy / "adapter_model.safetensors")
            settings = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
            settings["base_model_name_or_path"] = "/model" if plan.folder else plan.base.path
            (copy / "adapter_config.json").write_text(to_json(settings, indent=2, sort_keys=True), encoding="utf-8")
        if plan.tokenizer is not None:
            (folder / "tokenizer").mkdir()
            for file in {file for pattern in TOKENIZER_FILES.split() for file in plan.tokenizer.glob(pattern)}:
                if file.is_file():
                    shutil.copyfile(file, folder / "tokenizer" / file.name)
        shutil.copytree(GUARD, folder / "guard", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / ".dockerignore").write_text("*\n!adapters\n!tokenizer\n!guard\n!serve.sh\n", encoding="utf-8")
        render(folder, plan, limits, name, arguments(plan, limits, dtype, "tokenizer", adapters))
        (folder / "serve.sh").chmod(0o755)
    progress.stage(f"written: {target}")
    progress.note(f"{target}/README.md lists the commands; {len(plan.adapters)} adapters were copied")


def render(folder: Path, plan: VllmPlan, limits: ServerLimits, name: str, options: Sequence[str]) -> None:
    """Write the files of the templates beside this module; `options` are those of `vllm serve MODEL`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    files = FileSystemLoader(Path(__file__).parent)
    layout: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    templates = Environment(loader=files, undefined=StrictUndefined, **layout)
    templates.filters["shell"] = lambda text: shlex.quote(str(text))
    templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    size = sum(file.stat().st_size for file in plan.folder.glob("*") if file.is_file()) if plan.folder else 0
    messages = [{"role": "user", "content": "Hello"}]
    values: dict[str, Any] = {"VERSION": VERSION, "PLUGIN": PLUGIN, "plan": plan, "name": name}
    values |= {
        "models": [plan.name, *plan.adapters],
        "check": public(shell_line("luthier", *check_words(plan, "http://127.0.0.1:8000"))) if plan.runs else "",
        "model": plan.folder or plan.base.path,
        "place": f"`{public(str(plan.folder or plan.base.path))}`",
        "environment": vllm_environment(plan, None),
        # One line for each option with its values.
        "options": "".join((" \\\n  " if word.startswith("--") else " ") + shlex.quote(word) for word in options),
        # Running requests get their grace period, and vLLM some time to exit.
        "stop_seconds": int(limits.grace) + 30,
        "storage": f"{max(1, -(-size * 5 // (4 * 2**30)))}Gi" if plan.folder else "50Gi",
        "example": json.dumps({"model": [*plan.adapters, plan.name][0], "messages": messages}, ensure_ascii=False),
    }
    for template in templates.list_templates(extensions=["jinja"]):
        (folder / template.removesuffix(".jinja")).write_text(templates.get_template(template).render(values), "utf-8")
