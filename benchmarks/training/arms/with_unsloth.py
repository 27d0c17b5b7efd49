"""Unsloth's FastLanguageModel under TRL's SFTTrainer. It needs CUDA."""

from __future__ import annotations

from shared import Folder, drive


def main() -> None:
    from unsloth import FastLanguageModel  # before trl, which it changes

    from datasets import Dataset  # isort: skip
    from trl import SFTConfig, SFTTrainer  # isort: skip

    folder = Folder()
    lora = folder.settings["lora"]
    model, tokenizer = FastLanguageModel.from_pretrained(
        folder.model, max_seq_length=folder.settings["limit"], dtype=folder.dtype(), load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["targets"],
        use_gradient_checkpointing=False,
    )
    config = SFTConfig(
        **folder.arguments(), max_length=folder.settings["limit"], train_sampling_strategy="group_by_length"
    )
    data = Dataset.from_list(folder.rows())
    drive(SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer), folder)


if __name__ == "__main__":
    main()
