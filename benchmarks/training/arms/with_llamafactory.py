"""LLaMA-Factory's SFT, by the function that `llamafactory-cli train` calls.

Its templates do not know our tokenizer's, so the rows come by `tokenized_path`, its own way in for tokens; they are
packed by its own code. Options: `layout` grouped (rows of like length, padded to the longest) or packed (neat_packing:
sequences of `pack` tokens, no row sees another).
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from shared import Folder, drive


def without_sound() -> None:
    """It imports torchaudio, whose wheels need a CUDA build of torch, for rows with sound; there are none here."""
    if importlib.util.find_spec("torchaudio") is None:
        sys.modules["torchaudio"] = silent = ModuleType("torchaudio")
        silent.__spec__ = importlib.util.spec_from_loader("torchaudio", None)


def tokenized(folder: Folder) -> str:
    """The rows as a folder of tokens, in the form that its own processor would have left."""
    from datasets import Dataset, DatasetDict

    rows = folder.rows()
    if folder.options["layout"] == "packed":
        made = packed(rows, folder.options["pack"], 0)
    else:
        made = {
            "input_ids": [row["input_ids"] for row in rows],
            "attention_mask": [[1] * len(row["input_ids"]) for row in rows],
            "labels": [row["labels"] for row in rows],
        }
        made |= {key: [None] * len(rows) for key in ("images", "videos", "audios")}
    path = f"{folder.out}-tokens"
    DatasetDict({"train": Dataset.from_dict(made)}).save_to_disk(path)
    return path


def packed(rows: list[dict[str, list[int]]], size: int, pad: int) -> dict[str, Any]:
    """Packed by LLaMA-Factory's own class, which is given ids where it would tokenize."""
    from llamafactory.data.processor.supervised import PackedSupervisedDatasetProcessor

    class Ready(PackedSupervisedDatasetProcessor):
        def _encode_data_example(self, prompt: Any, **_: Any) -> Any:
            row = rows[prompt[0]["content"]]
            return row["input_ids"], row["labels"]

    given = SimpleNamespace(cutoff_len=size, neat_packing=True)
    ready = Ready(None, SimpleNamespace(pad_token_id=pad), None, given)
    examples: dict[str, list[Any]] = {
        "_prompt": [[{"content": number}] for number in range(len(rows))],
        "_response": [[None]] * len(rows),
    }
    examples |= {key: [None] * len(rows) for key in ("_system", "_tools", "_images", "_videos", "_audios")}
    return dict(ready.preprocess_dataset(examples))


def main() -> None:
    without_sound()
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from llamafactory.train.tuner import run_exp

    folder = Folder()
    lora, options = folder.settings["lora"], folder.options
    arguments = folder.arguments() | {
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": lora["rank"],
        "lora_alpha": lora["alpha"],
        "lora_dropout": lora["dropout"],
        "lora_target": "all",
        "model_name_or_path": folder.model,
        "template": "empty",
        "tokenized_path": tokenized(folder),
        "dataset": "rows",
        "cutoff_len": options.get("pack") or folder.settings["limit"],
        "trust_remote_code": False,
    }
    # It knows checkpointing by a name of its own, and switches it on by itself.
    arguments["disable_gradient_checkpointing"] = not arguments.pop("gradient_checkpointing")
    arguments["optim"] = options.get("optim", "adamw_torch")
    if options["layout"] == "packed":
        arguments["neat_packing"] = True
    else:
        arguments["train_sampling_strategy"] = "group_by_length"

    train = CustomSeq2SeqTrainer.train

    def measured(self: Any, **given: Any) -> Any:
        if folder.options["precision"] == "fp32":
            self.model.float()  # it loads weights in the type they are stored in
        made = []
        drive(self, folder, lambda: made.append(train(self, **given)))
        if folder.check:
            raise SystemExit
        return made[0]

    CustomSeq2SeqTrainer.train = measured
    run_exp(arguments)


if __name__ == "__main__":
    main()
