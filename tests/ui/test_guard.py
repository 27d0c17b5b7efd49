"""Who may use the page: what MLflow, Jupyter, marimo, Gradio and others got wrong, each as a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from luthier.core.errors import InputError
from luthier.ui.guard import Gate, Token
from luthier.ui.launch import serve_page
from luthier.ui.server import PAGE, REPORTS, SHARED
from tests.ui.conftest import HOST, ORIGIN, PORT, write_run

Stranger = Callable[..., TestClient]


def routes(client: TestClient) -> Iterator[tuple[str, str]]:
    """Method and path of every route that there is."""
    for path, methods in client.app.openapi()["paths"].items():  # type: ignore[attr-defined]
        for method in methods:
            yield method.upper(), path.replace("{name}", "app.js")


def test_every_route_needs_the_cookie(client: TestClient, stranger: Stranger) -> None:
    found = list(routes(client))
    assert len(found) > 25
    for method, path in found:
        answer = stranger(headers={"origin": ORIGIN}).request(method, path)
        assert answer.status_code == 401, (method, path)
        wrong = stranger(headers={"origin": ORIGIN}, cookies={f"luthier-{PORT}": "guess"}).request(method, path)
        assert wrong.status_code == 401, (method, path)


@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:8765", "127.0.0.1:9999", "127.0.0.1", "", "localhost.evil.com:8765"]
)
def test_another_name_is_refused_with_the_cookie_too(client: TestClient, host: str) -> None:
    """DNS rebinding: MLflow CVE-2025-14279; Gradio, Streamlit, TensorBoard, Trackio and SwanLab answer here."""
    assert client.get("/api/runs", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", [HOST, f"localhost:{PORT}", f"[::1]:{PORT}"])
def test_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/runs", headers={"host": host}).status_code in (200, 401)  # a cookie is for one name


def test_two_host_headers_are_refused(client: TestClient) -> None:
    answer = client.get("/api/runs", headers=[("host", HOST), ("host", "evil.com")])  # type: ignore[arg-type]
    assert answer.status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.com", "null", "", f"http://localhost:{PORT}", "http://127.0.0.1:1"])
def test_a_change_must_come_from_the_page(client: TestClient, origin: str) -> None:
    """CSRF: a page of another site, a sandboxed frame (null), another server on this machine."""
    for method, path in routes(client):
        if method not in ("GET", "HEAD"):
            assert client.request(method, path, headers={"origin": origin}).status_code == 403, (method, path)


def test_another_site_cannot_read_either(client: TestClient) -> None:
    for site in ("cross-site", "same-site"):
        assert client.get("/api/runs", headers={"sec-fetch-site": site}).status_code == 403


def test_the_word_works_once(client: TestClient, stranger: Stranger) -> None:
    told: list[str] = []
    token = _gate(client).token
    token.used = lambda: told.append(token.word)
    word = token.word
    first = stranger().get(f"/?token={word}")
    assert first.status_code == 303
    cookie = first.headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and f"luthier-{PORT}=" in cookie
    assert stranger().get(f"/?token={word}").status_code == 401
    assert told == [token.word] and token.word != word
    assert stranger().get(f"/?token={token.word}").status_code == 303
    assert stranger().get(f"/api/runs?token={token.word}").status_code == 401  # only the first page takes it


def _gate(client: TestClient) -> Gate:
    layer: Any = client.app.middleware_stack  # type: ignore[attr-defined]
    while not isinstance(layer, Gate):
        layer = layer.app
    return layer


def test_each_start_has_its_own_secret() -> None:
    """Jupyter Server CVE-2026-40934: a secret that never changed."""
    first, second = Token(), Token()
    assert first.cookie != second.cookie and first.word != second.word
    assert not second.holds(first.cookie)


def test_websockets_are_refused(client: TestClient) -> None:
    """marimo CVE-2026-39987: one WebSocket without the check was a shell."""
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/run/events", headers={"host": HOST}):
        pass


def test_every_answer_has_the_policy(client: TestClient, stranger: Stranger) -> None:
    for answer in (
        client.get("/"),
        client.get("/page/app.js"),
        client.get("/api/runs"),
        client.get("/none"),
        stranger().get("/"),
    ):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for path in (*PAGE.rglob("*"), *(REPORTS / name for name in SHARED)):
        if path.suffix in (".js", ".html", ".css") and "vendor" not in path.parts:
            text = path.read_text(encoding="utf-8")
            for address in ("http://", "https://", "//cdn"):
                places = text.replace("http://www.w3.org/2000/svg", "").split(address)[1:]
                assert not places, (path.name, address, places[0][:60])
            assert "innerHTML" not in text and "dangerouslySetInnerHTML" not in text and "eval(" not in text, path


@pytest.mark.parametrize(
    "name", ["../guard.py", "..%2fguard.py", "%2e%2e/guard.py", "vendor/../../server.py", "/etc/passwd"]
)
def test_files_of_the_page_alone(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}").status_code in (404, 307)
    assert client.get("/page/app.js").status_code == 200
    for shared in SHARED:
        assert client.get(f"/page/{shared}").content == (REPORTS / shared).read_bytes(), (
            "the page's is the reports' own"
        )


@pytest.mark.parametrize(
    "name", ["..", "../data", "first/../../data", "/etc", "first/..", "", ".", "nothing", "first\x00"]
)
def test_runs_of_the_folder_alone(client: TestClient, name: str) -> None:
    """Jupyter Server CVE-2026-35397 and Gradio CVE-2026-28414: roots checked by their spelling."""
    for path in ("/api/run", "/api/run/curves", "/api/run/predictions", "/api/run/exports"):
        assert client.get(path, params={"id": name}).status_code == 404, path
    assert client.get("/api/run/file", params={"id": name, "name": "report.html"}).status_code == 404
    assert client.delete("/api/run", params={"id": name}).status_code == 404


def test_a_link_out_of_the_folder_is_no_run(client: TestClient, root: Path, tmp_path: Path) -> None:
    outside = write_run(tmp_path / "outside")
    (root / "link").symlink_to(outside)
    (root / "first" / "report.html").symlink_to("/etc/passwd")
    client.get("/api/runs")
    assert client.get("/api/run", params={"id": "link"}).status_code == 404
    assert client.get("/api/run/file", params={"id": "first", "name": "report.html"}).status_code == 404


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "metrics.jsonl", "../first/result.json", "adapter/adapter_model.safetensors"]
)
def test_only_what_is_shown_can_be_fetched(client: TestClient, name: str) -> None:
    assert client.get("/api/run/file", params={"id": "first", "name": name}).status_code == 404


def test_a_report_is_shown_in_a_sandbox(client: TestClient, root: Path) -> None:
    """Stored XSS of Jupyter Server: HTML from data without a sandbox."""
    (root / "first" / "report.html").write_text("<script>alert(1)</script>")
    answer = client.get("/api/run/file", params={"id": "first", "name": "report.html"})
    assert answer.status_code == 200 and answer.headers["content-security-policy"].startswith("sandbox")
    assert "allow-same-origin" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize("folder", ["/etc", "/", "..", "{data}/..", "{data}-beside"])
def test_only_named_folders_are_listed(client: TestClient, tmp_path: Path, folder: str) -> None:
    (tmp_path / "data-beside").mkdir()
    given = folder.format(data=tmp_path / "data")
    assert client.get("/api/files", params={"folder": given}).status_code == 400
    inside = client.get("/api/files", params={"folder": str(tmp_path / "data")}).json()
    assert [each["path"] for each in inside["files"]] == [str(tmp_path / "data" / "rows.jsonl")]


@pytest.mark.parametrize(
    "name", ["../../evil.jsonl", "..\\evil.csv", "/etc/cron.d/x.csv", ".hidden.jsonl", "a\nb.jsonl"]
)
def test_an_upload_keeps_to_its_folder(client: TestClient, root: Path, name: str) -> None:
    path = Path(client.post("/api/upload", params={"name": name}, content=b"{}\n").json()["path"])
    assert path.is_relative_to(root / ".ui" / "files") and path.read_bytes() == b"{}\n"
    assert not path.name.startswith(".") and "\n" not in path.name


def test_an_upload_has_a_limit(client: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.ui import work

    monkeypatch.setattr(work, "MOST_UPLOAD", 1000)
    answer = client.post("/api/upload", params={"name": "a.jsonl"}, content=b"x" * 1001)
    assert answer.status_code == 400 and "more than" in answer.json()["error"]["message"]
    parts = client.post("/api/upload", params={"name": "a.jsonl"}, content=iter([b"x" * 600, b"x" * 600]))
    assert parts.status_code == 400
    assert not list((root / ".ui" / "files").glob("*/*"))
    assert client.post("/api/upload", params={"name": "a.exe"}, content=b"x").status_code == 400


def test_a_body_has_a_limit(client: TestClient) -> None:
    from luthier.ui import guard

    large = b'{"text": "' + b"x" * guard.MAX_JSON + b'"}'
    headers = {"content-type": "application/json"}
    assert client.post("/api/recipe", content=large, headers=headers).status_code == 413
    assert client.post("/api/recipe", content=iter([large]), headers=headers).status_code == 413


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/recipe/train", {"name": "../out", "text": "data: builtin:reviews"}),
        ("/api/recipe/train", {"name": "a/b", "text": "data: builtin:reviews"}),
        ("/api/recipe/train", {"name": "-rf", "text": "data: builtin:reviews"}),
        ("/api/recipe/train", {"name": "first", "text": "data: builtin:reviews"}),
        ("/api/recipe/compare", {"name": "c", "text": "data: builtin:reviews", "options": {"methods": "lora; rm"}}),
        ("/api/recipe/compare", {"name": "d", "text": "data: builtin:reviews", "options": {"budget": "--on slurm"}}),
        ("/api/serve", {"runs": ["../../etc"]}),
        ("/api/serve", {"runs": ["--engine"]}),
        ("/api/serve", {"runs": ["first/exports/.."]}),
        ("/api/serve", {"runs": ["first/exports/../../../etc"]}),
        ("/api/serve", {"runs": ["first/exports/none"]}),
    ],
)
def test_nothing_but_names_becomes_a_command(client: TestClient, path: str, body: dict[str, Any]) -> None:
    assert client.post(path, json=body).status_code in (400, 404)
    assert client.get("/api/jobs").json()["jobs"] == []


def test_another_host_is_told_what_it_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: [each.close() for each in sockets])
    serve_page(tmp_path / "runs", [], "0.0.0.0", 0, browser=True)
    said = capsys.readouterr()
    assert "token=" in said.out and "Other machines can connect" in said.err
    serve_page(tmp_path / "runs", [], "127.0.0.1", 0, browser=False)
    assert "token=" in capsys.readouterr().out


def test_a_taken_port_is_one_clear_error(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot be bound"):
        serve_page(tmp_path / "runs", [], "127.0.0.1", taken.getsockname()[1], browser=False)


def test_open_to_a_network_a_name_that_is_pointed_here_is_refused() -> None:
    gate = Gate(None, token=Token(), host="0.0.0.0", port=80)
    assert gate.answers_to("192.168.1.5:80") and gate.answers_to("192.168.1.5")
    assert not gate.answers_to("evil.com:80") and not gate.answers_to("evil.com")
