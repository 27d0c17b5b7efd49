"""Text and commands without the secrets in them."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_SECRET_KEY = re.compile(r"(token|key|secret|password|passwd|credentials?)$", re.IGNORECASE)


_SECRET_VALUE = re.compile(
    r"\b(?:hf|api_org|ghp|gho|ghs|glpat|sk|pk|xox[a-z])[_-][\w-]{8,}"  # tokens of Hugging Face, GitHub and others
    r"|\bgithub_pat_\w{8,}|\bAKIA[0-9A-Z]{12,}|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]+"  # ..., AWS, JSON web tokens
    r"|(?<=://)(?:[^/\s]+|[^/\s:]+:[^\s@]+)(?=@)"  # user:password@ in an address, whatever stands in the password
    r"|(?<=:/)(?!/)[^/\s]+:[^/\s]+(?=@)"  # the same where a path has made one slash of two
    r"|(?i:(?<=token=)|(?<=key=)|(?<=secret=)|(?<=password=)|(?<=signature=)|(?<=sig=))[^&\s]+"
)


HIDDEN = "***"


def redacted(text: str) -> str:
    """Text without what looks like a token or a password in it."""
    return _SECRET_VALUE.sub(HIDDEN, text)


def redacted_command(words: Sequence[str]) -> list[str]:
    """A command line whose secrets are left out: by the look of a value, or by the key or option it belongs to."""
    shown: list[str] = []
    secret = False
    for word in words:
        key, equals, _ = word.partition("=")
        named = bool(_SECRET_KEY.search(key)) and (bool(equals) or key.startswith("--"))
        shown.append(HIDDEN if secret else f"{key}={HIDDEN}" if named and equals else redacted(word))
        secret = named and not equals
    return shown


def command_with(settings: Sequence[str]) -> str:
    """The command line of this process with these settings added, to be pasted into a shell."""
    own = Path(sys.argv[0]).name in ("luthier", "__main__.py")
    return shlex.join(["luthier", *redacted_command(sys.argv[1:]), *settings] if own else settings)
