"""The catalog of translations is whole: every message of the source has its Chinese, with the same places."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from luthier.core.language import PLACE
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import catalog

FIX = "python tools/catalog.py update, translate what is empty, python tools/catalog.py compile"
MESSAGES = [message for message in catalog.read() if message.id]


def test_the_catalog_has_the_messages_of_the_source() -> None:
    found, known = ({m.id for m in each if m.id} for each in (catalog.extract(), MESSAGES))
    assert found == known, FIX


def test_every_message_is_translated() -> None:
    assert [m.id for m in MESSAGES if not m.string or m.fuzzy] == [], FIX


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(PLACE.findall, id="places"),
        pytest.param(lambda text: re.findall(r"\[/?[a-z ]*\]", text), id="markup"),
        pytest.param(lambda text: re.findall(r"`[^`]+`", text), id="code"),
        pytest.param(lambda text: "\n" * text.count("\n"), id="lines"),
    ],
)
def test_a_translation_has_the_same_parts(what: Callable[[str], list[str]]) -> None:
    other = [(m.id, m.string) for m in MESSAGES if Counter(what(m.id)) != Counter(what(m.string))]
    assert other == []


def test_the_compiled_catalog_is_that_of_the_translations() -> None:
    assert catalog.PO.with_suffix(".mo").read_bytes() == catalog.compiled(), FIX
