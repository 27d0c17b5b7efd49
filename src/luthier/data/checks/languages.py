"""Detects the scripts of texts (English and German are both Latin), and with the extra `languages` their languages."""

import re
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec

import numpy as np

BLOCKS = """
Latin:41-5A Latin:61-7A Latin:C0-D6 Latin:D8-F6 Latin:F8-24F Greek:370-3FF Cyrillic:400-52F Armenian:530-58F
Hebrew:590-5FF Arabic:600-6FF Arabic:750-77F Devanagari:900-97F Bengali:980-9FF Tamil:B80-BFF Telugu:C00-C7F
Thai:E00-E7F Georgian:10A0-10FF Korean:1100-11FF Khmer:1780-17FF Latin:1E00-1EFF Greek:1F00-1FFF kana:3040-30FF
Korean:3130-318F Han:3400-4DBF Han:4E00-9FFF Korean:AC00-D7AF Han:F900-FAFF Arabic:FB50-FDFF Arabic:FE70-FEFE
Latin:FF21-FF3A Latin:FF41-FF5A kana:FF66-FF9D Han:20000-323AF
"""
"""Blocks of letters, by their first and last code point. Other characters (digits, signs, emoji) are not counted."""
RANGES = [(name, int(a, 16), int(b, 16)) for name, a, b in (re.split("[:-]", block) for block in BLOCKS.split())]
STARTS, ENDS = (np.array([each[at] for each in RANGES]) for at in (1, 2))
MAIN = 0.8
"""A text is of one script where this share of its letters is; else it is mixed."""
KANA = 0.05
"""Han characters count as Japanese where at least this share of a text's Han and kana is kana."""
MOST_TEXTS = 20_000
"""Texts whose language is detected; of more, evenly spaced ones."""
FEWEST_LETTERS = 12
SURE = 0.9
"""Below this probability, or with fewer letters, the language of a text counts as UNSURE."""
UNSURE = "not sure"


def script(text: str) -> str:
    """`Latin`, `Chinese`, `Japanese`, ..., `mixed: Chinese, Latin` (the two most frequent), or `no letters`."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    places = np.searchsorted(STARTS, points, side="right") - 1
    inside = (places >= 0) & (points <= ENDS[places])
    counts: Counter[str] = Counter()
    for place, count in enumerate(np.bincount(places[inside], minlength=len(RANGES)).tolist()):
        if count:
            counts[RANGES[place][0]] += count
    han, kana = counts.pop("Han", 0), counts.pop("kana", 0)
    if han + kana:
        counts["Japanese" if kana >= KANA * (han + kana) else "Chinese"] = han + kana
    if not counts:
        return "no letters"
    (first, most), *others = counts.most_common(2)
    return first if most >= MAIN * counts.total() else "mixed: " + ", ".join(sorted([first, others[0][0]]))


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
