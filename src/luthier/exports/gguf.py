"""One GGUF file for llama.cpp and what is built on it (Ollama, LM Studio): merged weights, tokenizer, chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.shell import literal
from luthier.exports.base import Export
from luthier.exports.checking.proof import Player
from luthier.exports.checking.tuned import Tuned
from luthier.exports.llama_cpp.file import BITS, LIMITS, Kind, refuse_gguf, write_gguf

if TYPE_CHECKING:
    from torch import nn

    from luthier.exports.checking.proof import Prompt

FILE = "model.gguf"


class Gguf(Export):
    """A file that holds all, also in half the size or a quarter, for machines without Python and without a GPU."""

    type: Kind = "f16"
    """Of the matrices: f32 as they are, f16 and bf16 rounded, q8_0 in 8 bits with a scale for each 32 weights."""
    replay: bool = True
    """Play the file in llama.cpp as a proof. Without it every weight is read back and compared, and that is all."""

    @property
    def replays(self) -> bool:
        return self.replay

    def refuse(self, tuned: Tuned) -> None:
        super().refuse(tuned)
        refuse_gguf(tuned, replay=self.replay)

    def room(self, tuned: Tuned) -> int:
        return int(BITS[self.type] / 8 * tuned.facts["parameters"])

    def limit(self, tuned: Tuned) -> float:
        return LIMITS[self.type]

    def write(self, tuned: Tuned, folder: Path) -> None:
        write_gguf(tuned, folder / FILE, self.type)

    def open(self, tuned: Tuned, folder: Path) -> nn.Module | Player:
        from luthier.exports.llama_cpp.player import LlamaPlayer

        return LlamaPlayer(folder / FILE, tuned.ends)

    def check(self, tuned: Tuned, opened: Any, prompts: Sequence[Prompt]) -> dict[str, Any]:
        from luthier.exports.llama_cpp.player import told

        return told(tuned.tokenizer, opened, prompts)

    def use(self, tuned: Tuned, folder: str) -> list[str]:
        return [
            "from llama_cpp import Llama  # or: llama-server -m model.gguf --jinja",
            f"llama = Llama({literal(f'{folder}/{FILE}')}, n_ctx={min(4096, tuned.config.max_position_embeddings)})",
            'llama.create_chat_completion([{"role": "user", "content": "..."}], temperature=0, repeat_penalty=1)',
        ]
