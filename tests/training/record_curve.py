"""Records the golden curve: a short LoRA run on the embedded base and reviews.

python -m tests.training.record_curve
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from luthier.pipeline.train import train
from luthier.recipe.config import RunConfig
from luthier.runs.folder import RunFolder
from luthier.runs.provenance import environment

FILE = Path(__file__).parent / "demo_curve.json"
SETTINGS = [
    "train.steps=12",
    "train.evaluate_every=6",
    "evaluate.generate=0",
    "evaluate.rows=40",
    "data.validation_limit=40",
]


def curve() -> dict[str, Any]:
    """Training and held-out losses of the run."""
    from luthier.builtin import DEMO

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(RunConfig.load(DEMO, [*SETTINGS, f"run={run}"]))
        history = RunFolder(run).history()
    return {
        "training": [round(record["loss"], 6) for record in history if "loss" in record],
        "held_out": [round(record["validation_loss"], 6) for record in history if "validation_loss" in record],
    }


if __name__ == "__main__":
    recorded = curve() | {"environment": environment() | {"command": ["python", "-m", "tests.training.record_curve"]}}
    FILE.write_text(json.dumps(recorded, indent=1) + "\n")
