"""Pages and charts are tested in English, whatever has been translated since."""

from collections.abc import Iterator

import pytest

from luthier.core import language


@pytest.fixture(autouse=True)
def without_catalog(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(language, "_catalog", dict)
    monkeypatch.setattr(language, "_chosen", ["en"])
    for cached in (language._patterns, language._fragments):
        cached.cache_clear()
    yield
    for cached in (language._patterns, language._fragments):
        cached.cache_clear()
