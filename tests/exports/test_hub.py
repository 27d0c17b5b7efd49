"""Nothing leaves the machine unasked, and what leaves it holds no folder and no token of it."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pytest

from luthier.core.errors import ConfigError, InputError, MissingExtra
from luthier.pipeline.export import export
from luthier.recipe.parse import parse_export

TOKEN = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"


@pytest.fixture
def run(run: Callable[..., Path]) -> Path:
    return run()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hugging Face's client, which refuses arguments that the real one has not, with a token to use."""
    made = create_autospec(huggingface_hub.HfApi, instance=True)
    made.model_info.return_value = SimpleNamespace(private=True)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return made


def sent(place: Path, names: list[str]) -> str:
    """All that is readable in what is uploaded."""
    return "\n".join((place / name).read_bytes().decode("utf-8", "replace") for name in names)


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_dry_run_tells_all_and_calls_nobody(
    run: Path, monkeypatch: pytest.MonkeyPatch, form: str, model_folder: Callable[..., Path]
) -> None:
    def unasked(*_: Any, **__: Any) -> None:
        raise AssertionError("a call over the network")

    monkeypatch.setattr(socket.socket, "connect", unasked)
    monkeypatch.setattr(socket, "getaddrinfo", unasked)
    monkeypatch.setattr(huggingface_hub, "HfApi", unasked)
    settings = ["repo=me/first", f"form={form}", "base=org/base", "license=apache-2.0"]
    report = export(run, parse_export("hub", settings))
    assert report["parity"][0]["held"]
    told = "\n".join(report["messages"])
    assert "https://huggingface.co/me/first (private; license: apache-2.0)" in told
    weights = "adapter_model.safetensors" if form == "adapter" else "model.safetensors"
    place = run / "exports/hub"
    assert f"{weights}  {(place / weights).stat().st_size:,} bytes" in told and "export.json" not in told
    command = report["messages"][-1].strip()
    chosen = "" if form == "adapter" else " form=merged"
    assert command == f"luthier export {run} --to hub repo=me/first{chosen} base=org/base license=apache-2.0 push=true"
    page = (place / "README.md").read_text()
    assert 'license: "apache-2.0"' in page and 'base_model: "org/base"' in page and 'from_pretrained("me/first"' in page
    assert str(run) not in page and str(model_folder("llama")) not in page
    if form == "adapter":
        assert json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"


def test_push_uploads_what_was_told_and_no_more(run: Path, api: Any, model_folder: Callable[..., Path]) -> None:
    report = export(run, parse_export("hub", ["repo=me/first", "base=org/base", "push=true"]))
    api.create_repo.assert_called_once_with("me/first", private=True, exist_ok=True)
    (given,) = [call.kwargs for call in api.upload_folder.call_args_list]
    place, names = given["folder_path"], given["allow_patterns"]
    assert (
        given["repo_id"] == "me/first" and place == run / "exports/hub" and "*.safetensors" in given["delete_patterns"]
    )
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(names)
    assert not {"export.json", "manifest.json"} & set(names)
    text = sent(place, names)
    for secret in (str(run), str(model_folder("llama")), TOKEN):
        assert secret not in text, secret
    told = "\n".join(report["messages"])
    assert told.startswith("uploaded to https://huggingface.co/me/first (private; license: none stated")
    assert all(name in told for name in names)
    assert TOKEN not in told + (place / "export.json").read_text() + (run / "recipe.yaml").read_text()


def test_a_public_repository_is_not_taken_for_a_private_one(run: Path, api: Any) -> None:
    api.model_info.return_value = SimpleNamespace(private=False)
    with pytest.raises(InputError, match="public: nothing was uploaded"):
        export(run, parse_export("hub", ["repo=me/first", "base=org/base", "push=true"]))
    api.upload_folder.assert_not_called()
    export(run, parse_export("hub", ["repo=me/first", "base=org/base", "push=true", "private=false"]))
    assert api.create_repo.call_args.kwargs["private"] is False


