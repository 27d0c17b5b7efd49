"""Who answers in a dialogue: a model in this process, or one behind an endpoint. Both are asked in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from luthier.core.errors import InputError
from luthier.recipe.consent import Allow
from luthier.rendering.example import Message
from luthier.serving.settings import Asking

if TYPE_CHECKING:
    from luthier.serving.engine.engine import Engine


class Speaker(Protocol):
    """Answers a dialogue."""

    name: str

    def say(self, messages: Sequence[Message], asking: Asking) -> Iterator[str]:
        """The answer piece by piece. Leaving the loop stops the work."""


class Local:
    """A model of an engine in this process."""

    def __init__(self, engine: Engine, model: str) -> None:
        self.engine, self.name = engine, model

    def say(self, messages: Sequence[Message], asking: Asking) -> Iterator[str]:
        """As the engine streams it."""
        return self.engine.stream(
            messages, max_new_tokens=asking.most, temperature=asking.temperature, seed=asking.seed, model=self.name
        )


def is_endpoint(given: str) -> bool:
    """Is it an address, not a folder?"""
    return given.startswith(("http://", "https://"))


def open_speakers(
    given: str,
    *,
    base: bool,
    beside: str | None,
    model: str | None,
    told: Callable[[str], None] = lambda _: None,
    allow_code: Allow = False,
) -> list[Speaker]:
    """The one that was asked for, and the one beside it; InputError where they cannot be had."""
    if base and beside:
        raise InputError("--base and --beside are two ways to hear another model", fix="leave one of them out")
    if is_endpoint(given):
        return _remote(given, base, beside, model, told, allow_code)
    if model is not None:
        raise InputError(f"--model belongs to an endpoint (http://...), and {given} is a folder", fix="leave it out")
    if beside is None:
        from luthier.serving.engine.engine import Engine

        engine = Engine.load(Path(given), base=base, allow_code=allow_code)
        return [Local(engine, next(iter(engine.variants)))]
    if is_endpoint(beside):
        from luthier.serving.client import Remote

        other = Remote(beside, None, told)  # first, for it is quicker to fail
        return [*open_speakers(given, base=False, beside=None, model=None, allow_code=allow_code), other]
    return _both(given, beside, allow_code)


def _remote(
    given: str, base: bool, beside: str | None, model: str | None, told: Callable[[str], None], allow_code: Allow
) -> list[Speaker]:
    from luthier.serving.client import Remote

    if base and model is not None:
        raise InputError("--base and --model name two models", fix="leave one of them out")
    first = Remote(given, "base" if base else model, told)
    if beside is None:
        return [first]
    if is_endpoint(beside):
        return [first, Remote(beside, None, told)]
    if Path(beside).expanduser().is_dir():
        return [first, *open_speakers(beside, base=False, beside=None, model=None, allow_code=allow_code)]
    return [first, Remote(first.url, beside, told)]


def _both(given: str, beside: str, allow_code: Allow) -> list[Speaker]:
    """Two models in this process, over one base in one batch where they have the same."""
    from luthier.serving.engine.engine import Engine
    from luthier.serving.engine.sources import refuse_equal_names, refuse_two_bases, source_of

    source = source_of(given, allow_code)
    if beside == "base":
        if source.load is None:
            raise InputError(
                f"{given} holds whole weights: its base is another model", fix="--beside FOLDER_OF_THE_BASE"
            )
        engine = Engine.open([given], rows=2, allow_code=allow_code)
        return [Local(engine, "base"), Local(engine, source.name)]
    other = source_of(beside, allow_code)
    refuse_equal_names([source, other])
    try:
        refuse_two_bases([source, other])
    except InputError:  # each over its own
        return [
            Local(Engine.open([each], rows=1, allow_code=allow_code), name)
            for each, name in ((given, source.name), (beside, other.name))
        ]
    engine = Engine.open([given, beside], rows=2, allow_code=allow_code)
    return [Local(engine, source.name), Local(engine, other.name)]
