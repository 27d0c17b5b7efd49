"""The merged model in 8 or 4 bit, by torchao or bitsandbytes, for transformers on a CPU or GPU."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from luthier.core.errors import InputError, MissingExtra, install
from luthier.exports.base import Bounds, Export, Opened, Tuned
from luthier.exports.merged import load_lines, open_model, write_merged
from luthier.models.heads import UNPACKED, in_head
from luthier.models.saving import write_words
from luthier.models.targets import linear_layers

if TYPE_CHECKING:
    from torch import nn


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
        super().refuse(tuned)
        library = SCHEMES[self.scheme].library
        if find_spec(library) is None:
            extra = "torchao" if library == "torchao" else "quantize"
            raise MissingExtra(f"scheme={self.scheme} needs {library}, which is not installed", fix=install(extra))
        model = tuned.skeleton()
        if not self._packable(model):
            kind = model.config.model_type  # type: ignore[union-attr]
            why = f"{tuned.run}: {library} quantizes torch's linear layers, and a {kind} has none"
            raise InputError(why, fix="scheme=nf4")

    def required_bytes(self, tuned: Tuned) -> int:
        plain = 4 if tuned.stored == "float32" else 2  # the plain model is on disk too for a while
        return int((plain + SCHEMES[self.scheme].size + 0.3) * tuned.facts["parameters"])

    def bounds(self, tuned: Tuned) -> Bounds:
        return SCHEMES[self.scheme].bound, SCHEMES[self.scheme].mean

    def write(self, tuned: Tuned, folder: Path) -> None:
        import torch

        plain = folder / "plain"
        write_merged(tuned, tuned.stored, plain)
        place = {"": "cuda" if torch.cuda.is_available() else "cpu"}
        made = self._open(tuned, plain, dtype="auto", quantization_config=self._settings(tuned), device_map=place)
        shutil.rmtree(plain)
        made.save_pretrained(folder)  # before any forward pass: see models.quantized
        write_words(tuned.tokenizer, tuned.ends, folder)

    def open(self, tuned: Tuned, folder: Path) -> Opened:
        return self._open(tuned, folder)  # type: ignore[no-any-return]

    def _open(self, tuned: Tuned, folder: Path, **options: Any) -> Any:
        from luthier.models.quantized import repair

        model = open_model(tuned, folder, **options)
        repair(model)
        return model

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        return [f"# pip install {SCHEMES[self.scheme].library}", *load_lines(tuned, folder)]

    def _packable(self, model: "nn.Module") -> bool:
        """Whether there is a layer to quantize; bitsandbytes takes GPT-2's transposed ones, torchao does not."""
        from torch import nn

        heads = getattr(model, "get_output_embeddings", lambda: None)()
        layers = [each for name, each in linear_layers(model).items() if not in_head(name)]
        if SCHEMES[self.scheme].library == "torchao":
            layers = [each for each in layers if isinstance(each, nn.Linear)]
        return any(each is not heads for each in layers)

    def _settings(self, tuned: Tuned) -> Any:
        """Settings for transformers, with the heads left as they are; None does that for a language model's output."""
        import torch
        from transformers import BitsAndBytesConfig, TorchAoConfig

        heads = UNPACKED if tuned.classifies else None
        if self.scheme == "llm_int8":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=heads)
        if self.scheme == "nf4":
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                # A CPU computes in float16 some 25 times slower.
                bnb_4bit_compute_dtype=torch.float32 if tuned.stored == "float32" else torch.bfloat16,
                llm_int8_skip_modules=heads,
            )
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

        kinds = {"int8": Int8WeightOnlyConfig, "int8_dynamic": Int8DynamicActivationInt8WeightConfig}
        return TorchAoConfig(kinds[self.scheme](), modules_to_not_convert=heads)
