"""`luthier chat`: talk to a run."""

from typing import Annotated, Any

import typer

from luthier.cli.terminal.arguments import AllowCode, Base, DropLayers


def command(
    run: Annotated[
        str,
        typer.Argument(
            help="Run, export, adapter or model folder, or an endpoint: http://HOST:PORT/v1.", metavar="RUN"
        ),
    ],
    base: Base = None,
    untuned: Annotated[bool, typer.Option("--untuned", help="Chat with the base model instead.")] = False,
    beside: Annotated[
        str | None, typer.Option(help="Second model, side by side: base, a folder, an endpoint, or a model there.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model of an endpoint.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this message and exit.")] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    temperature: Annotated[
        float, typer.Option(min=0.0, max=100.0, metavar="T", help="Sampling temperature; 0 is greedy.")
    ] = 0.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=10**6, metavar="N", help="Maximum tokens of an answer.")
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, metavar="N", help="Random seed.")] = 0,
    drop_layers: DropLayers = 0,
    allow_code: AllowCode = False,
) -> None:
    """Chat with a run or an endpoint. /new starts a new conversation, /quit or ctrl-D ends.

    Examples:
        luthier chat runs/demo
        luthier chat runs/demo --beside base --prompt "A great film."
    """
    from luthier.cli.terminal.chat import talk
    from luthier.cli.terminal.progress import consent
    from luthier.serving.engine.requests import SamplingParams

    sampling, allowed = SamplingParams(temperature, max_new_tokens, seed), consent(allow_code)
    who: dict[str, Any] = {"untuned": untuned, "base": base, "beside": beside, "model": model}
    who["drop_layers"] = drop_layers
    talk(run, **who, prompt=prompt, system=system, sampling=sampling, allow_code=allowed)
