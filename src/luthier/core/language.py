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
from functools import cache
from pathlib import Path

LANGUAGES = {"en": "English", "zh": "中文"}
PSEUDO = "pseudo"
"""A language for tests: every sentence that the catalog has stands in ⟦brackets⟧."""
PLACE = re.compile(r"(?<!\{)\{\d+\}(?!\})")
LEAST = 4
"""Letters that the fixed parts of a sentence must have: with fewer it would fit nearly everything."""
SEPARATORS = {"\n": "\n", "; ": "；", ": ": "：", ", ": "，"}
"""Between the sentences of a longer message -> the same in Chinese, in the order in which it is taken apart."""
_chosen: list[str] = []


def choose(name: str) -> None:
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


def translated(text: str, into: str | None = None) -> str:
    """`text` in the language of the user, or in the one that is named. A sentence that is not known stays English."""
    into = into or language()
    return text if into == "en" else _whole(text, into) or _in_parts(text, into, [*SEPARATORS])


def filled(message: str, *values: object, into: str | None = None) -> str:
    """A message with numbered places, translated and with values in its places: for templates of pages."""
    into = into or language()
    known = _catalog().get(message, message)
    return (known if into == "zh" else f"⟦{message}⟧" if into == PSEUDO else message).format(*values)


@cache
def _catalog() -> dict[str, str]:
    """Every known message -> its translation."""
    found = gettext.translation("luthier", Path(__file__).parents[1] / "locale", ["zh_CN"], fallback=True)
    # gettext looks up one message at a time; the sentences have to be found by their fixed parts.
    return {key: value for key, value in vars(found).get("_catalog", {}).items() if key}


@cache
def _patterns() -> list[tuple[list[str], str]]:
    """(fixed parts, message) of every message with places, those with the longest fixed parts first."""
    parts = [([part for part in _fixed(key) if part], key) for key in _catalog() if PLACE.search(key)]
    kept = [(fixed, key) for fixed, key in parts if sum(map(str.isalpha, "".join(fixed))) >= LEAST]
    return sorted(kept, key=lambda each: -sum(map(len, each[0])))


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
    catalog = _catalog()
    if text in catalog:
        return catalog[text] if into == "zh" else f"⟦{text}⟧"
    for fixed, message in _patterns():
        if all(part in text for part in fixed) and (match := _form(message).fullmatch(text)):
            values = [translated(value, into) if " " in value else value for value in match.groups()]
            return catalog[message].format(*values) if into == "zh" else f"⟦{message.format(*values)}⟧"
    return None


def _in_parts(text: str, into: str, separators: list[str]) -> str:
    """Translate what is known of a longer message: its lines, and the parts of each."""
    if not separators:
        return _whole(text, into) or text
    first, *others = separators
    if first not in text:
        return _in_parts(text, into, others)
    head, tail = text.split(first, 1)
    if added := _whole(first + tail, into):  # what is added to a sentence may begin with its separator
        return (_whole(head, into) or _in_parts(head, into, others)) + added
    parts = _whole(head, into) or _in_parts(head, into, others), translated(tail, into)
    shown = first if into == PSEUDO or parts == (head, tail) else SEPARATORS[first]
    return shown.join(parts)
