"""The commands that follow a choice."""

from collections.abc import Sequence

from luthier.core.shell import shell_line
from luthier.planning.advisor.rank import Ranking

COMPARED = 4
"""Most methods that a comparison is suggested for."""


def next_commands(choice: Ranking, given: Sequence[str], *, quantize: str) -> list[str]:
    """The command that trains with the first method, and one that compares it with those it is tied with.

    `given` holds the recipe's arguments as typed, `quantize` is the recipe's own model.quantize.
    """
    if not choice.ranked:
        return []
    kept = [word for word in given if not word.startswith(("method", "model.quantize="))]
    first, tied = choice.ranked[0], choice.ties()
    settings = [word for word in first.settings if word.startswith("model.quantize=")]
    if first.quantize == "none" and quantize != "none":
        settings = ["model.quantize=none"]
    commands = [["luthier", "train", *kept, "--method", first.preset, *settings]]
    form = next((one.quantize for one in tied if one.name != one.preset), None)
    if form is not None:  # those that need a quantized base can only be compared on one
        tied = [one for one in tied if one.quantize == form]
        kept = [*kept, f"model.quantize={form}"]
    if len(tied) > 1:
        names = ",".join(one.preset for one in tied[:COMPARED])
        commands.append(["luthier", "compare", *kept, "--methods", names])
    return [shell_line(*words) for words in commands]
