"""Commands as people paste them into a shell, and paths as others may see them."""

import json
import re
import shlex
from pathlib import Path

import yaml

_ABSOLUTE = re.compile(r"(?<![\w.~:/<-])/(?:[^/\s\"'<>]+/)+")


def shell_line(*words: object) -> str:
    """A line for the shell. A path that begins with a dash gets ./ in front, so that it is not read as an option."""
    return shlex.join(f"./{word}" if isinstance(word, Path) and str(word)[0] == "-" else str(word) for word in words)


def setting(key: str, value: object) -> str:
    """`key=value` as the command line reads it: a value is YAML, so text that is something else there gets quotes."""
    text = str(value)
    try:
        same = yaml.safe_load(text) == text
    except yaml.YAMLError:
        same = False
    return f"{key}={text if same else json.dumps(text, ensure_ascii=False)}"


def after_training(run: Path, recipe: Path, model: str, method: str, task: str, lr: float) -> list[str]:
    """Three commands to go on with: use it, compare it, your own data or another setting."""
    if task in ("classify", "regress"):
        again = shell_line("luthier", "train", recipe, setting("run", f"{run}-2"), f"train.lr={lr / 2:g}")
        use = [shell_line("luthier", "evaluate", run), again]
    else:
        use = [shell_line("luthier", "chat", run), shell_line("luthier", "chat", run, "--base")]
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
