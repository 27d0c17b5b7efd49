"""The adapter in PEFT's format, with tokenizer, template and a model card: small, and its base stays as it is."""

import shutil
from pathlib import Path

from luthier.core.errors import InputError
from luthier.core.files import read_object
from luthier.core.shell import home, literal
from luthier.core.strict_json import to_json
from luthier.exports.base import Export, Opened, Tuned


class Adapter(Export):
    """PEFT's format, loaded beside the base; for forty variants of one base this is forty small folders."""

    @property
    def on_plain_base(self) -> bool:
        return False

    def refuse(self, tuned: Tuned) -> None:
        if tuned.method.saves != "adapter":
            why = f"{tuned.run}: method {tuned.method.name} tunes whole weights, there is no adapter"
            raise InputError(why, fix=tuned.export_command("merged"))

    def required_bytes(self, tuned: Tuned) -> int:
        return sum(file.stat().st_size for file in tuned.weights.rglob("*") if file.is_file())

    def write(self, tuned: Tuned, folder: Path) -> None:
        for file in sorted(tuned.weights.iterdir()):
            if file.is_file() and file.name not in ("manifest.json", "README.md"):
                shutil.copyfile(file, folder / file.name)
        settings = folder / "adapter_config.json"
        config = read_object(settings) | {"base_model_name_or_path": home(tuned.base)}
        settings.write_text(to_json(config, indent=2, sort_keys=True), encoding="utf-8")

    def open(self, tuned: Tuned, folder: Path) -> Opened:
        from luthier.methods.layers.loading import load_adapter

        return load_adapter(tuned.open_base(), folder)

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        from peft import PeftConfig
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftConfig.from_pretrained(str(tuned.weights)).peft_type]
        base, auto = home(tuned.base), tuned.auto_class
        if base.startswith("~"):  # PEFT would look for a folder of that name
            load = ["from pathlib import Path", "from peft import PeftModel", f"from transformers import {auto}"]
            load.append(f"base = {auto}.from_pretrained(Path({literal(base)}).expanduser())")
            load.append(f"model = PeftModel.from_pretrained(base, {literal(folder)})")
        else:
            auto = auto.replace("AutoModel", "AutoPeftModel")
            load = [f"from peft import {auto}", f"model = {auto}.from_pretrained({literal(folder)})"]
        own = kind.__module__.startswith("luthier.")
        return [*(["import luthier  # registers this adapter type with PEFT"] if own else []), *load]
