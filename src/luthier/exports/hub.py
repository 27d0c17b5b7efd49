"""A run on a model hub: the folder is prepared and checked, reported, and uploaded only if asked."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from luthier.builtin import BASE
from luthier.core.errors import InputError, install, require_package
from luthier.core.shell import shell_line
from luthier.exports.base import EXPORTS, Bounds, Export, Opened, Tuned, card, is_local

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
KEPT_BACK = ("export.json", "manifest.json")
"""Files that are not uploaded: they are about the run and name its folder."""
OLD_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
"""Files of an earlier upload to the same repository: they would be loaded instead of the new ones."""
PAGES = {"huggingface": "https://huggingface.co/", "modelscope": "https://modelscope.cn/models/"}


def hub_id(value: str) -> str:
    """Return the id of a model on a hub; ValueError if it is not one."""
    if not ID.fullmatch(value):
        raise ValueError(f"should be USER/MODEL, the id on the hub, not {value!r}")
    return value


class Hub(Export):
    """An adapter or merged model for Hugging Face's or ModelScope's hub; nothing leaves this machine without push=true.

    The token is that of the hub's own login or environment; it is in no recipe and no report.
    """

    repo: Annotated[str, AfterValidator(hub_id)]
    """Repository on the hub: USER/MODEL."""
    site: Literal["huggingface", "modelscope"] = "huggingface"
    """Which hub."""
    form: Literal["adapter", "merged"] = "adapter"
    """What is uploaded."""
    base: Annotated[str, AfterValidator(lambda value: value and hub_id(value))] = ""
    """Hub id of the base, for the card and the adapter's settings; needed if the recipe has a folder."""
    license: str = ""
    """License in the model card, such as apache-2.0. The base's own may demand one: it is yours to state."""
    private: bool = True
    """Only you and your organization see it."""
    push: bool = False
    """Upload it; otherwise only report what would be uploaded."""

    @property
    def on_plain_base(self) -> bool:
        return self.form == "merged"

    def refuse(self, tuned: Tuned) -> None:
        self._form().refuse(tuned)
        if self.form == "adapter" and not self.base and is_local(tuned.base):
            why = f"{tuned.run}: an adapter has to name its base on the hub, and the recipe has {tuned.base}"
            raise InputError(why, fix="base=USER/BASE if the hub has exactly those weights, or form=merged")
        if self.site == "modelscope":
            require_package(self.site, "site=modelscope: ModelScope's package is not installed", install(self.site))
        if self.push and self.site == "huggingface":
            from huggingface_hub import constants, get_token

            if constants.HF_HUB_OFFLINE:
                raise InputError("push=true: HF_HUB_OFFLINE is set, so uploads are off", fix="unset HF_HUB_OFFLINE")
            if get_token() is None:
                raise InputError("push=true: no token for Hugging Face's hub", fix="hf auth login, or set HF_TOKEN")

    def required_bytes(self, tuned: Tuned) -> int:
        return self._form().required_bytes(tuned)

    def bounds(self, tuned: Tuned) -> Bounds:
        return self._form().bounds(tuned)

    def write(self, tuned: Tuned, folder: Path) -> None:
        self._form().write(self._public(tuned), folder)
        _refuse_secrets(tuned, folder)

    def open(self, tuned: Tuned, folder: Path) -> Opened:
        return self._form().open(tuned, folder)

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        return self._form().use(tuned, folder)

    def card(self, tuned: Tuned, parity: Sequence[dict[str, Any]], checked: Mapping[str, Any]) -> str:
        use = self.use(tuned, self.repo)
        if self.site == "modelscope":
            fetch = ["from modelscope import snapshot_download", f'folder = snapshot_download("{self.repo}")']
            use = [*fetch, *(line.replace(f'"{self.repo}"', "folder") for line in use)]
        more = {"license": self.license} if self.license else {}
        return card(replace(self._public(tuned), run=self.repo), self.form, use, parity, checked, **more)

    def publish(self, tuned: Tuned, place: Path) -> list[str]:
        _refuse_secrets(tuned, place)
        files = [each for each in sorted(place.iterdir()) if each.is_file() and each.name not in KEPT_BACK]
        page = PAGES[self.site] + self.repo
        listed = [f"  {each.name}  {each.stat().st_size:,} bytes" for each in files]
        total = f"{len(files)} files, {sum(each.stat().st_size for each in files):,} bytes"
        license = self.license or "none stated (license=...)"
        what = f"to {page} ({'private' if self.private else 'public'}; license: {license}):"
        if not self.push:
            given = self.model_dump(exclude_defaults=True).items()
            settings = [f"{key}={str(value).lower() if key == 'private' else value}" for key, value in given]
            note = "weights that are there already are replaced. Nothing has left this machine. To upload:"
            command = shell_line("luthier", "export", Path(tuned.run), "--to", "hub", *settings, "push=true")
            return [f"would be uploaded {what}", *listed, f"{total}; {note}", f"  {command}"]
        names = [each.name for each in files]
        try:
            self._upload(place, repo_id=self.repo, allow_patterns=names, commit_message=f"{self.form} by Luthier")
        except InputError:
            raise
        except Exception as error:  # the hubs' clients raise many kinds
            why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            for token in _tokens():
                why = why.replace(token, "***")
            fix = "check the token's rights and the network, then rerun the same command"
            raise InputError(f"{page}: the upload failed: {why}. {place} is complete", fix=fix) from None
        return [f"uploaded {what}", *listed, total]

    def _upload(self, place: Path, **upload: Any) -> None:
        """Make the repository if there is none and upload the folder; InputError if others would see it."""
        api: Any
        if self.site == "huggingface":
            from huggingface_hub import HfApi

            api = HfApi()
            api.create_repo(self.repo, private=self.private, exist_ok=True)
            if self.private and not api.model_info(self.repo).private:
                raise InputError(f"{self.repo} is there already and public: nothing was uploaded", fix="private=false")
            api.upload_folder(folder_path=place, delete_patterns=OLD_WEIGHTS, **upload)
            return
        from modelscope.hub.api import HubApi
        from modelscope.hub.constants import ModelVisibility

        api = HubApi()
        if not api.repo_exists(self.repo):
            visibility = ModelVisibility.PRIVATE if self.private else ModelVisibility.PUBLIC
            api.create_model(self.repo, visibility=visibility, **({"license": self.license} if self.license else {}))
        elif self.private:
            why = f"{self.repo} is there already, and its visibility is not known here: nothing was uploaded"
            raise InputError(why, fix="private=false if others may see it, or a new name")
        api.upload_folder(folder_path=str(place), **upload)

    def _form(self) -> Export:
        return EXPORTS.get(self.form)()

    def _public(self, tuned: Tuned) -> Tuned:
        return replace(tuned, base=self.base) if self.base else tuned


def _tokens() -> list[str]:
    from huggingface_hub import get_token

    named = (os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELSCOPE_API_TOKEN"))
    return [each for each in (*named, get_token()) if each]


def _refuse_secrets(tuned: Tuned, folder: Path) -> None:
    """InputError if a file to be uploaded contains a folder of this machine or a token. The weights have no text."""
    folders = [Path(tuned.run), tuned.weights, BASE]
    if is_local(tuned.base) and tuned.base != "builtin":
        folders.append(Path(tuned.base).expanduser())
    secrets = dict.fromkeys(_tokens(), "a token")
    secrets |= {str(each.resolve()): "a folder of this machine" for each in folders}
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name not in KEPT_BACK and file.suffix != ".safetensors":
            text = file.read_text(encoding="utf-8", errors="replace")
            if what := next((what for secret, what in secrets.items() if secret in text), ""):
                raise InputError(f"{file.name} contains {what}, and would be uploaded: nothing was uploaded")
