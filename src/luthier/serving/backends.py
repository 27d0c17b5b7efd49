"""Chat backends: a model in this process, or one behind any endpoint with OpenAI's chat completions."""

import http.client
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urldefrag, urlsplit

from luthier.core.endpoint import CONNECTION_ERRORS, is_loopback, open_url
from luthier.core.errors import InputError, LuthierError
from luthier.recipe.consent import Allow
from luthier.rendering.example import Message
from luthier.serving.engine.requests import SamplingParams

KEYS = ("LUTHIER_API_KEY", "OPENAI_API_KEY")  # Environment variables of the API key; the first one that is set is used
TIMEOUT = 300.0  # Seconds without data after which the connection is closed
RETRY_SECONDS, MAX_WAIT = (1.0, 2.0, 4.0), 30.0
"""Seconds between attempts if a busy endpoint does not say how long to wait, and the longest wait."""
MAX_BYTES = 2**24  # Longest response that is not streamed


@dataclass(frozen=True, slots=True)
class ChatBackend:
    """Answers a conversation."""

    name: str
    stream: Callable[[Sequence[Message], SamplingParams], Iterator[str]]
    """Yields the answer's text as it is generated; closing the iterator stops the generation."""


def is_endpoint(given: str) -> bool:
    """Is it an address, not a folder?"""
    return given.startswith(("http://", "https://"))


def open_backends(
    given: str,
    *,
    untuned: bool,
    base: str | None = None,
    beside: str | None,
    model: str | None,
    notify: Callable[[str], None],
    allow_code: Allow,
    drop_layers: int = 0,
) -> list[ChatBackend]:
    """Open the requested model, and the one to compare it with; InputError if that is not possible."""
    if untuned and beside:
        raise InputError("--untuned and --beside both select another model", fix="leave one of them out")
    if is_endpoint(given):
        if untuned and model is not None:
            raise InputError("--untuned and --model select two models", fix="leave one of them out")
        if base is not None:
            raise InputError(f"--base belongs to an adapter's folder, and {given} is an endpoint", fix="leave it out")
        if drop_layers:
            raise InputError(f"--drop-layers belongs to a folder, and {given} is an endpoint", fix="leave it out")
        first = Endpoint(given, "base" if untuned else model, notify)
        if beside is None:
            return [first.backend]
        if Path(beside).expanduser().is_dir():
            return [first.backend, *_local([beside], allow_code=allow_code, base=None, notify=notify)]
        url, name = (beside, None) if is_endpoint(beside) else (first.url, beside)
        return [first.backend, Endpoint(url, name, notify).backend]
    if model is not None:
        raise InputError(f"--model belongs to an endpoint (http://...), and {given} is a folder", fix="leave it out")
    local = partial(_local, allow_code=allow_code, base=base, notify=notify, drop_layers=drop_layers)
    if beside is not None and is_endpoint(beside):
        other = Endpoint(beside, None, notify).backend  # first, because it fails sooner
        return [*local([given]), other]
    if untuned or beside == "base":
        return local([given], untuned=True)[: 1 if untuned else 2]
    return local([given] if beside is None else [given, beside])


def _local(
    folders: list[str],
    *,
    allow_code: Allow,
    base: str | None,
    notify: Callable[[str], None],
    drop_layers: int = 0,
    untuned: bool = False,
) -> list[ChatBackend]:
    """Open models in this process, in one batch if they can share it; with `untuned`, their base comes first."""
    from luthier.serving.engine.classifier import Classifier
    from luthier.serving.engine.engine import Engine
    from luthier.serving.engine.sources import refuse_mixture, source_of

    which: Any = {"allow_code": allow_code, "base": base, "drop_layers": drop_layers}
    sources = [source_of(each, allow_code, base, drop_layers) for each in folders]
    if untuned and sources[0].labels:
        raise InputError(f"{folders[0]} is a classifier: its base has no labels", fix="leave the base out")
    if untuned and sources[0].load is None:
        message = f"{folders[0]} holds full weights: its base is another model"
        raise InputError(message, fix="give the folder of the base itself")
    if len(folders) > 1:
        try:
            refuse_mixture(sources)
        except InputError:
            return [backend for folder in folders for backend in _local([folder], notify=notify, **which)]
    for source in sources:
        if source.caveat:
            notify(source.caveat)
    if sources[0].labels:
        return [ChatBackend(sources[0].name, Classifier(sources[0]).stream)]
    names = [*(["base"] if untuned else []), *(source.name for source in sources)]
    engine = Engine.open(folders, rows=len(names), **which)
    return [ChatBackend(name, partial(engine.stream, model=name)) for name in names]


