"""llama.cpp as a runner: a GGUF file answers held-out prompts, and splits text into tokens."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import Unproved
from luthier.exports.checking.parity import HeldOutPrompt
from luthier.exports.llama_cpp.vocabulary import PROBES

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST = 256
"""Tokens of the first context; a longer prompt gets one of its own size."""
READ_BACK = "every tensor was read back from the file and is the model's, to the rounding of its type"


class LlamaRunner:
    """A model in llama.cpp, with an adapter if one is given.

    The KV cache is in f32: in f16, the default there, it alone would differ by more than the weights.
    """

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
        try:
            self.llama: Any = llama_cpp.Llama(
                str(self.model),
                n_ctx=context,
                n_batch=min(context, SMALLEST),
                logits_all=True,
                verbose=False,
                type_k=cache,
                type_v=cache,
                n_threads=threads,
                n_threads_batch=threads,
                lora_path=str(self.adapter) if self.adapter else None,
            )
        except (ValueError, RuntimeError) as error:
            raise Unproved(f"llama.cpp cannot open what was written: {error}") from error
        self.context = context

    def _read(self, ids: Sequence[int], more: int) -> None:
        if len(ids) + more > self.context:
            self._open(-(-(len(ids) + more) // SMALLEST) * SMALLEST)
        self.llama.reset()
        self.llama.eval([int(token) for token in ids])

    def logits(self, ids: Sequence[int]) -> "NDArray[Any]":
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

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text that may contain special tokens."""
        return list(self.llama.tokenize(text.encode(), add_bos=False, special=True))


def same_tokens(runner: LlamaRunner, tokenizer: Any, prompts: Sequence[HeldOutPrompt]) -> int:
    """Number of texts that llama.cpp tokenizes as the run's tokenizer does; Unproved if one differs."""
    texts = [*PROBES, *(tokenizer.decode(prompt.ids, clean_up_tokenization_spaces=False) for prompt in prompts)]
    for text in texts:
        ours, theirs = list(tokenizer(text, add_special_tokens=False)["input_ids"]), runner.tokens(text)
        if ours != theirs:
            place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
            part = tokenizer.decode(ours[max(0, place - 3) : place + 3])
            raise Unproved(
                f"llama.cpp splits {part!r} into other tokens than the run's tokenizer: "
                f"{theirs[place : place + 6]} instead of {ours[place : place + 6]}",
                fix="luthier export RUN --to merged",
            )
    return len(texts)


def verified(tokenizer: Any, opened: LlamaRunner | None, prompts: Sequence[HeldOutPrompt]) -> dict[str, Any]:
    """What was verified beside the answers, and what was not, for export.json."""
    if opened is None:
        not_verified = "that llama.cpp splits text into the same tokens and answers as the run"
        return {"verified": READ_BACK, "not_verified": not_verified}
    number = same_tokens(opened, tokenizer, prompts)
    return {"verified": f"{READ_BACK}; llama.cpp splits {number} texts into the same tokens"}
