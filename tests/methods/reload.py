"""A program: load saved models in a process that has nothing else, and print how far the logits are off, as JSON.

`reload.py SHELF luthier` imports luthier and then PEFT; `reload.py SHELF peft` PEFT alone, and luthier at the end.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

SHELF, WAY = Path(sys.argv[1]), sys.argv[2]
if WAY == "luthier":
    importlib.import_module("luthier")
    assert "peft" not in sys.modules, "it waits for PEFT, and does not import it"

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

FOUND: dict[str, dict[str, Any]] = {}


def load(how: str, folder: Path, found: dict[str, Any]) -> Any:
    classifies = folder.parent.name == "bert"
    auto = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModelForCausalLM
    if how == "whole":
        return auto.from_pretrained(folder)
    if how == "auto":
        own = peft.AutoPeftModelForSequenceClassification if classifies else peft.AutoPeftModelForCausalLM
        return own.from_pretrained(folder)
    model = auto.from_pretrained(folder.parent / "base")
    if how == "transformers":
        found["missing"] = sorted(model.load_adapter(str(folder)).missing_keys)
        return model
    return peft.PeftModel.from_pretrained(model, folder)


def measure(how: str, folder: Path) -> None:
    """Largest difference of the logits, or the error."""
    found = FOUND.setdefault(f"{folder.name}-{folder.parent.name}", {})
    told, x = load_file(folder.parent / "told.safetensors"), load_file(folder.parent / "ids.safetensors")["ids"]
    try:
        with torch.no_grad():
            logits = load(how, folder, found).eval()(input_ids=x).logits
    except Exception as error:  # whatever it is, the test wants to see it
        found[how] = f"{type(error).__name__}: {error}"
        return
    logits = logits[:, -x.shape[1] :] if logits.ndim == 3 else logits  # prompts answer for their own tokens too
    found[how] = float((logits - told[folder.name]).abs().max())


torch.set_num_threads(1)
folders = [folder for folder in sorted(SHELF.glob("*/*/")) if folder.name != "base"]
for folder in folders:
    ways = ("peft", "auto", "transformers") if WAY == "luthier" else ("peft",)
    for how in ways if (folder / "adapter_config.json").is_file() else ("whole",):
        measure(how, folder)
if WAY == "peft":
    assert "luthier" not in sys.modules
    importlib.import_module("luthier")
    for folder in folders:
        if (folder / "adapter_config.json").is_file():
            measure("peft and then luthier", folder)
print(json.dumps(FOUND))
