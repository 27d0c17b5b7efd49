"""Models and LoRA adapters as GGUF files: written tensor by tensor, read back, and opened in llama.cpp."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import InputError, Unproved

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["f32", "f16", "bf16", "q8_0"]
BITS: dict[str, float] = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5}
"""Bits of a weight in a file; q8_0 has a scale of 16 bits for 32 weights."""
LIMITS: dict[str, float] = {"f32": 1e-3, "f16": 0.05, "bf16": 0.3, "q8_0": 0.5}
"""Largest difference of two logits as a share of their spread. llama.cpp rounds what it multiplies to the weights' type
too: f32 keeps 24 bits of a number, f16 11, bf16 8, q8_0 7 to 8 of the largest of 32."""
ROUNDING: dict[str, float] = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 0.5 / 127 + 2**-10}
"""Largest difference of a weight from the model's, as a share of the largest in its row."""
NAMES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""model_type -> llama.cpp's architecture."""
ROPE = {"rope_theta", "rope_type", "factor", "original_max_position_embeddings", "partial_rotary_factor"}
YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "attention_factor": None}
YARN |= {"mscale": None, "mscale_all_dim": None}
"""The only values that llama.cpp has for further settings of YaRN."""
SMALLEST = 256
"""Tokens of the first context; a longer prompt gets one of its own size."""


def refuse_model(config: Any) -> None:
    """Raise InputError, by name, if llama.cpp's architecture of this name computes something else than the model."""
    kind = config.model_type
    if kind not in NAMES:
        raise cannot(f"architecture {kind}; {', '.join(sorted(NAMES))} are supported")
    heads, size, rope = config.num_attention_heads, head_size(config), config.rope_parameters
    how = rope.get("rope_type", "default")
    odd = [key for key, value in rope.items() if how == "yarn" and key not in ROPE and YARN.get(key, ...) != value]
    layers = getattr(config, "layer_types", None) or ()
    scalings = ("default", "linear", "yarn", "llama3") if kind == "llama" else ("default", "linear", "yarn")
    for found, what in (
        (getattr(config, "quantization_config", None), "a base whose weights are stored quantized"),
        (config.hidden_act not in ("silu", "swish"), f"activation {config.hidden_act} in a {kind}"),
        ("sliding_attention" in layers, "attention in a sliding window, which llama.cpp lacks for this architecture"),
        (kind == "qwen3" and config.attention_bias, "attention biases in a qwen3"),
        (kind == "qwen2" and size * heads != config.hidden_size, f"heads of {size} in a qwen2 with {heads} heads"),
        (how not in scalings, f"positions scaled by {how} in a {kind}"),
        (rope.get("partial_rotary_factor", 1.0) != 1.0, "positions in a part of each head"),
        (odd, f"yarn with {', '.join(f'{key}={rope[key]}' for key in odd)}"),
    ):
        if found:
            raise cannot(what)


def cannot(what: str) -> InputError:
    """The error for a model that no file can hold."""
    return InputError(f"GGUF: cannot write {what}", fix="luthier export RUN --to merged")


def head_size(config: Any) -> int:
    """Width of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def write_model(path: Path, model: "nn.Module", vocabulary: Mapping[str, Any], kind: Kind, name: str) -> None:
    """Write the whole model as one file, tensor by tensor; Unproved if the file does not hold its weights."""
    import gguf
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config: Any = model.config
    size, rope = head_size(config), config.rope_parameters
    writer = gguf.GGUFWriter(path, NAMES[config.model_type].lower())
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(Path(name).name)
    # {NAME of GGUFWriter.add_NAME: value}, as in the vocabulary
    facts: dict[str, Any] = {"context_length": config.max_position_embeddings, "embedding_length": config.hidden_size}
    facts |= {"block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size}
    facts |= {"head_count": config.num_attention_heads, "head_count_kv": config.num_key_value_heads}
    facts |= {"key_length": size, "value_length": size, "layer_norm_rms_eps": config.rms_norm_eps}
    facts |= {"vocab_size": config.vocab_size, "rope_dimension_count": size}
    facts["rope_freq_base"] = float(rope["rope_theta"])
    how = rope.get("rope_type", "default")
    if how in ("linear", "yarn"):
        facts |= {"rope_scaling_type": gguf.RopeScalingType(how), "rope_scaling_factor": float(rope["factor"])}
    if how == "yarn":
        length = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        facts["rope_scaling_orig_ctx_len"] = int(length)
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    facts["file_type"] = gguf.LlamaFileType[types[kind]]
    for key, value in (*facts.items(), *vocabulary.items()):
        getattr(writer, f"add_{key}")(value)
    state = model.state_dict()
    tensors: dict[str, Callable[[], NDArray[Any]]] = {}
    if how == "llama3":
        # The divisors of each frequency in Llama 3's scaling: [head / 2].
        plain = rope["rope_theta"] ** (-np.arange(0, size, 2) / size)
        divisors = (plain / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].float().numpy()).astype("float32")
        tensors["rope_freqs.weight"] = lambda: divisors
    tied = state["model.embed_tokens.weight"].data_ptr() == state["lm_head.weight"].data_ptr()
    for key, tensor in state.items():
        if not (tied and key == "lm_head.weight"):
            tensors[name_of(config, key)] = partial(permuted, config, key, tensor)
    write_tensors(path, writer, tensors, kind)


def name_of(config: Any, key: str) -> str:
    """llama.cpp's name of one of transformers' weights."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[NAMES[config.model_type]], config.num_hidden_layers)
    name = names.get_name(key, try_suffixes=(".weight", ".bias"))
    if name is None:
        raise cannot(f"the weight {key} of a {config.model_type}")
    return str(name)


