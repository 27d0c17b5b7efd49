"""Commands to paste into a shell, and texts for other eyes: without secrets and without names of folders."""

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_ABSOLUTE = re.compile(r"(?<![\w.~:/<-])/(?:[^/\s\"'<>]+/)+")
_SECRET_KEY = re.compile(r"(token|key|secret|password|passwd|credentials?)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"\b(?:hf|api_org|ghp|gho|ghs|glpat|sk|pk|xox[a-z])[_-][\w-]{8,}"  # tokens of Hugging Face, GitHub and others
    r"|\bgithub_pat_\w{8,}|\bAKIA[0-9A-Z]{12,}|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]+"  # ..., AWS, JSON web tokens
    r"|(?<=://)(?:[^/\s]+|[^/\s:]+:[^\s@]+)(?=@)"  # user:password@ in an address, whatever stands in the password
    r"|(?<=:/)(?!/)[^/\s]+:[^/\s]+(?=@)"  # the same where a path has made one slash of two
    r"|(?i:(?<=token=)|(?<=key=)|(?<=secret=)|(?<=password=)|(?<=signature=)|(?<=sig=))[^&\s]+"
)
HIDDEN = "***"
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def shell_line(*words: object) -> str:
    """A line for the shell. A path that begins with a dash gets ./ in front, so that it is not read as an option."""
    return shlex.join(f"./{word}" if isinstance(word, Path) and str(word)[0] == "-" else str(word) for word in words)


def setting(key: str, value: object) -> str:
    """`key=value` as the command line reads it: a value is YAML, so text that is something else there gets quotes."""
    import yaml

    text = str(value)
    try:
        same = yaml.safe_load(text) == text and not text.lower().replace(".", "").replace("e", "").isdigit()
    except yaml.YAMLError:
        same = False
    return f"{key}={text if same else json.dumps(text, ensure_ascii=False)}"


def after_training(run: Path, recipe: Path, model: str, method: str, task: str, lr: float) -> list[str]:
    """Three next commands: use the run, compare it, train on your own data or with another setting."""
    if task in ("classify", "regress"):
        again = shell_line("luthier", "train", recipe, setting("run", f"{run}-2"), f"train.lr={lr / 2:g}")
        use = [shell_line("luthier", "evaluate", run), again]
    else:
        use = [shell_line("luthier", "chat", run), shell_line("luthier", "chat", run, "--untuned")]
    own = ["--model", model, "--data", "YOUR_FILE.jsonl", "--method", method]
    return [*use, shell_line("luthier", "train", *own)]


def literal(text: str) -> str:
    """A text as Python code has it."""
    return json.dumps(text, ensure_ascii=False)


def home(path: str) -> str:
    """A path below the home folder with ~ in place of the folder: it names no user and is still found."""
    return str(Path("~") / Path(path).relative_to(Path.home())) if Path(path).is_relative_to(Path.home()) else path


def public(text: str) -> str:
    """A text for pages that are passed on: no path in it names the user's folders.

    Paths below the working folder become relative, those below the home folder begin with ~, and of all others only
    the last name is left.
    """
    for folder, short in ((Path.cwd(), ""), (Path.home(), "~/"), (Path.home().resolve(), "~/")):
        if folder != Path(folder.anchor):
            text = re.sub(rf"(?<![\w.~/-]){re.escape(str(folder))}(?:/|(?![\w.-]))", short, text)
    text = text.replace("'~/", "~/'")  # a shell expands ~ only outside of quotes
    return _ABSOLUTE.sub("", text)


def shown(text: str) -> str:
    """A text of the data with control characters made visible: they could move the cursor or reverse the line."""
    return UNSEEN.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def redacted(text: str) -> str:
    """A text with what looks like a token or a password replaced by ***."""
    return _SECRET_VALUE.sub(HIDDEN, text)


def redacted_command(words: Sequence[str]) -> list[str]:
    """A command line without its secrets, found by the look of a value or by the key or option that it belongs to."""
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
