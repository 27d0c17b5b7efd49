"""vLLM: its command and files, what is refused, and the same checks for its endpoint and for Luthier's own."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from safetensors.torch import load_file, save_file

from luthier.builtin import BASE
from luthier.core.errors import InputError
from luthier.core.events import Progress
from luthier.serving.http.settings import ServerAddress, ServerLimits
from luthier.serving.vllm import launch
from luthier.serving.vllm.launch import GUARD, arguments, find_vllm, plan_of
from luthier.serving.vllm.launch import serve_vllm as become
from tests.conftest import luthier
from tests.serving.checks import CHECKS
from tests.serving.small import served, tuned_adapter

KEY = "hidden-word"
FAKE = """#!{python}
# Stands for vLLM: keeps what it was given and, waits until it is told to end.
import json, os, signal, sys
from pathlib import Path

place = Path({place!r})
place.with_suffix(".part").write_text(
    json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "pid": os.getpid(), "cwd": os.getcwd()}})
)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
place.with_suffix(".part").rename(place)
if {once}:
    sys.exit(0)
signal.pause()
"""
OPTIONS: dict[str, str | int] = {
    **dict.fromkeys(("--enable-lora", "--trust-remote-code"), 0),
    "--lora-modules": "+",
    **dict.fromkeys(("--max-loras", "--max-cpu-loras", "--max-lora-rank", "--max-num-seqs", "--max-model-len"), 1),
    **dict.fromkeys(("--served-model-name", "--tokenizer", "--chat-template", "--dtype", "--revision"), 1),
    **dict.fromkeys(("--generation-config", "--override-generation-config", "--quantization", "--load-format"), 1),
    **dict.fromkeys(("--middleware", "--shutdown-timeout", "--host", "--port", "--gpu-memory-utilization"), 1),
}
"""Options of `vllm serve` 0.33, and how many values each takes."""


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., Path]:
    def make(*, once: bool = False) -> Path:
        program = tmp_path / "an environment" / "vllm"
        program.parent.mkdir(exist_ok=True)
        program.write_text(FAKE.format(python=sys.executable, place=str(tmp_path / "seen.json"), once=once))
        program.chmod(0o755)
        return program

    return make


def parsed(argv: Sequence[str]) -> dict[str, Any]:
    """What vLLM understands by its arguments, without what is not given; an unknown option is an error."""
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument("model", nargs="?")
    for name, values in OPTIONS.items():
        parser.add_argument(
            name, **({"nargs": values} if values == "+" else {} if values else {"action": "store_true"})
        )
    return {name: value for name, value in vars(parser.parse_args(argv)).items() if value not in (None, False)}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned_adapter(tmp_path_factory.mktemp("adapters") / "tuned")


def changed(source: Path, target: Path, **settings: Any) -> Path:
    """A copy of an adapter with other settings."""
    shutil.copytree(source, target)
    file = target / "adapter_config.json"
    own = json.loads(file.read_text())
    if "peft_type" in settings:  # another type does not have LoRA's settings
        own = {key: own[key] for key in ("base_model_name_or_path", "task_type")}
    file.write_text(json.dumps({**own, **settings}))
    return target


def command(given: Sequence[str], limits: ServerLimits | None = None, dtype: str = "auto") -> dict[str, Any]:
    return parsed(arguments(plan_of(given), limits or ServerLimits(), dtype))


def write(given: Sequence[str], folder: Path | None, limits: ServerLimits | None = None, **options: Any) -> None:
    options = {"dtype": "auto", "vllm": None, "progress": Progress(), "write": folder, **options}
    become(given, options.pop("address", ServerAddress()), limits or ServerLimits(), **options)


def test_the_command_names_adapters_rank_template_and_end_tokens(tuned: Path, tmp_path: Path) -> None:
    wide = changed(tuned, tmp_path / "wide", r=130)
    tensors = load_file(wide / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        side = 0 if "lora_A" in name else 1
        tensors[name] = tensor.repeat_interleave(130, side)[:130] if side == 0 else tensor.repeat(1, 130)[:, :130]
    save_file({k: v.contiguous() for k, v in tensors.items()}, wide / "adapter_model.safetensors")
    seen = command([f"one={tuned}", str(wide)], ServerLimits(max_batch=9, max_prompt=100, max_tokens=50, grace=7))
    assert json.loads(seen.pop("override_generation_config")) == {"max_new_tokens": 50}
    assert seen == {
        "served_model_name": "base",
        "enable_lora": True,
        "lora_modules": [f"one={tuned}", f"wide={wide}"],
        "max_loras": "2",
        "max_cpu_loras": "2",
        "max_lora_rank": "256",
        "tokenizer": str(tuned),
        "generation_config": str(tuned),
        "chat_template": str(tuned / "chat_template.jinja"),
        "max_num_seqs": "9",
        "max_model_len": "150",
        "dtype": "auto",
        "shutdown_timeout": "7",
        "middleware": "luthier_vllm_guard.OnlyV1",
    }
    long = command([str(tuned)], ServerLimits(max_prompt=500, max_tokens=500), dtype="float16")
    assert long["max_model_len"] == "512", "the model's own"
    assert long["dtype"] == "float16"


def test_settings_that_would_change_how_answers_are_drawn_are_left_out(tuned: Path, tmp_path: Path) -> None:
    other = changed(tuned, tmp_path / "other")
    (other / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.6}')
    assert command([str(other)])["generation_config"] == "vllm"


def test_names_that_vllm_would_read_otherwise_are_given_as_json(tuned: Path, tmp_path: Path) -> None:
    folder = changed(tuned, tmp_path / "a=b, c")
    assert json.loads(command([f"it={folder}"])["lora_modules"][0]) == {"name": "it", "path": str(folder)}


def test_a_whole_model_is_served_alone(model_folder: Callable[..., Path], tuned: Path) -> None:
    folder = model_folder("llama")
    seen = command([f"mine={folder}"])
    assert seen["served_model_name"] == "mine" and seen["generation_config"] == "vllm"
    assert not {"enable_lora", "tokenizer"} & set(seen)
    with pytest.raises(InputError, match="one vLLM serves one model"):
        plan_of([f"mine={folder}", str(tuned)])
    with pytest.raises(InputError, match="one vLLM serves one model"):
        plan_of([f"mine={folder}", f"other={model_folder('qwen2')}"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "this is ia3"),
        ({"peft_type": "ADALORA"}, "this is adalora"),
        ({"peft_type": "PREFIX_TUNING"}, "this is prefix_tuning"),
        ({"peft_type": "BOTTLENECK"}, "this is bottleneck"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"bias": "all"}, "bias=all"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"r": 513}, "its rank is 513, and vLLM takes at most 512"),
        ({"task_type": "SEQ_CLS"}, "classifier"),
    ],
    ids=lambda value: next(iter(value.items())).__repr__() if isinstance(value, dict) else "",
)
def test_what_vllm_cannot_load_is_refused_before_anything_is_written(
    settings: dict[str, Any], said: str, tuned: Path, tmp_path: Path
) -> None:
    odd = changed(tuned, tmp_path / "odd", **settings)
    with pytest.raises(InputError) as caught:
        write([str(tuned), str(odd)], tmp_path / "out")
    assert said in caught.value.message and str(odd) in caught.value.message and caught.value.fix
    assert not (tmp_path / "out").exists()


def test_adapters_that_cannot_share_a_server_are_refused(
    tuned: Path, tmp_path: Path, model_folder: Callable[..., Path]
) -> None:
    other = changed(tuned, tmp_path / "other", base_model_name_or_path=str(model_folder("llama")))
    with pytest.raises(InputError, match="different bases"):
        plan_of([str(tuned), str(other)])
    talks = changed(tuned, tmp_path / "talks")
    (talks / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(InputError, match="different chat templates"):
        plan_of([str(tuned), str(talks)])
    encoder = changed(tuned, tmp_path / "encoder", base_model_name_or_path=str(model_folder("t5")))
    with pytest.raises(InputError, match="vLLM serves decoders"):
        plan_of([str(encoder)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A short run of a method on the embedded base."""
    folder = tmp_path_factory.mktemp("runs")

    def make(name: str, *overrides: str) -> Path:
        from luthier.pipeline.train import train
        from luthier.recipe.config import RunConfig

        if not (folder / name).exists():
            quick = ["train.steps=1", "evaluate.before=false", "evaluate.generate=0", "evaluate.forgetting=false"]
            train(RunConfig.load(None, [f"run={folder / name}", "data=builtin:assistant", *quick, *overrides]))
        return folder / name

    return make


