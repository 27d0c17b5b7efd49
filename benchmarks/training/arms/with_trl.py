"""TRL's SFTTrainer on rows that are tokens already, which spares it the tokenizing.

Options: `layout` grouped (rows of like length, padded to the longest), flat (padding_free) or packed (bfd, padding-free,
sequences of `pack` tokens).
"""

from __future__ import annotations

from shared import Folder, drive


def main() -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    folder = Folder()
    options, arguments = folder.options, folder.arguments()
    layouts = {
        "grouped": {"train_sampling_strategy": "group_by_length", "max_length": folder.settings["limit"]},
        "flat": {"padding_free": True, "max_length": None},
        "packed": {"packing": True, "packing_strategy": "bfd", "max_length": options.get("pack")},
    }
    arguments |= layouts[options["layout"]]
    config = SFTConfig(**arguments, model_init_kwargs={"dtype": folder.dtype()})
    trainer = SFTTrainer(
        folder.model, config, train_dataset=Dataset.from_list(folder.rows()), peft_config=folder.lora()
    )
    drive(trainer, folder)


if __name__ == "__main__":
    main()
