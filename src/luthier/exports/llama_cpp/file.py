"""Models and LoRA adapters as GGUF files, written tensor by tensor and read back."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import InputError, MissingExtra, Unproved, install
from luthier.exports.checking.tuned import Tuned
from luthier.exports.llama_cpp.vocabulary import Vocabulary, vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray
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
YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True} | dict.fromkeys(
    ("attention_factor", "mscale", "mscale_all_dim")
)
"""The only values that llama.cpp has for further settings of YaRN."""


def refuse_gguf(tuned: Tuned, *, replay: bool) -> None:
    """Raise InputError if no GGUF file can hold the run or a package is missing, before anything is loaded."""
    if find_spec("gguf") is None:
        raise MissingExtra("a GGUF file needs the package gguf, which is not installed", fix=install("gguf"))
    if replay and find_spec("llama_cpp") is None:
        raise MissingExtra(
            "the parity check needs llama.cpp, whose package llama-cpp-python is not installed",
            fix=f"{install('gguf')}, which compiles it in 7 to 20 minutes; or replay=false, which reads the "
            "file back and compares every weight, but does not verify that llama.cpp answers as the run",
        )
    if tuned.classifies:
        raise _cannot("a classification head: llama.cpp runs models that generate text")
    refuse_model(tuned.config)
    run_vocabulary(tuned)


def run_vocabulary(tuned: Tuned) -> Vocabulary:
    """The run's tokenizer in llama.cpp's terms."""
    return vocabulary(tuned.tokenizer, tuned.config.vocab_size, tuned.ends, dialogues=tuned.task == "chat")


def refuse_model(config: Any) -> None:
    """Raise InputError, by name, if llama.cpp's architecture of this name computes something else than the model."""
    kind = config.model_type
    if kind not in NAMES:
        raise _cannot(f"architecture {kind}; {', '.join(sorted(NAMES))} are supported")
    heads, size, rope = config.num_attention_heads, head_size(config), config.rope_parameters
    how = rope.get("rope_type", "default")
    odd = (
        [key for key, value in rope.items() if key not in ROPE and YARN.get(key, ...) != value] if how == "yarn" else []
    )
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
            raise _cannot(what)


def _cannot(what: str) -> InputError:
    return InputError(f"GGUF: cannot write {what}", fix="luthier export RUN --to merged")


def head_size(config: Any) -> int:
    """Width of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def write_model(path: Path, model: "nn.Module", vocabulary: Vocabulary, kind: Kind, name: str) -> None:
    """Write the whole model as one file, tensor by tensor; Unproved if the file does not hold its weights.

    `name` may be a path, of which the last part is stored.
    """
    import gguf

    config: Any = model.config
    size, rope = head_size(config), config.rope_parameters
    writer = gguf.GGUFWriter(path, NAMES[config.model_type].lower())
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(Path(name).name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    how = rope.get("rope_type", "default")
    if how in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(how))
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if how == "yarn":
        length = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(int(length))
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[types[kind]])
    vocabulary.write(writer)
    write_tensors(path, writer, dict(_tensors(model)), kind)


def _tensors(model: "nn.Module") -> "Iterator[tuple[str, Callable[[], NDArray[Any]]]]":
    """(llama.cpp's name, function that returns the numbers in float32) of every weight except a tied head."""
    config: Any = model.config
    state = model.state_dict()
    tied = state["model.embed_tokens.weight"].data_ptr() == state["lm_head.weight"].data_ptr()
    if config.rope_parameters.get("rope_type") == "llama3":
        yield "rope_freqs.weight", partial(_llama3_factors, config)
    for key, tensor in state.items():
        if not (tied and key == "lm_head.weight"):
            yield name_of(config, key), partial(_weight, config, key, tensor)


def _weight(config: Any, key: str, tensor: "Tensor") -> "NDArray[Any]":
    return permuted(config, key, _numbers(tensor))


def name_of(config: Any, key: str) -> str:
    """llama.cpp's name of one of transformers' weights."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[NAMES[config.model_type]], config.num_hidden_layers)
    name = names.get_name(key, try_suffixes=(".weight", ".bias"))
    if name is None:
        raise _cannot(f"the weight {key} of a {config.model_type}")
    return str(name)


def permuted(config: Any, key: str, numbers: "NDArray[Any]") -> "NDArray[Any]":
    """Rows in llama.cpp's order: [out, ...] -> [out, ...].

    Its Llama rotates adjacent numbers of a head, transformers' those half a head apart, so rows of Q and K move.
    """
    which = key.rpartition(".")[0].rpartition(".")[2]
    if config.model_type != "llama" or which not in ("q_proj", "k_proj"):
        return numbers
    heads = config.num_attention_heads if which == "q_proj" else config.num_key_value_heads
    halves = numbers.reshape(heads, 2, head_size(config) // 2, *numbers.shape[1:])
    return halves.swapaxes(1, 2).reshape(numbers.shape)


def _numbers(tensor: "Tensor") -> "NDArray[Any]":
    return tensor.detach().float().cpu().numpy()


def _llama3_factors(config: Any) -> "NDArray[Any]":
    """The divisors of each frequency in Llama 3's scaling: [head / 2]."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    places = _numbers(scaled) * 0 + range(0, head_size(config), 2)
    plain = config.rope_parameters["rope_theta"] ** (-places / head_size(config))
    return (plain / _numbers(scaled)).astype("float32")  # type: ignore[no-any-return]


def write_tensors(path: Path, writer: Any, tensors: "Mapping[str, Callable[[], NDArray[Any]]]", kind: Kind) -> None:
    """Write header and tensors one by one, then read all back."""
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
    _read_back(path, tensors)


def _read_back(path: Path, tensors: "Mapping[str, Callable[[], NDArray[Any]]]") -> None:
    """Raise Unproved if a tensor in the file is not the model's, to the rounding of its type."""
    import gguf
    import numpy as np

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
            raise Unproved(
                f"{path.name}: a weight of {name} differs by {gap.max():.3g} from the model's, more than rounding",
                fix="type=f32; f16 holds no weight beyond 65504",
            )