def test_a_run_is_served_by_its_recipe_and_refused_with_its_own_fix(runs: Callable[..., Path], tmp_path: Path) -> None:
    lora = runs("lora", "method=lora", "method.rank=4")
    plan = plan_of([str(lora)])
    write([f"one={lora}"], tmp_path / "out")
    shown = (tmp_path / "out" / "README.md").read_text()
    assert "luthier serve one=lora --check http://127.0.0.1:8000" in shown and "port-forward" in shown
    assert plan.adapters == {"lora": lora / "adapter"} and plan.folder == BASE and plan.rank == 4
    seen = command([str(lora)])
    assert seen["max_lora_rank"] == "8" and seen["generation_config"] == str(lora / "adapter")
    ia3 = runs("ia3", "method=ia3")
    with pytest.raises(InputError, match="this is ia3") as caught:
        plan_of([str(ia3)])
    assert f"luthier export {ia3} --to merged" in caught.value.fix
    prompt = runs("prompt", "method=prompt")
    with pytest.raises(InputError, match="this is prompt") as caught:
        plan_of([str(prompt)])
    assert f"luthier serve {prompt}" in caught.value.fix and "export" not in caught.value.fix, "it cannot be merged"


def test_a_base_packed_in_nf4_is_packed_again_and_other_packings_are_refused(
    runs: Callable[..., Path], tmp_path: Path
) -> None:
    run = shutil.copytree(runs("lora", "method=lora", "method.rank=4"), tmp_path / "packed")
    (run / "run.json").unlink()  # with it, an edited recipe is refused
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    for packing, extra in (("nf4", {}), ("int8", {}), ("none", {"init": "random"})):
        recipe["model"] = {**recipe["model"], "quantize": packing, **extra}
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        if packing == "nf4":
            seen = command([str(run)])
            assert seen["quantization"] == seen["load_format"] == "bitsandbytes"
            write([str(run)], tmp_path / "out")
            assert "vllm-bnb-plugin==" in (tmp_path / "out" / "Containerfile").read_text()
            continue
        with pytest.raises(
            InputError, match="in int8; vLLM only quantizes" if packing == "int8" else "init=random"
        ) as caught:
            plan_of([str(run)])
        assert "--to merged" in caught.value.fix


