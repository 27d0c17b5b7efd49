"""Detects the languages of texts, where the extra `languages` is installed."""

from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec

MOST_TEXTS = 20_000
"""Texts that are classified; of more, evenly spaced ones."""
FEWEST_LETTERS = 12
SURE = 0.9
"""Below this probability, or with fewer letters, the language of a text counts as UNSURE."""
UNSURE = "not sure"


def available() -> bool:
    """Is py3langid installed?"""
    return find_spec("py3langid") is not None


def languages(texts: Iterable[str]) -> dict[str, int]:
    """How many texts there are of each language (ISO 639-1), the most frequent first. Needs `available`."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    found: Counter[str] = Counter()
    for text in texts:
        # A Chinese or Japanese character counts as several letters.
        weight = sum(1 if char.isascii() else 3 for char in text[:200] if char.isalpha())
        name, sure = identifier.classify(text) if weight >= FEWEST_LETTERS else (UNSURE, 1.0)
        found[name if sure >= SURE else UNSURE] += 1
    return dict(found.most_common())
