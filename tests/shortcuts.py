"""Shortcuts that all tests and their forks take, for they train the same small models again and again."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FOLDER = "LUTHIER_TEST_FOLDER"
"""Variable of the environment with a folder that the workers and forks of a session share."""


def take(patch: pytest.MonkeyPatch) -> None:
    """No fsync, for no test cuts the power; a fifth of the texts that measure forgetting; no plan is traced twice."""
    patch.setattr(os, "fsync", lambda handle: None)
    _few_texts(patch)
    _keep_traces(patch)


def _few_texts(patch: pytest.MonkeyPatch) -> None:
    from luthier.evaluation import forgetting

    few = "\n".join(forgetting.PROBE.read_text(encoding="utf-8").splitlines()[::5])  # of 10 in a row on each subject
    patch.setattr(forgetting, "PROBE", SimpleNamespace(read_text=lambda encoding: few))


def _keep_traces(patch: pytest.MonkeyPatch) -> None:
    """A trace is a function of the model's shapes, the method, the pass and how it computes: all of that is the key."""
    from luthier.planning import plan
    from luthier.planning.tracing import Trace

    trace = plan._trace

    def trace_once(inputs: Any, work: Any, *types: Any) -> Trace:
        if not os.access(os.environ[FOLDER], os.W_OK):
            return trace(inputs, work, *types)  # of a test that has given up its rights
        model, train = inputs.tuned, inputs.train
        weights = [(name, p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()]
        config = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
        how = (work, types, train.gradient_checkpointing, train.compile, inputs.model.device, inputs.labels is None)
        key = repr((type(model), weights, config, inputs.method, how, inputs.cluster))
        file = Path(os.environ[FOLDER], sha256(key.encode()).hexdigest())
        if not file.is_file():
            made = file.with_suffix(f".{os.getpid()}")  # whole or not at all, for other processes look for it
            made.write_text(json.dumps(trace(inputs, work, *types)))
            made.rename(file)
        return Trace(*json.loads(file.read_text()))

    patch.setattr(plan, "_trace", trace_once)