def permuted(config: Any, key: str, tensor: "Tensor") -> NDArray[Any]:
    """A weight [out, ...] in float32; rows of Q and K move, because llama.cpp's Llama rotates adjacent numbers."""
    numbers: NDArray[Any] = tensor.detach().float().cpu().numpy()
    which = key.rpartition(".")[0].rpartition(".")[2]
    if config.model_type != "llama" or which not in ("q_proj", "k_proj"):
        return numbers
    heads = config.num_attention_heads if which == "q_proj" else config.num_key_value_heads
    halves = numbers.reshape(heads, 2, head_size(config) // 2, *numbers.shape[1:])
    return halves.swapaxes(1, 2).reshape(numbers.shape)


def write_tensors(path: Path, writer: Any, tensors: Mapping[str, Callable[[], NDArray[Any]]], kind: Kind) -> None:
    """Write header and tensors one by one, then read all back: Unproved if one differs by more than its rounding."""
    import gguf

    kinds = {}
    for name, numbers in tensors.items():
        made = numbers()
        # Vectors (norms, biases) stay in f32; rows that q8_0 cannot cut into blocks of 32 are f16, as in llama.cpp.
        uneven = kind == "q8_0" and made.shape[-1] % 32
        kinds[name] = gguf.GGMLQuantizationType["F32" if made.ndim < 2 else "F16" if uneven else kind.upper()]
        block, size = gguf.GGML_QUANT_SIZES[kinds[name]]
        writer.add_tensor_info(name, made.shape, made.dtype, made.size // block * size, kinds[name])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, numbers in tensors.items():
        writer.write_tensor_data(gguf.quants.quantize(numbers(), kinds[name]))
    writer.close()
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    if odd := sorted(set(found) ^ set(tensors)):
        raise Unproved(f"{path.name}: the tensor {odd[0]} is only in the file or only in the model")
    for name, numbers in tensors.items():
        wanted = numbers()
        stored = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
        if stored.shape != wanted.shape:
            raise Unproved(f"{path.name}: {name} has the shape {stored.shape}, the model's {wanted.shape}")
        allowed = ROUNDING[found[name].tensor_type.name] * np.abs(wanted).max(-1, keepdims=True)
        gap = np.nan_to_num(np.abs(stored - wanted), nan=np.inf)
        if (gap > 1.001 * allowed + (0 if not np.any(allowed) else 1e-7)).any():
            why = f"{path.name}: a weight of {name} differs by {gap.max():.3g} from the model's, more than rounding"
            raise Unproved(why, fix="type=f32; f16 holds no weight beyond 65504")


class LlamaRunner:
    """A model in llama.cpp. The KV cache is in f32: in f16, the default, it would differ by more than the weights."""

    def __init__(self, model: Path, ends: Sequence[int], adapter: Path | None = None, own: Path | None = None) -> None:
        """`own` is a folder to delete on close."""
        self.model, self.ends, self.adapter, self.own, self.context = model, set(ends), adapter, own, 0
        self._open(SMALLEST)

    def close(self) -> None:
        """Free memory and files."""
        self.llama.close()
        if self.own is not None:
            shutil.rmtree(self.own, ignore_errors=True)

    def _open(self, context: int) -> None:
        import llama_cpp
        import torch

        if self.context:
            self.llama.close()
        threads, cache = torch.get_num_threads(), llama_cpp.GGML_TYPE_F32
        options: dict[str, Any] = {"type_k": cache, "type_v": cache, "n_threads": threads, "n_threads_batch": threads}
        options |= {"n_ctx": context, "n_batch": min(context, SMALLEST), "logits_all": True, "verbose": False}
        try:
            lora = str(self.adapter) if self.adapter else None
            self.llama: Any = llama_cpp.Llama(str(self.model), lora_path=lora, **options)
        except (ValueError, RuntimeError) as error:
            raise Unproved(f"llama.cpp cannot open what was written: {error}") from error
        self.context = context

    def _read(self, ids: Sequence[int], more: int) -> None:
        if len(ids) + more > self.context:
            self._open(-(-(len(ids) + more) // SMALLEST) * SMALLEST)
        self.llama.reset()
        self.llama.eval([int(token) for token in ids])

    def logits(self, ids: Sequence[int]) -> NDArray[Any]:
        """[tokens, vocabulary] in float32."""
        self._read(ids, 0)
        return self.llama.scores[: len(ids)].copy()  # type: ignore[no-any-return]

    def answer(self, ids: Sequence[int], most: int) -> list[int]:
        """Greedy tokens."""
        self._read(ids, most)
        answer: list[int] = []
        while len(answer) < most:
            answer.append(int(self.llama.scores[len(ids) + len(answer) - 1].argmax()))
            if answer[-1] in self.ends:
                break
            self.llama.eval(answer[-1:])
        return answer
