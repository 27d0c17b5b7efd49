"""A run on a model hub: the folder prepared and proved, what would be uploaded told, and uploaded only when asked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator

from luthier.core.errors import InputError, MissingExtra, install
from luthier.core.shell import command
from luthier.exports.base import EXPORTS, Export
from luthier.exports.checking.card import card, is_local
from luthier.exports.checking.proof import Player
from luthier.exports.checking.tuned import Tuned

if TYPE_CHECKING:
    from torch import nn

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
KEPT_BACK = ("export.json", "manifest.json")
"""Stay here: they are about the run and name its folder."""
OLD_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
"""Of an earlier upload to the same repository: they would be loaded in place of the new ones."""
PAGES = {"huggingface": "https://huggingface.co/", "modelscope": "https://modelscope.cn/models/"}


def hub_id(value: str) -> str:
    """The id of a model on a hub as it is; ValueError where it is none."""
    if not ID.fullmatch(value):
        raise ValueError(f"should be USER/MODEL, the id on the hub, not {value!r}")
    return value


class Hub(Export):
    """An adapter or merged model for Hugging Face's or ModelScope's hub; nothing leaves this machine but by push=true.

    The token is that of the hub's own login or environment; it stands in no recipe and no report.
    """

    repo: Annotated[str, AfterValidator(hub_id)]
    """Where it goes: USER/MODEL."""
    site: Literal["huggingface", "modelscope"] = "huggingface"
    """Which hub."""
    form: Literal["adapter", "merged"] = "adapter"
    """What is uploaded."""
    base: Annotated[str, AfterValidator(lambda value: value and hub_id(value))] = ""
    """Hub id of the base, for the card and the adapter's settings; needed where the recipe has a folder."""
    license: str = ""
    """Licence in the model card, such as apache-2.0. The base's own may demand one: it is yours to state."""
    private: bool = True
    """Only you and your organisation see it."""
    push: bool = False
    """Upload it; else only tell what would be uploaded."""

    @property
    def needs(self) -> Literal["adapter", "merged"]:
        return self.form

    def refuse(self, tuned: Tuned) -> None:
        self._form().refuse(tuned)
        if self.form == "adapter" and not self.base and is_local(tuned.base):
            raise InputError(
                f"{tuned.run}: an adapter has to name its base on the hub, and the recipe has {tuned.base}",
                fix="base=USER/BASE if the hub has those very weights, or form=merged",
            )
        if self.site == "modelscope" and find_spec("modelscope") is None:
            raise MissingExtra("site=modelscope: ModelScope's package is not installed", fix=install("modelscope"))
        if self.push and self.site == "huggingface":
            _refuse_without_way_to_huggingface()

    def room(self, tuned: Tuned) -> int:
        return self._form().room(tuned)

    def limit(self, tuned: Tuned) -> float:
        return self._form().limit(tuned)

    def write(self, tuned: Tuned, folder: Path) -> None:
        self._form().write(self._public(tuned), folder)
        _refuse_secrets(tuned, folder)

    def open(self, tuned: Tuned, folder: Path) -> nn.Module | Player:
        return self._form().open(tuned, folder)

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        return self._form().use(tuned, folder)

    def card(self, tuned: Tuned, proof: Sequence[dict[str, Any]], checked: Mapping[str, Any]) -> str:
        use = self.use(tuned, self.repo)
        if self.site == "modelscope":
            fetch = ["from modelscope import snapshot_download", f'folder = snapshot_download("{self.repo}")']
            use = [*fetch, *(line.replace(f'"{self.repo}"', "folder") for line in use)]
        more = {"license": self.license} if self.license else {}
        return card(replace(self._public(tuned), run=self.repo), self.form, use, proof, checked, **more)

    def deliver(self, tuned: Tuned, place: Path) -> list[str]:
        _refuse_secrets(tuned, place)
        files = [each for each in sorted(place.iterdir()) if each.is_file() and each.name not in KEPT_BACK]
        seen = "private" if self.private else "public"
        page = PAGES[self.site] + self.repo
        listed = [f"  {each.name}  {each.stat().st_size:,} bytes" for each in files]
        total = f"{len(files)} files, {sum(each.stat().st_size for each in files):,} bytes"
        licence = self.license or "none stated (license=...)"
        if not self.push:
            return [
                f"would be uploaded to {page} ({seen}; licence: {licence}):",
                *listed,
                f"{total}; weights that lie there already are replaced. Nothing has left this machine. To upload:",
                f"  {self._command(tuned)}",
            ]
        send = _to_huggingface if self.site == "huggingface" else _to_modelscope
        try:
            send(self, place, [each.name for each in files])
        except InputError:
            raise
        except Exception as error:  # the hubs' clients raise many kinds
            said = (str(error).strip().splitlines() or [""])[0]
            raise InputError(
                f"{page}: the upload failed: {type(error).__name__}: {_hidden(said)}. {place} is whole",
                fix="see to the token's rights and the network, then the same command again",
            ) from None
        return [f"uploaded to {page} ({seen}; licence: {licence}):", *listed, total]

    def _form(self) -> Export:
        return EXPORTS.get(self.form)()

    def _public(self, tuned: Tuned) -> Tuned:
        return replace(tuned, base=self.base) if self.base else tuned

    def _command(self, tuned: Tuned) -> str:
        given = {key: value for key, value in self.model_dump(exclude_defaults=True).items() if key != "push"}
        settings = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items()]
        return command("luthier", "export", Path(tuned.run), "--to", "hub", *settings, "push=true")