def test_it_becomes_vllm_which_gets_the_key_the_guard_and_the_signals(
    tuned: Path, tmp_path: Path, fake: Callable[..., Path]
) -> None:
    begun = subprocess.Popen(
        [sys.executable, "-m", "luthier", "serve", f"odd name={tuned}", "--engine", "vllm", "--port", "0"],
        env={**os.environ, "LUTHIER_VLLM": str(fake()), "LUTHIER_API_KEY": KEY},
        stdout=subprocess.PIPE,
        text=True,
    )
    file, end = tmp_path / "seen.json", time.monotonic() + 60
    try:
        while not file.exists():
            assert begun.poll() is None and time.monotonic() < end
            time.sleep(0.05)
    finally:
        begun.send_signal(signal.SIGTERM)
        out, _ = begun.communicate(timeout=20)
    assert begun.returncode == 7, "the exit code of vLLM"
    seen = json.loads(file.read_text())
    assert seen["pid"] == begun.pid, "the process is vLLM itself"
    options = parsed(seen["argv"][1:])
    assert seen["argv"][0] == "serve" and options["model"] == str(BASE)
    assert options["lora_modules"] == [f"odd name={tuned}"]
    assert options["host"] == "127.0.0.1" and int(options["port"]) > 0
    assert KEY not in " ".join(seen["argv"]) and seen["env"]["VLLM_API_KEY"] == KEY
    assert "LUTHIER_API_KEY" not in seen["env"] and seen["env"]["VLLM_NO_USAGE_STATS"] == "1"
    assert seen["env"]["PYTHONPATH"].split(os.pathsep)[0] == str(GUARD)
    shown = next(line for line in out.splitlines() if " serve " in line)
    assert KEY not in out and f"'odd name={tuned}'" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "vllm"], "vLLM is not installed"),
        (["--engine", "vllm", "--vllm", "/nowhere/vllm"], "--vllm /nowhere/vllm is not a program"),
        (["--engine", "vllm", "--max-waiting", "3"], "--max-waiting has no effect on vLLM"),
        (["--engine", "vlm"], "'vlm' is not one of 'luthier', 'vllm'"),
        (["--write", "out"], "--write belongs to --engine vllm"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_started_is_said_in_one_message(
    options: list[str], said: str, tuned: Path, tmp_path: Path
) -> None:
    bare = {"PATH": str(Path(sys.executable).parent / "nothing"), "LUTHIER_VLLM": ""}
    done = luthier("serve", tuned, *options, cwd=tmp_path, env=bare)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    if said.startswith("vLLM is not"):
        assert "pip install vllm==" in done.stderr and "--write DIR" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_key_is_needed_where_others_can_ask(tuned: Path, fake: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="needs an API key"):
        write([str(tuned)], None, address=ServerAddress("0.0.0.0"), vllm=str(fake()))


@pytest.fixture
def written(tuned: Path, tmp_path: Path) -> Path:
    """All files for two adapters with odd names, in a folder with an odd name."""
    folder = tmp_path / "it's my $HOME" / "Für alle"
    given = [f"客服, 一={tuned}", f'bel\'s "two"={tuned}']
    write(given, folder, ServerLimits(max_prompt=100, max_tokens=40), dtype="float16")
    return folder


def test_the_folder_is_whole_and_has_the_adapters(written: Path, tuned: Path) -> None:
    assert {path.name for path in written.iterdir()} == {
        "serve.sh",
        "Containerfile",
        ".dockerignore",
        "compose.yaml",
        "kubernetes.yaml",
        "README.md",
        "manifest.json",
        "adapters",
        "tokenizer",
        "guard",
    }
    adapters = sorted((written / "adapters").iterdir())
    assert len(adapters) == 2 and all(path.name.isascii() and " " not in path.name for path in adapters)
    for folder in adapters:
        assert (folder / "adapter_model.safetensors").read_bytes() == (tuned / "adapter_model.safetensors").read_bytes()
        assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"} <= {
        path.name for path in (written / "tokenizer").iterdir()
    }
    assert [path.name for path in (written / "guard").iterdir()] == ["luthier_vllm_guard.py"]


