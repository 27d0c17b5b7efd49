"""llama.cpp as a player: a GGUF file answers held-out prompts, and cuts text into tokens."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import Unproved
from luthier.exports.llama_cpp.vocabulary import PROBES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from luthier.exports.checking.proof import Prompt

SMALLEST = 256
"""Tokens of the first context; a longer prompt gets one of its own size."""


class LlamaPlayer:
    """A model that llama.cpp plays, with an adapter on it where one is given.

    Keys and values are kept in f32: in f16, the default there, they alone would differ by more than the weights.
    """

    def __init__(self, model: Path, ends: Sequence[int], adapter: Path | None = None, own: Path | None = None) -> None:
        """`own` is a folder that goes when the player is closed."""
        self.model, self.ends, self.adapter, self.own, self.context = model, set(ends), adapter, own, 0
        self._open(SMALLEST)

    def close(self) -> None:
        """Give memory and files back."""
        self.llama.close()
        if self.own is not None:
            shutil.rmtree(self.own, ignore_errors=True)

    def _open(self, context: int) -> None:
        import llama_cpp
        import torch

        if self.context:
            self.llama.close()
        threads = torch.get_num_threads()
        try:
            self.llama: Any = llama_cpp.Llama(
                str(self.model),
                n_ctx=context,
                n_batch=min(context, SMALLEST),
                logits_all=True,
                verbose=False,
                type_k=llama_cpp.GGML_TYPE_F32,
                type_v=llama_cpp.GGML_TYPE_F32,
                n_threads=threads,
                n_threads_batch=threads,
                lora_path=str(self.adapter) if self.adapter else None,
            )
        except (ValueError, RuntimeError) as error:
            raise Unproved(f"llama.cpp does not open what was written: {error}") from error
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
        """Greedy."""
        self._read(ids, most)
        said: list[int] = []
        while len(said) < most:
            said.append(int(self.llama.scores[len(ids) + len(said) - 1].argmax()))
            if said[-1] in self.ends:
                break
            self.llama.eval(said[-1:])
        return said

    def tokens(self, text: str) -> list[int]:
        """As llama.cpp cuts text in which special tokens may stand."""
        return list(self.llama.tokenize(text.encode(), add_bos=False, special=True))


def same_tokens(player: LlamaPlayer, tokenizer: Any, prompts: Sequence[Prompt]) -> int:
    """Number of texts that llama.cpp cuts as the run's tokenizer does; Unproved where it cuts one otherwise."""
    texts = list(PROBES)
    texts += [tokenizer.decode(prompt.ids, clean_up_tokenization_spaces=False) for prompt in prompts]
    for text in texts:
        ours, theirs = list(tokenizer(text, add_special_tokens=False)["input_ids"]), player.tokens(text)
        if ours != theirs:
            place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
            part = tokenizer.decode(ours[max(0, place - 3) : place + 3])
            raise Unproved(
                f"llama.cpp cuts {part!r} into other tokens than the run's tokenizer: "
                f"{theirs[place : place + 6]} instead of {ours[place : place + 6]}",
                fix="luthier export RUN --to merged",
            )
    return len(texts)


READ_BACK = "every tensor was read back from the file and is the model's, to the rounding of its type"


def told(tokenizer: Any, opened: LlamaPlayer | None, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What was held to the run beside its answers, and what was not, as it stands in export.json."""
    if opened is None:
        return {
            "proved": READ_BACK,
            "not_proved": "that llama.cpp cuts text into the same tokens and answers as the run",
        }
    number = same_tokens(opened, tokenizer, prompts)
    return {"proved": f"{READ_BACK}; llama.cpp cuts {number} texts into the same tokens"}
