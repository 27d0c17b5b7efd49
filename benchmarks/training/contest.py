"""Who is measured: for each arm its script, its environment and its best setting (README.md says what else was tried)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARMS_FOLDER = Path(__file__).resolve().parent / "arms"


@dataclass(frozen=True, slots=True)
class Arm:
    title: str
    script: str
    environment: str | None
    """Its own one under build/benchmarks; none is Luthier's, which has transformers and PEFT."""
    options: dict[str, Any] = field(default_factory=dict)
    builtin: dict[str, Any] = field(default_factory=dict)
    """Options that the small real model does better with."""
    needs_cuda: bool = False
    usual: bool = True
    """Runs without being named by --arms."""

    def settings(self, shape: str) -> dict[str, Any]:
        return {"micro": 4, "precision": "bf16"} | self.options | (self.builtin if shape == "builtin" else {})


ARMS = {
    "luthier": Arm("Luthier, packed", "with_luthier.py", None, {"packing": True}),
    "luthier-padded": Arm("Luthier, rows padded to the longest of four", "with_luthier.py", None, {"packing": False}),
    "trainer": Arm(
        "transformers.Trainer + PEFT, its best setting", "with_trainer.py", None, {"layout": "grouped", "micro": 2}
    ),
    "trainer-recipe": Arm(
        "transformers.Trainer + PEFT, the recipe as users copy it, weights in bfloat16",
        "with_trainer.py",
        None,
        {"layout": "fixed", "checkpointing": True, "precision": "plain"},
    ),
    "trainer-recipe-int8": Arm(
        "transformers.Trainer + PEFT, the recipe as users copy it, in 8 bit",
        "with_trainer.py",
        None,
        {"layout": "fixed", "checkpointing": True, "precision": "plain", "quantize": "int8"},
        usual=False,
    ),
    "trl": Arm(
        "TRL SFTTrainer, its best setting", "with_trl.py", "trl", {"layout": "grouped", "micro": 1}, {"micro": 2}
    ),
    "llamafactory": Arm(
        "LLaMA-Factory, its best setting", "with_llamafactory.py", "llamafactory", {"layout": "grouped", "micro": 2}
    ),
    "unsloth": Arm("Unsloth", "with_unsloth.py", "unsloth", needs_cuda=True),
}