def test_the_script_starts_the_same_command(
    written: Path, tmp_path: Path, fake: Callable[..., Path], tuned: Path
) -> None:
    def start(*more: str, **env: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        (tmp_path / "seen.json").unlink(missing_ok=True)
        usual = {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"}
        done = subprocess.run(
            [str(written / "serve.sh"), *more],
            env={**usual, "VLLM": str(fake(once=True)), **env},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        seen = tmp_path / "seen.json"
        return done, json.loads(seen.read_text()) if seen.is_file() else {}

    names = ["客服, 一", 'bel\'s "two"']
    places = dict(zip(names, ["adapters/adapter", "adapters/bel-s-two"], strict=True))
    assert all((written / place).is_dir() for place in places.values())
    plan = plan_of([f"{name}={tuned}" for name in names])
    expected = arguments(plan, ServerLimits(max_prompt=100, max_tokens=40), "float16", "tokenizer", places)
    done, seen = start("--gpu-memory-utilization", "0.5")
    assert done.returncode == 0, done.stderr
    added = {"model": str(BASE), "host": "127.0.0.1", "port": "8000", "gpu_memory_utilization": "0.5"}
    assert parsed(seen["argv"][1:]) == parsed(expected) | added
    assert seen["cwd"] == str(written) and seen["env"]["PYTHONPATH"].startswith(str(written / "guard"))
    done, seen = start(SERVE_HOST="0.0.0.0")
    assert done.returncode == 2 and "needs a key" in done.stderr and not seen
    key = tmp_path / "key file"
    key.write_text(f"{KEY}\n")
    done, seen = start(SERVE_HOST="0.0.0.0", VLLM_API_KEY_FILE=str(key), SERVE_MODEL="/the model", SERVE_PORT="81")
    options = parsed(seen["argv"][1:])
    assert [options[name] for name in ("model", "host", "port")] == ["/the model", "0.0.0.0", "81"]
    assert seen["env"]["VLLM_API_KEY"] == KEY and KEY not in " ".join(seen["argv"])


def test_the_compose_file_keeps_the_key_outside_and_the_port_inside(written: Path) -> None:
    made = yaml.safe_load((written / "compose.yaml").read_text())
    service = made["services"]["vllm"]
    assert service["ports"] == ["${SERVE_BIND:-127.0.0.1}:${SERVE_PORT:-8000}:8000"]
    assert service["secrets"] == ["vllm_api_key"] and made["secrets"]["vllm_api_key"] == {"environment": "VLLM_API_KEY"}
    assert {"type": "bind", "source": str(BASE), "target": "/model", "read_only": True} in service["volumes"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "/health" in service["healthcheck"]["test"][-1] and service["read_only"] and service["cap_drop"] == ["ALL"]
    image = (written / "Containerfile").read_text()
    assert image.startswith(f"FROM vllm/vllm-openai:v{launch.VERSION}\n") and "latest" not in image
    for line in image.splitlines():
        if line.startswith("COPY"):
            assert (written / line.split()[-2]).exists(), line


def test_the_manifest_has_what_a_cluster_needs(written: Path) -> None:
    claim, deployment, service = yaml.safe_load_all((written / "kubernetes.yaml").read_text())
    assert [each["kind"] for each in (claim, deployment, service)] == ["PersistentVolumeClaim", "Deployment", "Service"]
    name = deployment["metadata"]["name"]
    assert name == "f-r-alle" and service["spec"]["type"] == "ClusterIP"
    pod = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["enableServiceLinks"] is False
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    env = {each["name"]: each for each in container["env"]}
    assert env["VLLM_API_KEY"]["valueFrom"]["secretKeyRef"] == {"name": f"{name}-key", "key": "api-key"}
    assert env["SERVE_MODEL"]["value"] == "/model" and "HF_TOKEN" not in env
    assert container["securityContext"]["readOnlyRootFilesystem"]
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert {each["name"] for each in container["volumeMounts"]} == set(volumes)
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert "hostPath" not in str(volumes)


def test_a_base_on_a_hub_is_named_and_downloaded_there(tuned: Path, tmp_path: Path) -> None:
    hub = changed(tuned, tmp_path / "hub", base_model_name_or_path="Qwen/Qwen2.5-0.5B-Instruct")
    write([str(hub)], tmp_path / "out")
    assert "model=Qwen/Qwen2.5-0.5B-Instruct\n" in (tmp_path / "out" / "serve.sh").read_text()
    service = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())["services"]["vllm"]
    assert "SERVE_MODEL" not in service["environment"] and service["environment"]["HF_TOKEN"] == "${HF_TOKEN:-}"
    assert str(tmp_path) not in (tmp_path / "out" / "adapters" / "hub" / "adapter_config.json").read_text()


def test_no_half_folder_and_no_lost_folder(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(InputError, match="already exists and is not empty"):
        write([str(tuned)], tmp_path / "mine")
    assert (tmp_path / "mine" / "letter").read_text() == "dear"

    def fails(*_: Any) -> str:
        raise OSError("the disk is gone")

    monkeypatch.setattr(launch, "render", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        write([str(tuned)], tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


def test_the_guard_lets_through_what_the_key_protects_and_nothing_else() -> None:
    spec = importlib.util.spec_from_file_location("guard", GUARD / "luthier_vllm_guard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "through"})

    def ask(kind: str, path: str) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(module.OnlyV1(app)({"type": kind, "path": path}, None, send))
        return sent

    for path in ("/v1/models", "/v1/chat/completions", "/health", "/metrics"):
        assert ask("http", path) == [{"type": "through"}], path
    for path in ("/invocations", "/scale_elastic_ep", "/tokenize", "/v1", "/v10/x", "//v1/models", "/"):
        assert ask("http", path)[0]["status"] == 404, path
    assert ask("websocket", "/inference/v1/generate") == [{"type": "websocket.close", "code": 1008}]
    assert ask("lifespan", "") == [{"type": "through"}]


def test_a_program_is_found_on_the_path(fake: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fake().parent))
    assert find_vllm(None) == str(fake())


@pytest.fixture(scope="module", params=["luthier", "vllm"])
def endpoint(request: pytest.FixtureRequest, tuned: Path) -> Iterator[tuple[openai.OpenAI, list[str]]]:
    """A client and the names of the models there, "base" first."""
    if request.param == "vllm":
        url = os.environ.get("LUTHIER_VLLM_URL")
        if not url:
            pytest.skip("LUTHIER_VLLM_URL is not set: vLLM runs in an environment and on a machine of its own")
        with openai.OpenAI(
            base_url=url, api_key=os.environ.get("LUTHIER_VLLM_KEY", "none"), max_retries=0, timeout=120
        ) as client:
            yield client, [model.id for model in client.models.list()]
        return
    from luthier.serving.engine.engine import Engine

    with (
        served(Engine.open([str(tuned)], rows=4), key=KEY) as url,
        openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as client,
    ):
        yield client, ["base", "tuned"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_endpoint_keeps_its_promise(check: Any, endpoint: tuple[openai.OpenAI, list[str]]) -> None:
    check(*endpoint)
