"""A chat backend for any endpoint with OpenAI's chat completions, streamed with the standard library only."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urldefrag, urlsplit

from luthier.core.errors import InputError, LuthierError
from luthier.core.strict_json import to_json
from luthier.rendering.example import Message
from luthier.serving.engine.requests import SamplingParams
from luthier.serving.http.settings import is_loopback

KEYS = ("LUTHIER_API_KEY", "OPENAI_API_KEY")
"""Environment variables of the API key; the first one that is set is used."""
TIMEOUT = 300.0
"""Seconds without data after which the connection is closed."""
RETRY_SECONDS, MAX_WAIT = (1.0, 2.0, 4.0), 30.0
"""Seconds between attempts if a busy endpoint does not say how long to wait, and the longest wait."""
MAX_BYTES = 2**24
"""Longest response that is not streamed."""
CONNECTION_ERRORS = (OSError, http.client.HTTPException)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key and the conversation to an address that the user did not give."""

    def redirect_request(self, *_: Any) -> None:
        return None


class RemoteBackend:
    """One model of an endpoint."""

    def __init__(self, url: str, model: str | None, notify: Callable[[str], None] = lambda _: None) -> None:
        """InputError if the address is invalid, the key would be sent unencrypted, or the model is ambiguous."""
        self.url, fragment = urldefrag(url)
        self.url = self.url.rstrip("/")
        self.notify = notify
        parts = urlsplit(self.url)
        if not parts.hostname or parts.username is not None:
            raise InputError(f"{self.url} is not a valid endpoint address", fix="http://HOST:PORT/v1, without the key")
        self.key_name = next((name for name in KEYS if os.environ.get(name, "").strip()), "")
        self.key = os.environ.get(self.key_name, "").strip()
        self.local = is_loopback(parts.hostname)
        if self.key and parts.scheme == "http" and not self.local:
            raise InputError(
                f"{self.url}: the key in {self.key_name} would be sent to {parts.hostname} unencrypted",
                fix=f"an https address, a tunnel (ssh -L), or unset {self.key_name} if the endpoint needs no key",
            )
        self.name = fragment or model or self._only_model()

    def stream(self, messages: Sequence[Message], sampling: SamplingParams) -> Iterator[str]:
        """Yield the answer's text as it arrives; closing the iterator closes the connection.

        InputError if the endpoint refuses the request, LuthierError if the answer is incomplete.
        """
        body = {
            "model": self.name,
            "messages": [{"role": each.role, "content": each.content} for each in messages],
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "stream": True,
        }
        started = ended = False
        reason = "the stream ended without its last event"
        with self._post("/chat/completions", body) as response:
            try:
                for event in _events(response):
                    if "error" in event:
                        raise LuthierError(f"{self.url}: {self._redacted(_message(event))}")
                    choice = (event.get("choices") or [{}])[0]
                    if text := (choice.get("delta") or {}).get("content"):
                        started = True
                        yield text
                    ended = ended or choice.get("finish_reason") is not None
            except (*CONNECTION_ERRORS, ValueError) as error:
                ended, reason = False, _reason(error)
        if not ended:
            what = "the answer broke off" if started else "no answer came"
            raise LuthierError(f"{self.url}: {what} ({reason})")

    def _models(self) -> list[str]:
        """Return the names of the endpoint's models; none if it does not list them."""
        with self._request("/models", None) as response:
            try:
                return [str(each["id"]) for each in json.loads(response.read(MAX_BYTES))["data"]]
            except (ValueError, KeyError, TypeError):
                return []

    def _only_model(self) -> str:
        try:
            found = self._models()
        except CONNECTION_ERRORS as error:
            raise self._error(error) from None
        if len(found) == 1:
            return found[0]
        there = f"there are: {', '.join(found)}" if found else "the endpoint does not list its models"
        raise InputError(f"{self.url}: which model? {there}", fix="--model NAME")

    def _post(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        """Send a request, and again if the endpoint is busy."""
        for seconds in (*RETRY_SECONDS, None):
            try:
                return self._request(path, body)
            except CONNECTION_ERRORS as error:
                if seconds is None or not isinstance(error, urllib.error.HTTPError) or error.code != 429:
                    raise self._error(error, chat=True) from None
                wait = min(MAX_WAIT, _retry_after(error.headers, seconds))
                self.notify(f"{self.url} is busy; retrying in {wait:.0f} s")
                error.close()
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _request(self, path: str, body: dict[str, Any] | None) -> http.client.HTTPResponse:
        data = None if body is None else to_json(body, ensure_ascii=False).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        # A proxy would resolve a loopback name to another machine.
        proxy = [urllib.request.ProxyHandler({})] if self.local else []
        response: http.client.HTTPResponse
        response = urllib.request.build_opener(_NoRedirect, *proxy).open(request, timeout=TIMEOUT)
        return response

    def _error(self, error: Exception, *, chat: bool = False) -> InputError:
        """Explain an error; `chat` if it is about a chat completion."""
        if not isinstance(error, urllib.error.HTTPError):
            what = f"{self.url} cannot be reached: {_reason(error)}"
            return InputError(what, fix="check that the server is running, and the port")
        try:
            said = f": {self._redacted(_message(json.loads(error.read(MAX_BYTES))))}"
        except (*CONNECTION_ERRORS, ValueError, TypeError):
            said = ""
        error.close()
        code, found = f"HTTP {error.code}{said}", []
        if chat and error.code == 404:
            with suppress(*CONNECTION_ERRORS):
                found = self._models()
        what, fix = f"{self.url} refused the request ({code})", ""
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

    def _redacted(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the data of server-sent events until [DONE]; ValueError if one is not a JSON object."""
    for raw in response:
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError("an event is not a JSON object")
        yield event


def _message(body: Any) -> str:
    error = body["error"] if isinstance(body, dict) and "error" in body else body
    return str(error["message"] if isinstance(error, dict) and "message" in error else error)[:500]


def _retry_after(headers: Any, default: float) -> float:
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return default


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or str(reason) or type(error).__name__
