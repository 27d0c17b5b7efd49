"""The merged model in 8 or 4 bit, by torchao or bitsandbytes, for transformers on a CPU or GPU."""

import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

from luthier.core.errors import InputError, install, require_package
from luthier.exports.base import Bounds, Export, Opened, Tuned, write_words
from luthier.exports.merged import Merged, load_lines, open_model
from luthier.models.targets import UNPACKED, in_head, linear_layers


class Scheme(NamedTuple):
    """How weights are quantized, and which rounding is allowed (measured; see docs/export.md)."""

    library: str
    size: float  # bytes of a quantized weight, including its scales
    bound: float  # largest difference of two logits, as a share of their spread
    mean: float  # mean difference of two logits, likewise: the sharper test if many are compared


SCHEMES = {
    "int8": Scheme("torchao", 1.02, 0.5, 0.05),
    "int8_dynamic": Scheme("torchao", 1.02, 0.5, 0.05),
    "llm_int8": Scheme("bitsandbytes", 1.02, 0.5, 0.05),
    "nf4": Scheme("bitsandbytes", 0.57, 4.0, 0.5),
}


class Quantized(Export):
    """A model of a half or a quarter of the size, close to the run: the parity check says how close."""

    scheme: Literal["int8", "int8_dynamic", "llm_int8", "nf4"] = "int8"
    """int8: weights in 8 bit, the closest (torchao). int8_dynamic: activations too (torchao). llm_int8: both except
    outliers (bitsandbytes). nf4: weights in 4 bit, as in QLoRA (bitsandbytes)."""

    def refuse(self, tuned: Tuned) -> None:
        from torch import nn

        super().refuse(tuned)
        library = SCHEMES[self.scheme].library
        fix = install("torchao" if library == "torchao" else "quantize")
        require_package(library, f"scheme={self.scheme} needs {library}, which is not installed", fix)
        model: Any = tuned.skeleton()
        heads = getattr(model, "get_output_embeddings", lambda: None)()
        layers = [each for name, each in linear_layers(model).items() if each is not heads and not in_head(name)]
        # bitsandbytes takes GPT-2's transposed layers as well, torchao does not.
        if not any(library != "torchao" or isinstance(each, nn.Linear) for each in layers):
            why = f"{tuned.run}: {library} quantizes torch's linear layers, and a {model.config.model_type} has none"
            raise InputError(why, fix="scheme=nf4")

    def required_bytes(self, tuned: Tuned) -> int:
        plain = 4 if tuned.stored == "float32" else 2  # the plain model is on disk too for a while
        return int((plain + SCHEMES[self.scheme].size + 0.3) * tuned.facts["parameters"])

    def bounds(self, tuned: Tuned) -> Bounds:
        return SCHEMES[self.scheme].bound, SCHEMES[self.scheme].mean

    def write(self, tuned: Tuned, folder: Path) -> None:
        import torch
        from transformers import BitsAndBytesConfig, TorchAoConfig

        # The heads stay as they are; None does that for a language model's output.
        heads = UNPACKED if tuned.classifies else None
        settings: Any
        if self.scheme == "llm_int8":
            settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
        elif self.scheme == "nf4":
            # A CPU computes in float16 some 25 times slower.
            dtype = torch.float32 if tuned.stored == "float32" else torch.bfloat16
            options: Any = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
            settings = BitsAndBytesConfig(**options, llm_int8_skip_modules=heads)
        else:
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

            kind = Int8WeightOnlyConfig if self.scheme == "int8" else Int8DynamicActivationInt8WeightConfig
            settings = TorchAoConfig(kind(), modules_to_not_convert=heads)
        plain, place = folder / "plain", {"": "cuda" if torch.cuda.is_available() else "cpu"}
        Merged().write(tuned, plain)
        made: Any = self.open(tuned, plain, dtype="auto", quantization_config=settings, device_map=place)
        shutil.rmtree(plain)
        made.save_pretrained(folder)  # before any forward pass: see models.load.repair
        write_words(tuned.tokenizer, tuned.ends, folder)

    def open(self, tuned: Tuned, folder: Path, **options: Any) -> Opened:
        from luthier.models.load import repair

        model: Any = open_model(tuned, folder, **options)
        repair(model)
        return model  # type: ignore[no-any-return]

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        return [f"# pip install {SCHEMES[self.scheme].library}", *load_lines(tuned, folder)]
