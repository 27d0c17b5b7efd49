"""transformers.Trainer + PEFT.

Options: `layout` grouped (rows of like length, padded to the longest), flat (one row of all, no padding) or fixed (padded
to the limit); `checkpointing`; `quantize` int8; `precision` bf16 (autocast), fp32 or plain (as the weights are).
"""

from __future__ import annotations

from typing import Any

from shared import IGNORED, Folder, drive


def main() -> None:
    import torch
    from datasets import Dataset
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForCausalLM,
        BitsAndBytesConfig,
        DataCollatorWithFlattening,
        Trainer,
        TrainingArguments,
    )

    folder = Folder()
    options, limit = folder.options, folder.settings["limit"]
    quantize = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if options.get("quantize") else {}
    model = AutoModelForCausalLM.from_pretrained(folder.model, dtype=folder.dtype(), **quantize)
    if quantize:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=bool(options.get("checkpointing")))
    model = get_peft_model(model, folder.lora())
    if options.get("checkpointing"):
        model.enable_input_require_grads()

    def padded(rows: list[dict[str, Any]]) -> dict[str, Any]:
        longest = limit if options["layout"] == "fixed" else max(len(row["input_ids"]) for row in rows)

        def put(key: str, fill: int) -> Any:
            return torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows])

        mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows])
        return {"input_ids": put("input_ids", 0), "labels": put("labels", IGNORED), "attention_mask": mask}

    grouped = {"train_sampling_strategy": "group_by_length"} if options["layout"] == "grouped" else {}
    arguments = TrainingArguments(**folder.arguments(), remove_unused_columns=False, **grouped)
    collate = DataCollatorWithFlattening() if options["layout"] == "flat" else padded
    drive(Trainer(model, arguments, train_dataset=Dataset.from_list(folder.rows()), data_collator=collate), folder)


if __name__ == "__main__":
    main()
