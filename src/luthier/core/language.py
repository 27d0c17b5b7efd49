"""The language that a user reads: English sentences become Chinese where they are shown, and nowhere else.

Code, logs, exceptions and files speak English. Whoever shows a sentence to a person passes it through `translated`,
which finds it in the catalog (`locale/zh_CN`, made by `tools/catalog.py` from the strings in the source). An f-string
is there with numbered places, `"{0}: {1} rows are refused"`; a sentence that was made from it is found by its fixed
parts, and what stood in its places is put into the translation. So a message stays one plain f-string where it arises.
"""

import gettext
import locale
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

LANGUAGES = {"en": "English", "zh": "中文"}
PSEUDO = "pseudo"
"""A language for tests: every sentence that the catalog has stands in ⟦brackets⟧."""
PLACE = re.compile(r"(?<!\{)\{\d+\}(?!\})")
LEAST, FEW = 4, 10
"""Letters that the fixed parts of a message must have. With few, its values must be numbers or names, without blanks:
else it would fit what it does not mean."""
MOST = 12
"""Separators of a text where it is tried to be one message and an addition; a longer text is a list."""
INSIDE = 8
"""The same for a message that is looked for inside a longer text."""
SEPARATORS = re.compile(r"\n[ -]*|; |: |, ")
"""Between the sentences of a longer message."""
CHINESE = {"; ": "；", ": ": "：", ", ": "，"}
_chosen: list[str] = []


def speak(name: str) -> None:
    """Use a language from now on, whatever the environment says. ValueError if there is no such language."""
    if name not in (*LANGUAGES, PSEUDO):
        raise ValueError(f"unknown language {name!r}; choose one of: {', '.join(LANGUAGES)}")
    _chosen[:] = [name]


