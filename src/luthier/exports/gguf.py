"""One GGUF file for llama.cpp and what is built on it (Ollama, LM Studio): merged weights, tokenizer, chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.core.shell import literal
from luthier.exports.base import Bounds, Export, HeldOutPrompt, Opened, Tuned
from luthier.exports.llama_cpp import file as gguf_file

FILE = "model.gguf"


class Gguf(Export):
    """A file with everything in it, also in a half or a quarter of the size, for machines without Python or a GPU."""

    type: gguf_file.Kind = "f16"
    """Type of the matrices: f32 exact, f16 and bf16 rounded, q8_0 in 8 bits with a scale for each 32 weights."""
    replay: bool = True
    """Run the parity check in llama.cpp. Otherwise every weight is read back and compared, and nothing else."""

    def refuse(self, tuned: Tuned) -> None:
        super().refuse(tuned)
        gguf_file.refuse_gguf(tuned, replay=self.replay)

    def required_bytes(self, tuned: Tuned) -> int:
        return int(gguf_file.BITS[self.type] / 8 * tuned.facts["parameters"])

    def bounds(self, tuned: Tuned) -> Bounds:
        return gguf_file.LIMITS[self.type], None

    def write(self, tuned: Tuned, folder: Path) -> None:
        gguf_file.write_model(folder / FILE, tuned.merged(), gguf_file.run_vocabulary(tuned), self.type, tuned.run)

    def open(self, tuned: Tuned, folder: Path) -> Opened:
        return gguf_file.LlamaRunner(folder / FILE, tuned.ends)

    def check(self, tuned: Tuned, opened: Any, prompts: Sequence[HeldOutPrompt]) -> dict[str, Any]:
        return gguf_file.verified(tuned.tokenizer, opened, prompts)

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        return [
            "from llama_cpp import Llama  # or: llama-server -m model.gguf --jinja",
            f"llama = Llama({literal(f'{folder}/{FILE}')}, n_ctx={min(4096, tuned.config.max_position_embeddings)})",
            'llama.create_chat_completion([{"role": "user", "content": "..."}], temperature=0, repeat_penalty=1)',
        ]
