"""What papers report about a method, with the place to look it up.

Each figure is on the paper's own models and data, so it is shown beside a measured value, never ranked against it.
"""

import json
from functools import cache
from importlib import resources


@cache
def paper_results() -> dict[str, dict[str, str]]:
    """Variant name -> {text, source}: what the paper's table says, and which table."""
    file = resources.files("luthier.comparison").joinpath("paper_results.json")
    return dict(json.loads(file.read_text(encoding="utf-8")))
