"""One GGUF file for llama.cpp and what is built on it (Ollama, LM Studio): merged weights, tokenizer, chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.core.errors import Unproved, install, require_package
from luthier.core.shell import literal
from luthier.exports.base import Bounds, Export, Opened, Tuned
from luthier.exports.llama_cpp import file as gguf_file
from luthier.exports.llama_cpp.vocabulary import PROBES, vocabulary
from luthier.rendering.example import shared_start
from luthier.rendering.row import Row

FILE = "model.gguf"


class Gguf(Export):
    """A file with everything in it, also in a half or a quarter of the size, for machines without Python or a GPU."""

    type: gguf_file.Kind = "f16"
    """Type of the matrices: f32 exact, f16 and bf16 rounded, q8_0 in 8 bits with a scale for each 32 weights."""
    replay: bool = True
    """Run the parity check in llama.cpp. Otherwise every weight is read back and compared, and nothing else."""

    def refuse(self, tuned: Tuned) -> None:
        super().refuse(tuned)
        refuse_gguf(tuned, replay=self.replay)

    def required_bytes(self, tuned: Tuned) -> int:
        return int(gguf_file.BITS[self.type] / 8 * tuned.facts["parameters"])

    def bounds(self, tuned: Tuned) -> Bounds:
        return gguf_file.LIMITS[self.type], None

    def write(self, tuned: Tuned, folder: Path) -> None:
        gguf_file.write_model(folder / FILE, tuned.merged(), run_vocabulary(tuned), self.type, tuned.run)

    def open(self, tuned: Tuned, folder: Path) -> Opened:
        return gguf_file.LlamaRunner(folder / FILE, tuned.ends)

    def check(self, tuned: Tuned, opened: Any, rows: Sequence[Row]) -> dict[str, Any]:
        return verified(tuned.tokenizer, opened, rows)

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        return [
            "from llama_cpp import Llama  # or: llama-server -m model.gguf --jinja",
            f"llama = Llama({literal(f'{folder}/{FILE}')}, n_ctx={min(4096, tuned.config.max_position_embeddings)})",
            'llama.create_chat_completion([{"role": "user", "content": "..."}], temperature=0, repeat_penalty=1)',
        ]


def refuse_gguf(tuned: Tuned, *, replay: bool) -> None:
    """Raise InputError if no GGUF file can hold the run or a package is missing, before anything is loaded."""
    if replay:
        fix = f"{install('gguf')}, which compiles it in 7 to 20 minutes; or replay=false, which reads the file back "
        fix += "and compares every weight, but does not verify that llama.cpp answers as the run"
        why = "the parity check needs llama.cpp, whose package llama-cpp-python is not installed"
        require_package("llama_cpp", why, fix)
    if tuned.classifies:
        raise gguf_file.cannot("a classification head: llama.cpp runs models that generate text")
    gguf_file.refuse_model(tuned.config)
    run_vocabulary(tuned)


def run_vocabulary(tuned: Tuned) -> dict[str, Any]:
    """The run's tokenizer in llama.cpp's terms."""
    return vocabulary(tuned.tokenizer, tuned.config.vocab_size, tuned.ends, dialogues=tuned.task == "chat")


def verified(tokenizer: Any, opened: gguf_file.LlamaRunner | None, rows: Sequence[Row]) -> dict[str, Any]:
    """What was verified beside the answers, and what was not, for export.json.

    Unproved if llama.cpp splits one of PROBES or of the rows into other tokens than the run's tokenizer.
    """
    read_back = "every tensor was read back from the file and is the model's, to the rounding of its type"
    if opened is None:
        not_verified = "that llama.cpp splits text into the same tokens and answers as the run"
        return {"verified": read_back, "not_verified": not_verified}
    texts = [*PROBES, *(tokenizer.decode(row.ids, clean_up_tokenization_spaces=False) for row in rows)]
    for text in texts:
        ours = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        theirs = list(opened.llama.tokenize(text.encode(), add_bos=False, special=True))
        if ours != theirs:
            place = shared_start(ours, theirs)
            part = tokenizer.decode(ours[max(0, place - 3) : place + 3])
            tokens = f"{theirs[place : place + 6]} instead of {ours[place : place + 6]}"
            why = f"llama.cpp splits {part!r} into other tokens than the run's tokenizer: {tokens}"
            raise Unproved(why, fix="luthier export RUN --to merged")
    return {"verified": f"{read_back}; llama.cpp splits {len(texts)} texts into the same tokens"}
