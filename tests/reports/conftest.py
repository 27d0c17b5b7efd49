"""Pages and charts are tested in English, whatever has been translated since."""

import pytest

from luthier.core import language
from tests.conftest import use_catalog


@pytest.fixture(autouse=True)
def without_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    use_catalog(monkeypatch, {})
    monkeypatch.setattr(language, "_chosen", ["en"])
