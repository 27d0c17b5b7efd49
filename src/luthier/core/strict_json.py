"""JSON as every reader takes it: Python would write NaN and Infinity, for which JSON has no word."""

import json
import math
from typing import Any


def to_json(value: Any, **options: Any) -> str:
    """`json.dumps(value, **options)`, with null in place of each number that is not finite."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:  # rare, so only then is everything looked through
        return json.dumps(_finite(value), allow_nan=False, **options)


def number(value: float) -> float | None:
    """`value`, or None where it is not finite."""
    return value if math.isfinite(value) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return {_finite(key): _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