def language() -> str:
    """`en` or `zh`: as chosen, else LUTHIER_LANG, else the locale (LC_ALL, LC_MESSAGES, LANG), else English."""
    if _chosen:
        return _chosen[0]
    for name in ("LUTHIER_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            found = re.split(r"[_.@-]", value)[0].lower()
            return found if found in (*LANGUAGES, PSEUDO) else "en"
    found = (locale.getlocale()[0] or "").lower()  # Windows and macOS have no such variables
    return "zh" if found.startswith(("zh", "chinese")) else "en"


def translated(text: str, into: str | None = None, *, inside: bool = False) -> str:
    """`text` in the language of the user, or in the one that is named. A sentence that is not known stays English.

    With `inside`, known sentences are also looked for inside of it: for messages, which put a name before a fault, and
    not for the user's data.
    """
    into = into or language()
    return text if into == "en" else _whole(text, into) or _in_parts(text, into, inside)


def filled(message: str, *values: object, into: str | None = None) -> str:
    """A message with numbered places, translated and with values in its places: for templates of pages."""
    into = into or language()
    known = catalog().get(message, message)
    return (known if into == "zh" else f"⟦{message}⟧" if into == PSEUDO else message).format(*values)


@cache
def catalog() -> dict[str, str]:
    """Every known message -> its translation."""
    found = gettext.translation("luthier", Path(__file__).parents[1] / "locale", ["zh_CN"], fallback=True)
    # gettext looks up one message at a time; the sentences have to be found by their fixed parts.
    return {key: value for key, value in vars(found).get("_catalog", {}).items() if key}


@cache
def _patterns() -> list[tuple[list[str], str]]:
    """(fixed parts, message) of every message with places, those with the longest fixed parts first."""
    parts = [([part for part in _fixed(key) if part], key) for key in catalog() if PLACE.search(key)]
    kept = [(fixed, key) for fixed, key in parts if _letters(fixed) >= LEAST]
    return sorted(kept, key=lambda each: -sum(map(len, each[0])))


@cache
def _fragments() -> list[tuple[list[str], str]]:
    """As `_patterns`, and with messages without places: what is looked for inside a longer text."""
    plain = [([key], key) for key in catalog() if not PLACE.search(key) and " " in key.strip()]
    kept = [each for each in [*plain, *_patterns()] if _letters(each[0]) >= INSIDE]
    return sorted(kept, key=lambda each: -sum(map(len, each[0])))


def _letters(fixed: list[str]) -> int:
    return sum(map(str.isalpha, "".join(fixed)))


def _fixed(message: str) -> list[str]:
    """What stands between the places of a message, as it is in a sentence made from it."""
    return [part.replace("{{", "{").replace("}}", "}") for part in PLACE.split(message)]


@cache
def _form(message: str) -> re.Pattern[str]:
    first, *others = _fixed(message)
    # Of two places without anything between them the first ends at a blank: the second is an addition to a name.
    places = ("([^ ]*)" if not part and place < len(others) else "(.*?)" for place, part in enumerate(others, 1))
    form = (place + re.escape(part) for place, part in zip(places, others, strict=True))
    return re.compile("".join([re.escape(first), *form]))


def _whole(text: str, into: str) -> str | None:
    """The translation of a text that is one message of the catalog; None if it is none."""
    if text in catalog():
        return _told(text, (), into)
    for fixed, message in _patterns():
        match = _form(message).fullmatch(text) if all(part in text for part in fixed) else None
        values = match.groups() if match else ()
        if _letters(fixed) < FEW and any(" " in value for value in values):
            continue
        # A value with half a pair of brackets is cut out of another message.
        if match and all(value.count("(") == value.count(")") for value in values):
            return _told(message, values, into)
    return None


def _told(message: str, values: Sequence[str], into: str) -> str:
    """A message of the catalog with values in its places, which are translated where they are sentences."""
    shown = [translated(value, into) if " " in value else value for value in values]
    if into == PSEUDO:
        return f"⟦{message.format(*values) if values else message}⟧"
    return catalog()[message].format(*shown) if values else catalog()[message]


def _in_parts(text: str, into: str, inside: bool) -> str:
    """Translate what is known of a longer message: its longest end, its longest beginning, or what it consists of."""

    def rest(part: str) -> str:
        return translated(part, into, inside=inside) if _may_be_one(part) else part

    cuts = list(SEPARATORS.finditer(text))
    for cut in cuts[:MOST]:
        head, tail = text[: cut.start()], text[cut.end() :]
        if added := _whole(cut[0] + tail, into):  # what is added to a sentence may begin with its separator
            return rest(head) + added
        if _may_be_one(tail) and (known := _whole(tail, into)):
            return rest(head) + _between(cut[0], into) + known
    for cut in reversed(cuts[:MOST]):
        if _may_be_one(text[: cut.start()]) and (known := _whole(text[: cut.start()], into)):
            return known + _between(cut[0], into) + rest(text[cut.end() :])
    if not cuts:
        return _around(text, into) if inside else text
    cut = min(cuts, key=lambda each: ("\n;:,".index(each[0][0]), each.start()))
    parts = text.split(cut[0])
    shown = [rest(part) for part in parts]
    return (cut[0] if shown == parts else _between(cut[0], into)).join(shown)


def _may_be_one(part: str) -> bool:
    """Whether a part of a text may be a message: a word is a key, or one of a list of names or of the user's."""
    return " " in part.strip()


def _between(separator: str, into: str) -> str:
    return separator if into == PSEUDO else CHINESE.get(separator, separator)


def _around(text: str, into: str) -> str:
    """A text with the longest message that stands in it translated, and then what is around that."""
    for fixed, message in _fragments():
        if all(part in text for part in fixed):
            found = re.search(rf"(?<![\w']){_form(message).pattern}(?![\w'])", text)
            if found and text[: found.start()].count("'") % 2 == 0:  # what is quoted is the user's
                before, after = text[: found.start()], text[found.end() :]
                return _around(before, into) + _told(message, found.groups(), into) + _around(after, into)
    return text
