"""Commands for a finished run: measure it, export it, serve it, talk to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.core.errors import InputError

AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Use the code and the judge that the run's recipe.yaml names; look first.")
]
RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]


def evaluate(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="How to measure this time: evaluate.KEY=VALUE.", metavar="[EVALUATE.KEY=VALUE]..."),
    ] = None,
    harness: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness instead, with commas between.", metavar="TASKS")
    ] = None,
    harness_path: Annotated[Path | None, typer.Option(help="Folder of task files (YAML) of your own.")] = None,
    harness_limit: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="Only this many rows of each task.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Measure a run on its held-out rows, base against tuned, or on tasks of lm-evaluation-harness."""
    from luthier.cli.progress import Terminal, consent, starting

    starting("evaluate", str(run))
    from luthier.cli.show_result import show_harness, show_result
    from luthier.pipeline import evaluate as finished

    if harness is None:
        if harness_path or harness_limit:
            raise InputError("--harness-path and --harness-limit belong to --harness TASKS")
        show_result(finished.evaluate(run, overrides or [], progress=Terminal(), allow_code=consent(allow_code)))
        return
    if overrides:
        raise InputError(f"{overrides[0]} says nothing to the harness", fix="leave it out, or leave --harness out")
    tasks = [task.strip() for task in harness.split(",") if task.strip()]
    found = finished.harness(
        run,
        tasks,
        folder_of_tasks=harness_path,
        limit=harness_limit,
        progress=Terminal(),
        allow_code=consent(allow_code),
    )
    show_harness(found, str(run))


def export_(
    run: RunArgument,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="KEY=VALUE of the form, as explain export shows them.", metavar="[KEY=VALUE]..."),
    ] = None,
    to: Annotated[str, typer.Option(help="What to make; see luthier list exports.")] = "merged",
    prompts: Annotated[int, typer.Option(min=1, max=10**6, help="Held-out prompts to replay as a proof.")] = 20,
    allow_code: AllowCode = False,
) -> None:
    """Write a run in a form to deploy, and prove by its held-out prompts that it answers as the run does."""
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
    base: Annotated[bool, typer.Option("--base", help="Talk to the untouched base instead.")] = False,
    beside: Annotated[
        str | None, typer.Option(help="Another to answer the same: base, a folder, an endpoint, a model there.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which model of an endpoint.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this one message and end.")] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    temperature: Annotated[float, typer.Option(min=0.0, max=100.0, help="0 takes the likeliest token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=10**6, help="Longest answer, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same one draws the same answer.")] = 0,
    allow_code: AllowCode = False,
) -> None:
    """Talk to a run or an endpoint. /new starts a new dialogue, /quit or ctrl-D ends."""
    from luthier.cli.chat import talk
    from luthier.cli.progress import consent
    from luthier.serving.settings import Asking

    asking = Asking(temperature, max_new_tokens, seed)
    talk(
        run,
        base=base,
        beside=beside,
        model=model,
        prompt=prompt,
        system=system,
        asking=asking,
        allow_code=consent(allow_code),
    )


def serve(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs, exports, PEFT adapters or whole models; NAME=PATH gives another name.", metavar="RUN..."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; another than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LUTHIER_API_KEY", show_envvar=True, help="Whoever asks must send it.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=10_000, help="Answers made at a time.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=0, max=10**6, help="Requests that may wait; more get 429.")] = 64,
    max_prompt: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="Tokens of a prompt; what the model takes.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=10**9, help="Tokens of an answer.")] = 4096,
    max_body: Annotated[int, typer.Option(min=1024, max=2**31, help="Bytes of a request.")] = 2**20,
    grace: Annotated[
        float, typer.Option(min=0, max=10**6, help="Seconds for running answers when it is stopped.")
    ] = 30.0,
    dtype: Annotated[str, typer.Option(help="Of the weights: auto, float32, bfloat16 or float16.")] = "auto",
    engine: Annotated[str, typer.Option(help="What computes: luthier, or vllm for production on a GPU.")] = "luthier",
    vllm: Annotated[
        str | None, typer.Option(envvar="LUTHIER_VLLM", show_envvar=True, help="The program vllm, in its environment.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Start nothing: write vLLM's command, container and Kubernetes files.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Answer over HTTP as OpenAI's API does: the base and any number of tuned models, chosen by `model`."""
    from luthier.cli.progress import Terminal, consent
    from luthier.serving.launch import serve as start
    from luthier.serving.settings import Place, Sizes

    sizes = Sizes(max_batch, max_waiting, max_body, max_prompt, max_tokens, grace)
    place = Place(host, port, api_key)
    if engine == "vllm":
        from luthier.serving.vllm.launch import serve as become

        allowed = consent(allow_code)
        become(runs, place, sizes, dtype=dtype, vllm=vllm, write=write, progress=Terminal(), allow_code=allowed)
        return
    if engine != "luthier":
        raise InputError(f"--engine {engine}: there are luthier and vllm")
    if write is not None:
        raise InputError("--write belongs to --engine vllm")
    start(runs, place, sizes, dtype=dtype, progress=Terminal(), allow_code=consent(allow_code))
