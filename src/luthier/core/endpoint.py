"""Requests to a model behind an endpoint: its API key goes to that address and to no other."""

import http.client
import ipaddress
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from luthier.core.strict_json import to_json

CONNECTION_ERRORS = (OSError, http.client.HTTPException)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send key and texts to an address that the user did not give."""

    def redirect_request(self, *_: Any) -> None:
        return None


def is_loopback(host: str) -> bool:
    """Is it a name or address of this machine that no other machine can reach?"""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_url(url: str, body: Any, key: str, timeout: float) -> http.client.HTTPResponse:
    """GET a URL, or POST `body` as JSON, with at most `timeout` seconds without data.

    Raises HTTPError for a status other than 2xx (so for a redirect), or one of CONNECTION_ERRORS.
    """
    data = None if body is None else to_json(body, ensure_ascii=False).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    if key:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    # A proxy would resolve a loopback name to another machine.
    proxy = [urllib.request.ProxyHandler({})] if is_loopback(urlsplit(url).hostname or "") else []
    response: http.client.HTTPResponse = urllib.request.build_opener(_NoRedirect, *proxy).open(request, timeout=timeout)
    return response