def _refuse_without_way_to_huggingface() -> None:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise InputError("push=true: HF_HUB_OFFLINE is set, so nothing can be uploaded", fix="unset HF_HUB_OFFLINE")
    if get_token() is None:
        raise InputError("push=true: there is no token of Hugging Face's hub", fix="hf auth login, or set HF_TOKEN")


def _to_huggingface(hub: Hub, place: Path, names: list[str]) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(hub.repo, private=hub.private, exist_ok=True)
    if hub.private and not api.model_info(hub.repo).private:
        raise InputError(f"{hub.repo} is there already and public: nothing was uploaded", fix="private=false")
    api.upload_folder(
        repo_id=hub.repo,
        folder_path=place,
        allow_patterns=names,
        delete_patterns=OLD_WEIGHTS,
        commit_message=f"{hub.form} by Luthier",
    )


def _to_modelscope(hub: Hub, place: Path, names: list[str]) -> None:
    from modelscope.hub.api import HubApi
    from modelscope.hub.constants import ModelVisibility

    api = HubApi()
    if not api.repo_exists(hub.repo):
        visibility = ModelVisibility.PRIVATE if hub.private else ModelVisibility.PUBLIC
        api.create_model(hub.repo, visibility=visibility, **({"license": hub.license} if hub.license else {}))
    elif hub.private:
        raise InputError(
            f"{hub.repo} is there already, and its visibility is not known here: nothing was uploaded",
            fix="private=false where others may see it, or a new name",
        )
    api.upload_folder(
        repo_id=hub.repo, folder_path=str(place), allow_patterns=names, commit_message=f"{hub.form} by Luthier"
    )


def _tokens() -> list[str]:
    from huggingface_hub import get_token

    named = (os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN"))
    return [each for each in (*named, get_token()) if each]


def _hidden(text: str) -> str:
    for token in _tokens():
        text = text.replace(token, "***")
    return text


def _refuse_secrets(tuned: Tuned, folder: Path) -> None:
    """InputError where a file to be uploaded holds a folder of this machine or a token. The weights have no text."""
    from luthier.builtin import BASE

    folders = [Path(tuned.run), tuned.weights, BASE]
    if is_local(tuned.base) and tuned.base != "builtin":
        folders.append(Path(tuned.base).expanduser())
    told = {str(each.resolve()): "a folder of this machine" for each in folders} | dict.fromkeys(_tokens(), "a token")
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name not in KEPT_BACK and file.suffix != ".safetensors":
            text = file.read_text(encoding="utf-8", errors="replace")
            for each, what in told.items():
                if each in text:
                    raise InputError(f"{file.name} holds {what}, and would be uploaded with it: nothing was uploaded")
