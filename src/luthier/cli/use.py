"""Commands for a finished run: evaluate, export, chat and serve."""

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.core.errors import InputError

AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Allow the code and the judge that the run's recipe.yaml names; look first."),
]
RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]


def evaluate(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings of this evaluation: evaluate.KEY=VALUE.", metavar="[EVALUATE.KEY=VALUE]..."),
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness instead, as comma-separated names.", metavar="TASKS"),
    ] = None,
    harness_path: Annotated[Path | None, typer.Option(help="Folder with your own task files (YAML).")] = None,
    harness_limit: Annotated[int | None, typer.Option(min=1, max=10**9, help="Maximum rows of each task.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure a run on its held-out rows, base and tuned model, or on tasks of lm-evaluation-harness."""
    from luthier.cli.progress import Terminal, consent, starting

    starting("evaluate", str(run))
    from luthier.cli.show_result import show_harness, show_result
    from luthier.pipeline import evaluate as stage

    if harness is None:
        if harness_path or harness_limit:
            raise InputError("--harness-path and --harness-limit belong to --harness TASKS")
        show_result(stage.evaluate(run, overrides or [], progress=Terminal(), allow_code=consent(allow_code)))
        return
    if overrides:
        raise InputError(f"{overrides[0]} has no effect on the harness", fix="leave it out, or leave --harness out")
    tasks = [task.strip() for task in harness.split(",") if task.strip()]
    allowed = consent(allow_code)
    limits: dict[str, Any] = {"folder_of_tasks": harness_path, "limit": harness_limit}
    show_harness(stage.harness(run, tasks, **limits, progress=Terminal(), allow_code=allowed), str(run))


def export_(
    run: RunArgument,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="KEY=VALUE of the format, as explain export lists them.", metavar="[KEY=VALUE]..."),
    ] = None,
    to: Annotated[str, typer.Option(help="Export format; see luthier list exports.")] = "merged",
    prompts: Annotated[int, typer.Option(min=1, max=10**6, help="Held-out prompts for the parity check.")] = 20,
    allow_code: AllowCode = False,
) -> None:
    """Write a run in a format for deployment, and check on its held-out prompts that it answers as the run does."""
    from luthier.cli.progress import Terminal, consent, starting

    starting("export", f"{run} to {to}")
    from luthier.cli.show_result import show_export
    from luthier.pipeline.export import export
    from luthier.recipe.parse import parse_export

    form = parse_export(to, settings or [])
    show_export(export(run, form, prompts=prompts, progress=Terminal(), allow_code=consent(allow_code)))


def chat(
    run: Annotated[
        str,
        typer.Argument(
            help="Run, export, adapter or model folder, or an endpoint: http://HOST:PORT/v1.", metavar="RUN"
        ),
    ],
    base: Annotated[bool, typer.Option("--base", help="Chat with the base model instead.")] = False,
    beside: Annotated[
        str | None, typer.Option(help="Second model, side by side: base, a folder, an endpoint, or a model there.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model of an endpoint.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this message and exit.")] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    temperature: Annotated[float, typer.Option(min=0.0, max=100.0, help="Sampling temperature; 0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=10**6, help="Maximum tokens of an answer.")] = 256,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Random seed.")] = 0,
    allow_code: AllowCode = False,
) -> None:
    """Chat with a run or an endpoint. /new starts a new conversation, /quit or ctrl-D ends."""
    from luthier.cli.chat import talk
    from luthier.cli.progress import consent
    from luthier.serving.engine.requests import SamplingParams

    sampling, allowed = SamplingParams(temperature, max_new_tokens, seed), consent(allow_code)
    who: dict[str, Any] = {"base": base, "beside": beside, "model": model}
    talk(run, **who, prompt=prompt, system=system, sampling=sampling, allow_code=allowed)


def serve(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs, exports, PEFT adapters or full models; NAME=PATH sets another name.", metavar="RUN..."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 selects a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LUTHIER_API_KEY", show_envvar=True, help="API key that clients must send.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=10_000, help="Requests answered at the same time.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=0, max=10**6, help="Requests in the queue; more get 429.")] = 64,
    max_prompt: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="Maximum tokens of a prompt (default: the model's limit).")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=10**9, help="Maximum tokens of an answer.")] = 4096,
    max_body: Annotated[int, typer.Option(min=1024, max=2**31, help="Maximum bytes of a request.")] = 2**20,
    grace: Annotated[
        float, typer.Option(min=0, max=10**6, help="Seconds for running answers to finish on shutdown.")
    ] = 30.0,
    dtype: Annotated[str, typer.Option(help="Type of the weights: auto, float32, bfloat16 or float16.")] = "auto",
    engine: Annotated[str, typer.Option(help="luthier, or vllm for production on a GPU.")] = "luthier",
    vllm: Annotated[
        str | None,
        typer.Option(envvar="LUTHIER_VLLM", show_envvar=True, help="Path of the vllm program in its environment."),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Do not start: write vLLM's command, container and Kubernetes files.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Serve the base and any number of tuned models over OpenAI's HTTP API; `model` in a request selects one."""
    from luthier.cli.progress import Terminal, consent
    from luthier.serving.http.settings import ServerAddress, ServerLimits

    address = ServerAddress(host, port, api_key)
    limits = ServerLimits(max_batch, max_waiting, max_body, max_prompt, max_tokens, grace)
    common: dict[str, Any] = {"dtype": dtype, "progress": Terminal(), "allow_code": consent(allow_code)}
    if engine == "vllm":
        from luthier.serving.vllm.launch import serve as serve_vllm

        serve_vllm(runs, address, limits, vllm=vllm, write=write, **common)
        return
    if engine != "luthier":
        raise InputError(f"--engine {engine} is unknown; there are luthier and vllm")
    if write is not None:
        raise InputError("--write belongs to --engine vllm")
    from luthier.serving.launch import serve as serve_luthier

    serve_luthier(runs, address, limits, **common)
