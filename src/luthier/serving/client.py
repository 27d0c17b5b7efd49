"""A model behind any endpoint that speaks OpenAI's chat completions, streamed with the standard library alone."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urldefrag, urlsplit

from luthier.core.errors import InputError, LuthierError
from luthier.core.strict_json import to_json
from luthier.rendering.example import Message
from luthier.serving.http.guard import is_loopback
from luthier.serving.settings import Asking

KEYS = ("LUTHIER_API_KEY", "OPENAI_API_KEY")
"""Variables that may hold the key, the first that is set."""
SILENCE = 300.0
"""Seconds without a byte after which an endpoint is given up."""
TRIES, LONGEST_WAIT = 4, 30.0
"""How often a busy endpoint is asked, and the seconds between, at most."""
MOST = 2**24
"""Bytes that are read of an answer that is not streamed."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key and the dialogue to an address that nobody named."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Remote:
    """One model of an endpoint."""

    def __init__(self, url: str, model: str | None, told: Callable[[str], None] = lambda _: None) -> None:
        """InputError where the address is none, the key would be seen on its way, or it is not clear which model."""
        self.url, _ = urldefrag(url)
        self.url = self.url.rstrip("/")
        named = urldefrag(url).fragment or model
        self.told = told
        parts = urlsplit(self.url)
        if not parts.hostname or parts.username is not None:
            raise InputError(f"{self.url} is no address of an endpoint", fix="http://HOST:PORT/v1, with the key apart")
        name, self.key = next(((name, key) for name in KEYS if (key := os.environ.get(name, "").strip())), ("", ""))
        if self.key and parts.scheme == "http" and not is_loopback(parts.hostname):
            raise InputError(
                f"{self.url}: the key in {name} would travel to {parts.hostname} unencrypted",
                fix=f"an https address, a tunnel (ssh -L), or unset {name} where the endpoint needs no key",
            )
        self.model = named or self._only()
        self.name = self.model

    def say(self, messages: Sequence[Message], asking: Asking) -> Iterator[str]:
        """The answer piece by piece; leaving the loop closes the connection, which ends the work there.

        InputError where it is refused, LuthierError where it breaks off.
        """
        body = {
            "model": self.model,
            "messages": [{"role": each.role, "content": each.content} for each in messages],
            "temperature": asking.temperature,
            "max_tokens": asking.most,
            "seed": asking.seed,
            "stream": True,
        }
        response = self._open("/chat/completions", body)
        begun = ended = False
        try:
            for event in _events(response):
                if "error" in event:
                    raise LuthierError(f"{self.url}: {self._hidden(_message(event))}")
                choices = event.get("choices") or [{}]
                piece = (choices[0].get("delta") or {}).get("content") or ""
                if piece:
                    begun = True
                    yield piece
                ended = ended or choices[0].get("finish_reason") is not None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LuthierError(f"{self.url}: {_how(begun)} ({_reason(error)})") from None
        finally:
            response.close()
        if not ended:
            raise LuthierError(f"{self.url}: {_how(begun)} (the stream ended without its last event)")

    def models(self) -> list[str]:
        """Names of the models there; none where the endpoint does not tell."""
        try:
            with self._request("/models", None) as response:
                return [str(each["id"]) for each in json.loads(response.read(MOST))["data"]]
        except (urllib.error.HTTPError, ValueError, KeyError, TypeError):
            return []

    def _only(self) -> str:
        try:
            with self._request("/models", None) as response:
                found = [str(each["id"]) for each in json.loads(response.read(MOST))["data"]]
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (ValueError, KeyError, TypeError):
            found = []
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        if len(found) == 1:
            return found[0]
        there = f"there are: {', '.join(found)}" if found else "it does not tell which there are"
        raise InputError(f"{self.url}: which model? {there}", fix="--model NAME")

    def _open(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        """Ask, again where the endpoint is busy."""
        for tries_left in reversed(range(TRIES)):
            try:
                return self._request(path, body)
            except urllib.error.HTTPError as error:
                if error.code == 429 and tries_left:
                    wait = _wait(error.headers, 2.0 ** (TRIES - 1 - tries_left))
                    self.told(f"{self.url} is busy; asking again in {wait:.0f} s")
                    error.close()
                    time.sleep(wait)
                    continue
                raise self._refused(error, asked=True) from None
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from None
        raise AssertionError("the last try returns or raises")

    def _request(self, path: str, body: Mapping[str, Any] | None) -> http.client.HTTPResponse:
        data = None if body is None else to_json(body, ensure_ascii=False).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        if self.key:
            request.add_unredirected_header("Authorization", f"Bearer {self.key}")
        handlers: list[Any] = [_NoRedirect]
        if is_loopback(urlsplit(self.url).hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy knows another machine by that name
        made: http.client.HTTPResponse = urllib.request.build_opener(*handlers).open(request, timeout=SILENCE)
        return made

    def _refused(self, error: urllib.error.HTTPError, *, asked: bool = False) -> InputError:
        """What a status means, and the fix; `asked`: it was a dialogue that was refused."""
        said = self._hidden(_said(error))
        error.close()
        name = next((name for name in KEYS if os.environ.get(name, "").strip()), None)
        if error.code in (401, 403):
            what = f"does not take the key in {name}" if name else "wants a key"
            return InputError(f"{self.url} {what} (HTTP {error.code}{said})", fix=f"export {name or KEYS[0]}=...")
        if error.code == 404:
            found = self.models()
            if found and asked:
                return InputError(
                    f"there is no model {self.model!r} at {self.url}; there are: {', '.join(found)}",
                    fix="--model NAME",
                )
            ending = "" if self.url.endswith("/v1") else f"; such addresses end in /v1: {self.url}/v1"
            return InputError(f"{self.url} is no endpoint of OpenAI's kind (HTTP 404){ending}")
        if error.code == 429:
            return InputError(f"{self.url} is busy (HTTP 429{said})", fix="ask again later")
        if 300 <= error.code < 400:
            return InputError(f"{self.url} points elsewhere: {error.headers.get('location')}", fix="give that address")
        return InputError(f"{self.url} refused the request (HTTP {error.code}{said})")

    def _unreachable(self, error: Exception) -> InputError:
        return InputError(
            f"{self.url} cannot be reached: {_reason(error)}", fix="is the server up, and the port right?"
        )

    def _hidden(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The data of server-sent events until [DONE]. ValueError where one is no JSON object."""
    for raw in response:
        line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError("an event is no JSON object")
        yield event


def _said(error: urllib.error.HTTPError) -> str:
    """`: what the endpoint says`, or nothing."""
    try:
        return f": {_message(json.loads(error.read(MOST)))}"
    except (OSError, ValueError, TypeError, http.client.HTTPException):
        return ""


def _message(body: Any) -> str:
    said = body["error"] if isinstance(body, dict) and "error" in body else body
    return str(said["message"] if isinstance(said, dict) and "message" in said else said)[:500]


def _wait(headers: Any, otherwise: float) -> float:
    """Seconds until a busy endpoint may be asked again, as it says itself."""
    try:
        return min(LONGEST_WAIT, max(0.0, float(headers.get("retry-after", ""))))
    except ValueError:
        return min(LONGEST_WAIT, otherwise)


def _how(begun: bool) -> str:
    return "the answer broke off" if begun else "no answer came"


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or str(reason) or type(error).__name__
