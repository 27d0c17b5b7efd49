"""Traces that plans are made of, kept for a session of tests: its workers and their forks train the same small models.

A trace is a function of the model's shapes, the method, the pass and how it computes: all of that is the key.
"""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

FOLDER = "LUTHIER_TEST_TRACES"
"""Variable of the environment with the folder that keeps them."""


def keep(patch: pytest.MonkeyPatch) -> None:
    """Let the planner trace what the folder of the environment does not have yet, and nothing twice."""
    from luthier.planning import plan
    from luthier.planning.tracing import Trace

    trace = plan._trace

    def trace_once(inputs: Any, work: Any, *types: Any) -> Trace:
        model, train = inputs.tuned, inputs.train
        weights = [(name, p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()]
        config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
        how = (work, types, train.gradient_checkpointing, train.compile, inputs.model.device, inputs.labels is None)
        key = repr((type(model), weights, config, inputs.method, how, inputs.cluster))
        file = Path(os.environ[FOLDER], sha256(key.encode()).hexdigest())
        if not file.is_file():
            made = file.with_suffix(f".{os.getpid()}")
            made.write_text(json.dumps(trace(inputs, work, *types)))
            made.rename(file)
        return Trace(*json.loads(file.read_text()))

    patch.setattr(plan, "_trace", trace_once)
