"""`luthier serve`: answer over HTTP."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from luthier.cli.terminal.arguments import AllowCode, Base, DropLayers
from luthier.core.errors import InputError


def command(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs, exports, PEFT adapters or full models; NAME=PATH sets another name.", metavar="RUN..."
        ),
    ],
    base: Base = None,
    drop_layers: DropLayers = 0,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 selects a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LUTHIER_API_KEY", show_envvar=True, help="API key that clients must send.")
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, max=10_000, metavar="N", help="Requests answered at the same time.")
    ] = 16,
    max_waiting: Annotated[
        int, typer.Option(min=0, max=10**6, metavar="N", help="Requests in the queue; more get 429.")
    ] = 64,
    max_prompt: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, metavar="N", help="Maximum tokens of a prompt (default: the model's limit)."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=10**9, metavar="N", help="Maximum tokens of an answer.")] = 4096,
    max_body: Annotated[int, typer.Option(min=1024, max=2**31, metavar="N", help="Maximum bytes of a request.")] = 2
    ** 20,
    grace: Annotated[
        float, typer.Option(min=0, max=10**6, metavar="N", help="Seconds for running answers to finish on shutdown.")
    ] = 30.0,
    dtype: Annotated[str, typer.Option(help="Type of the weights: auto, float32, bfloat16 or float16.")] = "auto",
    engine: Annotated[
        Literal["luthier", "vllm"], typer.Option(metavar="luthier|vllm", help="vllm is for production on a GPU.")
    ] = "luthier",
    vllm: Annotated[
        str | None,
        typer.Option(
            envvar="LUTHIER_VLLM", show_envvar=True, metavar="PATH", help="Path of the vllm program in its environment."
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Do not start: write vLLM's command, container and Kubernetes files."),
    ] = None,
    check: Annotated[
        str | None, typer.Option(help="Do not start: check that a running server answers as the runs.", metavar="URL")
    ] = None,
    bound: Annotated[
        float | None,
        typer.Option(
            min=1e-9, max=100, metavar="X", help="With --check: mean difference of log-probabilities that is rounding."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --check: print only the result, as JSON.")] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not check vLLM when it has started.")] = False,
    allow_code: AllowCode = False,
) -> None:
    """Serve the base and any number of tuned models over OpenAI's HTTP API; `model` in a request selects one.

    Examples:
        luthier serve runs/demo
        luthier serve runs/a runs/b --port 8080
        luthier serve runs/demo --check http://127.0.0.1:8000/v1
    """
    from luthier.cli.terminal.progress import Terminal, consent
    from luthier.serving.http.settings import ServerAddress, ServerLimits

    if check is not None:
        if base is not None or write is not None:
            raise InputError("--base and --write do not go with --check", fix="leave them out")
        _check(
            runs, check, as_json, {"key": api_key, "dtype": dtype, "bound": bound, "allow_code": consent(allow_code)}
        )
        return
    if bound is not None or as_json:
        raise InputError("--bound and --json belong to --check URL")

    address = ServerAddress(host, port, api_key)
    limits = ServerLimits(max_batch, max_waiting, max_body, max_prompt, max_tokens, grace)
    common: dict[str, Any] = {
        "dtype": dtype,
        "base": base,
        "progress": Terminal(animated=False),
        "allow_code": consent(allow_code),
    }
    if engine == "vllm":
        if drop_layers:
            raise InputError("--drop-layers belongs to --engine luthier", fix="leave it out")
        from luthier.serving.vllm.launch import serve_vllm

        code = serve_vllm(runs, address, limits, vllm=vllm, write=write, check=not no_check, **common)
        raise typer.Exit(code)
    if write is not None:
        raise InputError("--write belongs to --engine vllm")
    from luthier.serving.launch import serve as serve_luthier

    serve_luthier(runs, address, limits, drop_layers=drop_layers, **common)


def _check(runs: list[str], url: str, as_json: bool, options: dict[str, Any]) -> None:
    from luthier.cli.terminal.console import starting
    from luthier.cli.terminal.progress import Terminal
    from luthier.core.events import Progress
    from luthier.core.strict_json import to_json

    if not as_json:
        starting("serve --check", url)
    with Progress() if as_json else Terminal() as progress:
        progress.stage("loading libraries")
        from luthier.pipeline.served import check_served, refuse

        reports = [check_served(run, url, progress=progress, **options) for run in runs]
    from luthier.cli.terminal.show_result import show_served

    if as_json:
        typer.echo(to_json(reports, indent=1, ensure_ascii=False))
    else:
        show_served(reports)
    refuse(reports)
