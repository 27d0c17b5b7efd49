"""A program: load saved models in processes that have nothing else, and print how far the logits are off, as JSON.

`reload.py SHELF` imports transformers, and forks for each way to import the rest: `luthier` imports luthier and then PEFT;
`peft` PEFT alone, and luthier at the end; `looked for` looks for PEFT in between, and prints the types that PEFT knows.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

for each in ("transformers.modeling_utils", "bitsandbytes", "torchao"):  # what PEFT will import, if it is there
    if importlib.util.find_spec(each):
        importlib.import_module(each)
SHELF = Path(sys.argv[1])
FOUND: dict[str, dict[str, Any]] = {}


@cache
def base(folder: Path) -> Any:
    auto = (
        transformers.AutoModelForSequenceClassification if folder.name == "bert" else transformers.AutoModelForCausalLM
    )
    return auto.from_pretrained(folder / "base")


def load(how: str, folder: Path, found: dict[str, Any]) -> Any:
    classifies = folder.parent.name == "bert"
    auto = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModelForCausalLM
    peft: Any = importlib.import_module("peft")
    if how == "whole":
        return auto.from_pretrained(folder)
    if how == "auto":
        own = peft.AutoPeftModelForSequenceClassification if classifies else peft.AutoPeftModelForCausalLM
        return own.from_pretrained(folder)
    model = copy.deepcopy(base(folder.parent))
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


def find(way: str) -> Any:
    """What one way finds, in a process that has imported transformers alone."""
    assert not {"luthier", "peft"} & sys.modules.keys()
    if way != "peft":
        importlib.import_module("luthier")
        assert "peft" not in sys.modules, "it waits for PEFT, and does not import it"
    if way == "looked for":
        importlib.util.find_spec("peft")
        peft: Any = importlib.import_module("peft")
        return [str(kind.value) for kind in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING]
    folders = [folder for folder in sorted(SHELF.glob("*/*/")) if folder.name != "base"]
    for folder in folders:
        ways = ("peft", "auto", "transformers") if way == "luthier" else ("peft",)
        for how in ways if (folder / "adapter_config.json").is_file() else ("whole",):
            measure(how, folder)
    if way == "peft":
        assert "luthier" not in sys.modules
        importlib.import_module("luthier")
        for folder in folders:
            if (folder / "adapter_config.json").is_file():
                measure("peft and then luthier", folder)
    return FOUND


torch.set_num_threads(1)
for way in ("luthier", "peft", "looked for"):
    if not os.fork():
        print(json.dumps({way: find(way)}), flush=True)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"{way} failed")
