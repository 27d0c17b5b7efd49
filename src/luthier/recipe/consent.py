"""Code and addresses that stand in a run's recipe.yaml are used only where the user says so.

A recipe may name a Python file (`evaluate.check`), the code that comes with a model (`model.trust_remote_code`) and the
address of a judge, which gets prompts, answers and a key. In a recipe of the user's own, or typed on the command line,
that is meant. In a run folder or at a URL, which may come from anybody, it is asked about.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from luthier.builtin import BASE
from luthier.core.errors import InputError
from luthier.core.files import sha256
from luthier.core.shell import setting, shell_line
from luthier.evaluation.records.settings import EvaluateConfig
from luthier.models.settings import ModelConfig
from luthier.recipe.parse import RecipeSource

Allow = bool | Callable[[str], bool]
"""May all of it be used? Or who is asked about each."""


def uses(model: ModelConfig, evaluate: EvaluateConfig | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """What in these blocks runs code or sends data, each with {key that asks for it: key=value, to be typed again}."""
    if model.trust_remote_code:
        folder = BASE if model.path == "builtin" else Path(model.path).expanduser()
        code = sorted(folder.glob("*.py")) if folder.is_dir() else []
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in code)).hexdigest()[:12]
        known = f" ({', '.join(file.name for file in code[:5])}, SHA-256 {digest})" if code else ""
        what = f"run the Python code that comes with the model {model.path}{known}"
        yield what, {"model.trust_remote_code": "model.trust_remote_code=true"}
    if evaluate is not None and evaluate.check is not None:
        file = Path(evaluate.check)
        known = f" (SHA-256 {sha256(file)[:12]})" if file.is_file() else ""
        typed = setting("evaluate.check", evaluate.check)
        yield f"run the Python file {file.absolute()}{known}", {"evaluate.check": typed}
    if evaluate is not None and (judge := evaluate.judge) is not None:
        key = f", and the key in ${judge.key_env}," if judge.key_env else ""
        named = {"evaluate.judge.url": judge.url, "evaluate.judge.key_env": judge.key_env}
        what = f"send prompts and answers{key} to {urlsplit(judge.url).hostname}"
        yield what, {name: setting(name, value) for name, value in named.items() if value}


def require(
    recipe: RecipeSource,
    allow: Allow,
    model: ModelConfig,
    evaluate: EvaluateConfig | None = None,
    *,
    typed: Sequence[str] = (),
    blocks: Collection[str] = (),
    flag: str = "--allow-code",
) -> None:
    """InputError where the recipe of a run would run code or send data and nobody allows it.

    `typed` are the overrides of this command, which may be those of `blocks`; `flag` is its option that allows all.
    """
    given = [f"{override.partition('=')[0].strip()}." for override in typed]
    for what, keys in uses(model, evaluate):
        key = next(iter(keys))
        if allow is True or all(any(f"{name}.".startswith(each) for each in given) for name in keys):
            continue
        if callable(allow) and allow(f"{key} in {recipe} would {what}"):
            continue
        ways = [flag] if flag else []
        ways += [shell_line(*keys.values())] if key.partition(".")[0] in blocks else []
        raise InputError(
            f"{key} in {recipe} would {what}, which nobody asked for on this command line",
            fix=f"look at it first, then give {' or '.join(ways)} with the same command",
        )


def refuse_foreign(
    recipe: RecipeSource | None,
    model: ModelConfig,
    evaluate: EvaluateConfig | None,
    typed: Sequence[str],
    allow: Allow,
) -> list[str]:
    """What a recipe given on the command line will run or send, for the user to see.

    InputError where it lies at a URL, or is the recipe.yaml of a run folder, and nobody has typed or allows it.
    """
    its_own = isinstance(recipe, Path) and recipe.name == "recipe.yaml"
    beside = ("environment.json", "comparison.json") if its_own else ()
    if isinstance(recipe, str) or (recipe is not None and any(recipe.with_name(name).exists() for name in beside)):
        require(recipe, allow, model, evaluate, typed=typed, blocks=("model", "evaluate"), flag="")
    return [f"{next(iter(keys))} will {what}" for what, keys in uses(model, evaluate)]
