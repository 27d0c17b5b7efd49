"""Each method's default learning rate beside the best one found, from sweep.jsonl and whole_sweep.jsonl.

    python -m benchmarks.methods.rates                    # of all searches
    python -m benchmarks.methods.rates "smollm2-sst2 whole" reviews

`at default` is the held-out loss at the default of today; between two rates that were tried it is interpolated over the
logarithm of the rate and marked with ~, beyond them it is unknown. The last table has the best rates on decoders of
different widths, and the power of the width with which they fall.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from math import log
from types import SimpleNamespace
from typing import Any

from benchmarks.methods.evidence import SWEEP, WHOLE_SWEEP, lines
from luthier.methods.base import METHODS

BASES = {"sst2": ("BertModel", 384), "reviews": ("Qwen2ForCausalLM", 192)}
SMOLLM2 = ("LlamaForCausalLM", 576)
"""Class and width of the base of a task; tasks that are not named have SmolLM2."""


def default(arm: str, task: str) -> float:
    """The learning rate that a method has on the base of a task when the recipe gives none."""
    kind, width = BASES.get(task, SMOLLM2)
    base: Any = type(kind, (SimpleNamespace,), {})(config=SimpleNamespace(hidden_size=width))
    return METHODS.parse(arm).learning_rate(base)


def searches() -> dict[tuple[str, str], dict[float, float]]:
    """(task, method) -> held-out loss of each rate that was tried; the second half of a search has `whole` behind its task."""
    found: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for file, behind in ((SWEEP, ""), (WHOLE_SWEEP, " whole")):
        for line in lines(file):
            if line.get("loss") is not None:
                found[line["task"] + behind, line["arm"]][line["lr"]] = line["loss"]
    return found


def loss_at(rate: float, losses: dict[float, float]) -> str:
    """The loss at a rate, or between its neighbors; empty beyond those that were tried."""
    below = max((tried for tried in losses if tried <= rate * 1.01), default=None)
    above = min((tried for tried in losses if tried >= rate * 0.99), default=None)
    if below is None or above is None:
        return ""
    if below >= above:
        return f"{losses[above]:.3f}"
    share = log(rate / below) / log(above / below)
    return f"~{(1 - share) * losses[below] + share * losses[above]:.3f}"


def table(found: dict[tuple[str, str], dict[float, float]]) -> list[str]:
    """A row for each search."""
    made = [
        "| task | method | default | best | best / default | at default | at best | at best / 3 | at best x 3 |",
        "|---" * 9 + "|",
    ]
    for (task, arm), losses in found.items():
        best, own = min(losses, key=losses.__getitem__), default(arm, task)
        beside = [loss_at(rate, losses) for rate in (own, best, best / 3, best * 3)]
        made.append(f"| {task} | {arm} | {own:g} | {best:g} | {best / own:.2g} | {' | '.join(beside)} |")
    return made


def by_width(found: dict[tuple[str, str], dict[float, float]]) -> list[str]:
    """The best rate of each method on the embedded base and on SmolLM2, and the power with which it falls."""
    made = ["| method | task | best, 192 wide | best, 576 wide | power of the width |", "|---" * 5 + "|"]
    for (task, arm), losses in found.items():
        if task in BASES or ("reviews", arm) not in found:
            continue
        narrow = min(found["reviews", arm], key=found["reviews", arm].__getitem__)
        wide = min(losses, key=losses.__getitem__)
        made.append(f"| {arm} | {task} | {narrow:g} | {wide:g} | {log(wide / narrow) / log(576 / 192):+.2f} |")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*")
    given = parser.parse_args()
    found = searches()
    asked = {key: losses for key, losses in found.items() if not given.tasks or key[0] in given.tasks}
    print("\n".join([*table(asked), "", *by_width(found)]))


if __name__ == "__main__":
    main()
