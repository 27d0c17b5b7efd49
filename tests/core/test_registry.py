"""A plugin is a file: found by its name, imported when asked."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from luthier.cli.terminal.explain import KINDS, explanation, listing
from luthier.core.errors import UnknownPlugin
from luthier.methods.base import METHODS, Method
from luthier.recipe.config import FAMILIES


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_is_listed_explained_and_named_after_its_file(kind: str) -> None:
    family = KINDS[kind]
    assert family.names()
    for name in family.names():
        assert family.get(name).name == name
        assert name in listing(f"{kind}s")
        text = explanation(kind, name)
        assert len(text.splitlines()[0]) > 20, "the module's docstring comes first"
        for field in family.get(name).model_fields.values():
            assert field.description, f"{kind} {name}: every field says what it is for"


def test_listing_names_imports_no_plugin() -> None:
    code = (
        "import sys; from luthier.methods.base import METHODS; print(METHODS.names());"
        "print('luthier.methods.lora' in sys.modules, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'lora'" in out and "False False" in out


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownPlugin, match=r"unknown method 'loar' \(did you mean 'lora'\?\)"):
        METHODS.get("loar")


def test_another_package_adds_a_method_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("elsewhere")
    exec(
        "from luthier.methods.lora import LoRA\nclass Mine(LoRA):\n    '''Mine.'''\n    strength: float = 1.0\n",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    module.Mine.__module__ = "elsewhere"
    module.Mine.name = "mine"
    found = {"luthier.methods": {"mine": "elsewhere"}}
    monkeypatch.setattr("luthier.core.registry.installed", lambda group: found.get(group, {}))
    assert "mine" in METHODS.names()
    found = METHODS.parse({"name": "mine", "strength": 2})
    assert isinstance(found, Method) and found.spec()["name"] == "mine" and found.spec()["strength"] == 2.0


def test_schema_offers_every_plugin() -> None:
    from luthier.recipe.config import RunConfig

    schema = RunConfig.model_json_schema()
    names = {form["properties"]["name"]["const"] for form in schema["properties"]["method"]["oneOf"]}
    assert names == set(METHODS.names())
    assert set(FAMILIES) == {"method", "task", "format"}
