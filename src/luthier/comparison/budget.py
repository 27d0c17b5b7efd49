"""The length of each run of a comparison in optimizer steps, from a number of tokens or a time for all runs."""

from collections.abc import Sequence

from luthier.core.errors import InputError
from luthier.core.units import duration
from luthier.data.prepared import Prepared
from luthier.training.settings import TrainConfig


def tokens_per_step(data: Prepared, train: TrainConfig) -> float:
    """Mean number of tokens of an optimizer step, without padding."""
    return sum(data.rows.lengths) / len(data.rows) * min(train.batch_size, len(data.rows))


def steps_for_tokens(tokens: int, data: Prepared, train: TrainConfig) -> int:
    """Steps that take `tokens` tokens. InputError where that is less than one step."""
    steps = int(tokens / tokens_per_step(data, train))
    if steps < 1:
        least = int(tokens_per_step(data, train)) + 1
        raise InputError(
            f"--tokens {tokens} is less than one step of {train.batch_size} rows, about {least} tokens",
            fix=f"--tokens {50 * least}, or a smaller train.batch_size",
        )
    return steps


def steps_for_time(
    seconds: float, step_seconds: Sequence[float], overhead: float, *, seeds: int, workers: int, most: int
) -> int:
    """Steps of each run so that all runs together take `seconds`, at most the recipe's own `most` steps.

    `step_seconds` holds the seconds of one step of each method, `overhead` the seconds that a run needs beside its
    training. InputError where the time is too short for one step of each.
    """
    runs = len(step_seconds) * seeds
    left = seconds * workers - runs * overhead
    each = sum(step_seconds) * seeds
    if left < each:
        least = (runs * overhead + 20 * each) / workers
        raise InputError(
            f"--budget {duration(seconds)} is too short for {runs} runs: measuring and saving alone takes about "
            f"{duration(runs * overhead / workers)}, one step of each {duration(each / workers)}",
            fix=f"--budget {int(least / 60) + 1}m, fewer --methods or --seeds, or evaluate.rows=100",
        )
    return min(most, int(left / each))
