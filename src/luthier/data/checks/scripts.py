"""In which scripts a text is written. A script is no language: English and German are both Latin here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

RANGES = (
    ("Latin", 0x41, 0x5A),
    ("Latin", 0x61, 0x7A),
    ("Latin", 0xC0, 0xD6),
    ("Latin", 0xD8, 0xF6),
    ("Latin", 0xF8, 0x24F),
    ("Greek", 0x370, 0x3FF),
    ("Cyrillic", 0x400, 0x52F),
    ("Armenian", 0x530, 0x58F),
    ("Hebrew", 0x590, 0x5FF),
    ("Arabic", 0x600, 0x6FF),
    ("Arabic", 0x750, 0x77F),
    ("Devanagari", 0x900, 0x97F),
    ("Bengali", 0x980, 0x9FF),
    ("Tamil", 0xB80, 0xBFF),
    ("Telugu", 0xC00, 0xC7F),
    ("Thai", 0xE00, 0xE7F),
    ("Georgian", 0x10A0, 0x10FF),
    ("Korean", 0x1100, 0x11FF),
    ("Khmer", 0x1780, 0x17FF),
    ("Latin", 0x1E00, 0x1EFF),
    ("Greek", 0x1F00, 0x1FFF),
    ("kana", 0x3040, 0x30FF),
    ("Korean", 0x3130, 0x318F),
    ("Han", 0x3400, 0x4DBF),
    ("Han", 0x4E00, 0x9FFF),
    ("Korean", 0xAC00, 0xD7AF),
    ("Han", 0xF900, 0xFAFF),
    ("Arabic", 0xFB50, 0xFDFF),
    ("Arabic", 0xFE70, 0xFEFE),
    ("Latin", 0xFF21, 0xFF3A),
    ("Latin", 0xFF41, 0xFF5A),
    ("kana", 0xFF66, 0xFF9D),
    ("Han", 0x20000, 0x323AF),
)
"""Blocks of letters, by their first and last character. What stands in none (digits, signs, emoji) is not counted."""
MAIN = 0.8
"""A text is of one script where this share of its letters is; else it is mixed."""
KANA = 0.05
"""Han characters count as Japanese where at least this share of a text's Han and kana is kana."""


def script(text: str) -> str:
    """`Latin`, `Chinese`, `Japanese`, ..., `mixed: Chinese, Latin` (the two most frequent), or `no letters`."""
    import numpy as np

    starts = np.array([first for _, first, _ in RANGES])
    ends = np.array([last for _, _, last in RANGES])
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    places = np.searchsorted(starts, points, side="right") - 1
    inside = (places >= 0) & (points <= ends[places])
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
    if most >= MAIN * counts.total():
        return first
    return "mixed: " + ", ".join(sorted([first, others[0][0]]))


def scripts(texts: Iterable[str]) -> dict[str, int]:
    """How many texts there are of each script, the most frequent first."""
    return dict(Counter(map(script, texts)).most_common())