def test_a_failed_upload_leaves_the_folder_and_hides_the_token(run: Path, api: Any) -> None:
    api.upload_folder.side_effect = OSError(f"403 for {TOKEN}")
    with pytest.raises(InputError, match=r"the upload failed: OSError: 403 for \*\*\*") as told:
        export(run, parse_export("hub", ["repo=me/first", "base=org/base", "push=true"]))
    assert TOKEN not in str(told.value) and (run / "exports/hub/adapter_model.safetensors").is_file()


def test_what_would_give_away_this_machine_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.exports.adapter import Adapter

    write = Adapter.write
    for text, what in ((str(run), "a folder of this machine"), (TOKEN, "a token")):
        monkeypatch.setenv("HF_TOKEN", TOKEN)

        def leaking(self: Adapter, tuned: Any, folder: Path, text: str = text) -> None:
            write(self, tuned, folder)
            (folder / "notes.txt").write_text(f"made in {text}")

        monkeypatch.setattr(Adapter, "write", leaking)
        with pytest.raises(InputError, match=rf"notes\.txt contains {what}"):
            export(run, parse_export("hub", ["repo=me/first", "base=org/base"]))
        assert not (run / "exports/hub").exists()


def test_what_cannot_be_is_said_before_anything_is_loaded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, said in (
        (["repo=first"], "repo: should be USER/MODEL, the id on the hub, not 'first'"),
        (["repo=me/my model"], "repo: should be USER/MODEL"),
        (["repo=me/first", "site=elsewhere"], "site: should be 'huggingface' or 'modelscope'"),
        (["repo=me/first", "base=../up"], "base: should be USER/MODEL"),
        (["repoo=me/first"], "repo: is needed, and has no default\n  - repoo: unknown key (did you mean 'repo'?)"),
        ([], "repo: is needed"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            parse_export("hub", settings)
    with pytest.raises(ConfigError, match="token"):
        parse_export("hub", ["repo=me/first", f"token={TOKEN}"])
    with pytest.raises(InputError, match=r"has to name its base on the hub.*\n.*base=USER/BASE"):
        export(run, parse_export("hub", ["repo=me/first"]))
    push = ["repo=me/first", "base=org/base", "push=true"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        export(run, parse_export("hub", push))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match=r"no token.*\n.*hf auth login"):
        export(run, parse_export("hub", push))
    monkeypatch.setattr("luthier.core.errors.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install 'modelscope>="):
        export(run, parse_export("hub", ["repo=me/first", "base=org/base", "site=modelscope"]))
    assert not (run / "exports").exists()


def test_modelscope_gets_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the calls of modelscope 1.40; its package is not needed for the test."""
    calls: list[tuple[str, Any]] = []

    class HubApi:
        there = False

        def repo_exists(self, repo_id: str) -> bool:
            return HubApi.there

        def create_model(self, model_id: str, visibility: int, license: str = "") -> None:
            calls.append(("create", (model_id, visibility, license)))

        def upload_folder(
            self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str
        ) -> None:
            calls.append(("upload", (repo_id, folder_path, allow_patterns)))

    for name in ("modelscope", "modelscope.hub", "modelscope.hub.api", "modelscope.hub.constants"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["modelscope.hub.api"].HubApi = HubApi  # type: ignore[attr-defined]
    visibility = SimpleNamespace(PRIVATE=1, PUBLIC=5)
    sys.modules["modelscope.hub.constants"].ModelVisibility = visibility  # type: ignore[attr-defined]
    monkeypatch.setattr("luthier.core.errors.find_spec", lambda name: True)
    settings = ["repo=me/first", "base=org/base", "site=modelscope", "license=mit", "push=true"]
    report = export(run, parse_export("hub", settings))
    assert calls[0] == ("create", ("me/first", 1, "mit"))
    assert calls[1][1][:2] == ("me/first", str(run / "exports/hub")) and "export.json" not in calls[1][1][2]
    assert report["messages"][0].startswith("uploaded to https://modelscope.cn/models/me/first (private")
    assert 'snapshot_download("me/first")' in (run / "exports/hub/README.md").read_text()
    HubApi.there = True
    with pytest.raises(InputError, match="visibility is not known"):
        export(run, parse_export("hub", settings))