class Endpoint:
    """One model of an endpoint."""

    def __init__(self, url: str, model: str | None, notify: Callable[[str], None], key: str | None = None) -> None:
        """InputError if the address is invalid, the key would be sent unencrypted, or the model is ambiguous.

        The key is that of the environment, unless one is given.
        """
        url, fragment = urldefrag(url)
        self.url, self.notify = url.rstrip("/"), notify
        parts = urlsplit(self.url)
        if not parts.hostname or parts.username is not None:
            raise InputError(f"{self.url} is not a valid endpoint address", fix="http://HOST:PORT/v1, without the key")
        self.key_name = next((name for name in KEYS if os.environ.get(name, "").strip()), "")
        self.key = os.environ.get(self.key_name, "").strip()
        if key:
            self.key_name, self.key = KEYS[0], key
        if self.key and parts.scheme == "http" and not is_loopback(parts.hostname):
            why = f"{self.url}: the key in {self.key_name} would be sent to {parts.hostname} unencrypted"
            fix = f"an https address, a tunnel (ssh -L), or unset {self.key_name} if the endpoint needs no key"
            raise InputError(why, fix=fix)
        self.name = fragment or model or ""
        if not self.name:
            found = self.models()
            if len(found) != 1:
                there = f"there are: {', '.join(found)}" if found else "the endpoint does not list its models"
                raise InputError(f"{self.url}: which model? {there}", fix="--model NAME")
            self.name = found[0]
        self.backend = ChatBackend(self.name, self._stream)

    def _stream(self, messages: Sequence[Message], sampling: SamplingParams) -> Iterator[str]:
        """Yield the answer's text as it arrives; closing the iterator closes the connection.

        InputError if the endpoint refuses the request, LuthierError if the answer is incomplete.
        """
        turns = [{"role": each.role, "content": each.content} for each in messages]
        body: dict[str, Any] = {"model": self.name, "messages": turns, "temperature": sampling.temperature}
        body |= {"max_tokens": sampling.max_tokens, "seed": sampling.seed, "stream": True}
        started = ended = False
        reason = "the stream ended without its last event"
        with self._request("/chat/completions", body) as response:
            try:
                for raw in response:
                    kind, _, data = raw.decode("utf-8", errors="replace").partition(":")
                    if kind != "data":
                        continue
                    if data.strip() == "[DONE]":
                        break
                    event = json.loads(data)
                    if "error" in event:
                        raise LuthierError(f"{self.url}: {self._message(event)}")
                    choice = (event.get("choices") or [{}])[0]
                    if text := (choice.get("delta") or {}).get("content"):
                        started = True
                        yield text
                    ended = ended or choice.get("finish_reason") is not None
            except (*CONNECTION_ERRORS, ValueError, TypeError, AttributeError, LookupError) as error:
                ended, reason = False, _reason(error)
        if not ended:
            what = "the answer broke off" if started else "no answer came"
            raise LuthierError(f"{self.url}: {what} ({reason})")

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON of a response that is not streamed; InputError if the endpoint refuses the request."""
        with self._request(path, {"model": self.name, **body}) as response:
            try:
                return json.loads(response.read(MAX_BYTES))
            except (*CONNECTION_ERRORS, ValueError) as error:
                raise LuthierError(f"{self.url}: no answer came ({_reason(error)})") from None

    def models(self) -> list[str]:
        """Return the names of the endpoint's models; none if it does not list them."""
        with self._request("/models") as response:
            try:
                return [str(each["id"]) for each in json.loads(response.read(MAX_BYTES))["data"]]
            except (ValueError, KeyError, TypeError):
                return []

    def _request(self, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        """Send a request, and again if the endpoint is busy; InputError if it is refused."""
        waits = iter(RETRY_SECONDS)
        while True:
            try:
                return open_url(self.url + path, body, self.key, TIMEOUT)
            except HTTPError as error:
                seconds = next(waits, None)
                if error.code != 429 or seconds is None:
                    raise self._refusal(error, chat=body is not None) from None
                with suppress(ValueError):
                    seconds = max(0.0, float(error.headers.get("retry-after", "")))
                seconds = min(MAX_WAIT, seconds)
                self.notify(f"{self.url} is busy; retrying in {seconds:.0f} s")
                error.close()
                time.sleep(seconds)
            except CONNECTION_ERRORS as error:
                what = f"{self.url} cannot be reached: {_reason(error)}"
                raise InputError(what, fix="check that the server is running, and the port") from None

    def _refusal(self, error: HTTPError, *, chat: bool) -> InputError:
        """Explain the status of a response; `chat` if it is about a chat completion."""
        code, found, fix = f"HTTP {error.code}", [], ""
        with error, suppress(*CONNECTION_ERRORS, ValueError, TypeError):
            code += f": {self._message(json.loads(error.read(MAX_BYTES)))}"
        if chat and error.code == 404:
            with suppress(InputError):
                found = self.models()
        what = f"{self.url} refused the request ({code})"
        if error.code in (401, 403):
            what = f"{self.url} {f'rejects the key in {self.key_name}' if self.key else 'requires an API key'} ({code})"
            fix = f"export {self.key_name or KEYS[0]}=..."
        elif found:
            what, fix = f"there is no model {self.name!r} at {self.url}; there are: {', '.join(found)}", "--model NAME"
        elif error.code == 404:
            ending = "" if self.url.endswith("/v1") else f"; such addresses end in /v1: {self.url}/v1"
            what = f"{self.url} is not an OpenAI-compatible endpoint (HTTP 404){ending}"
        elif error.code == 429:
            what, fix = f"{self.url} is busy ({code})", "retry later"
        elif 300 <= error.code < 400:
            what, fix = f"{self.url} redirects to {error.headers.get('location')}", "use that address"
        return InputError(what, fix=fix)

    def _message(self, body: Any) -> str:
        """Return the message of an error in OpenAI's format, or of another one, without the key."""
        error = body["error"] if isinstance(body, dict) and "error" in body else body
        text = str(error["message"] if isinstance(error, dict) and "message" in error else error)[:500]
        return text.replace(self.key, "***") if self.key else text


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or str(reason) or type(error).__name__
