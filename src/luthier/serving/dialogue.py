"""Chat backends: a model in this process, or one behind an endpoint, with the same interface."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from luthier.core.errors import InputError
from luthier.recipe.consent import Allow
from luthier.rendering.example import Message
from luthier.serving.client import RemoteBackend
from luthier.serving.engine.requests import SamplingParams

if TYPE_CHECKING:
    from luthier.serving.engine.engine import Engine


class ChatBackend(Protocol):
    """Answers a conversation."""

    name: str

    def stream(self, messages: Sequence[Message], sampling: SamplingParams) -> Iterator[str]:
        """Yield the answer's text as it is generated; closing the iterator stops the generation."""


class LocalBackend:
    """A model of an engine in this process."""

    def __init__(self, engine: "Engine", name: str) -> None:
        self.engine, self.name = engine, name

    def stream(self, messages: Sequence[Message], sampling: SamplingParams) -> Iterator[str]:
        return self.engine.stream(messages, sampling=sampling, model=self.name)


def is_endpoint(given: str) -> bool:
    """Is it an address, not a folder?"""
    return given.startswith(("http://", "https://"))


def open_backends(
    given: str,
    *,
    base: bool,
    beside: str | None,
    model: str | None,
    notify: Callable[[str], None] = lambda _: None,
    allow_code: Allow = False,
) -> list[ChatBackend]:
    """Open the requested model, and the one to compare it with; InputError if that is not possible."""
    if base and beside:
        raise InputError("--base and --beside both select another model", fix="leave one of them out")
    if is_endpoint(given):
        if base and model is not None:
            raise InputError("--base and --model select two models", fix="leave one of them out")
        backends: list[ChatBackend] = [first := RemoteBackend(given, "base" if base else model, notify)]
        if beside is not None and Path(beside).expanduser().is_dir():
            backends.append(_local(beside, False, allow_code))
        elif beside is not None:
            url, name = (beside, None) if is_endpoint(beside) else (first.url, beside)
            backends.append(RemoteBackend(url, name, notify))
        return backends
    if model is not None:
        raise InputError(f"--model belongs to an endpoint (http://...), and {given} is a folder", fix="leave it out")
    if beside is None:
        return [_local(given, base, allow_code)]
    if is_endpoint(beside):
        other = RemoteBackend(beside, None, notify)  # first, because it fails sooner
        return [_local(given, False, allow_code), other]
    return _two_local(given, beside, allow_code)


def _local(given: str, base: bool, allow_code: Allow) -> LocalBackend:
    from luthier.serving.engine.engine import Engine

    engine = Engine.load(Path(given), base=base, allow_code=allow_code)
    return LocalBackend(engine, next(iter(engine.models)))


def _two_local(given: str, beside: str, allow_code: Allow) -> list[ChatBackend]:
    """Open two models in this process, in one batch over one base if they have the same."""
    from luthier.serving.engine.engine import Engine
    from luthier.serving.engine.sources import refuse_equal_names, refuse_two_bases, source_of

    source = source_of(given, allow_code)
    names, folders = ["base", source.name], [given]
    if beside == "base":
        if source.load is None:
            message = f"{given} holds full weights: its base is another model"
            raise InputError(message, fix="--beside FOLDER_OF_THE_BASE")
    else:
        other = source_of(beside, allow_code)
        refuse_equal_names([source, other])
        names, folders = [source.name, other.name], [given, beside]
        try:
            refuse_two_bases([source, other])
        except InputError:  # one engine for each
            engines = [Engine.open([each], rows=1, allow_code=allow_code) for each in folders]
            return [LocalBackend(engine, name) for engine, name in zip(engines, names, strict=True)]
    engine = Engine.open(folders, rows=2, allow_code=allow_code)
    return [LocalBackend(engine, name) for name in names]
