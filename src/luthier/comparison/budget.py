"""How long each run of a comparison may be: tokens, or a time that is shared by all runs, as optimizer steps."""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.core.errors import InputError
from luthier.core.units import duration
from luthier.data.prepared import Prepared
from luthier.training.settings import TrainConfig, total_steps

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> float:
    """`90s`, `10m`, `1.5h`: seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not found or not float(found[1]):
        raise InputError(f"--budget: {text!r} is no time", fix="--budget 10m, or 90s, or 2h")
    return float(found[1]) * UNITS[found[2]]


def tokens_a_step(data: Prepared, train: TrainConfig) -> float:
    """On average, without padding."""
    return sum(data.rows.lengths) / len(data.rows) * min(train.batch_size, len(data.rows))


def steps_for_tokens(tokens: int, data: Prepared, train: TrainConfig) -> int:
    """InputError where that is less than a step."""
    steps = int(tokens / tokens_a_step(data, train))
    if steps < 1:
        least = int(tokens_a_step(data, train)) + 1
        raise InputError(
            f"--tokens {tokens} is less than one step of {train.batch_size} rows, about {least} tokens",
            fix=f"--tokens {50 * least}, or a smaller train.batch_size",
        )
    return steps


def steps_for_time(
    seconds: float, step_seconds: Sequence[float], apart: float, *, seeds: int, workers: int, most: int
) -> int:
    """As many steps as all runs together can take in the time; `apart` is what a run needs beside its training.

    `step_seconds` are those of one step of each method. `most` are the recipe's own steps. InputError where the time is
    too short for one step of each.
    """
    runs = len(step_seconds) * seeds
    left = seconds * workers - runs * apart
    each = sum(step_seconds) * seeds
    if left < each:
        least = (runs * apart + 20 * each) / workers
        raise InputError(
            f"--budget {duration(seconds)} is too short for {runs} runs: measuring and saving alone takes about "
            f"{duration(runs * apart / workers)}, one step of each {duration(each / workers)}",
            fix=f"--budget {int(least / 60) + 1}m, fewer --methods or --seeds, or evaluate.rows=100",
        )
    return min(most, int(left / each))


def own_steps(data: Prepared, train: TrainConfig) -> int:
    """The recipe's."""
    return total_steps(train, len(data.rows))
