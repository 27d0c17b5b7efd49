"""Small runs for the tests of GGUF: any architecture with any tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TEXT, build_tokenizer

LLAMA_CPP = pytest.mark.skipif(
    find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed: make test-gguf compiles and installs it"
)
SHORT = [
    "train.steps=6",
    "train.lr=1e-2",
    "train.batch_size=4",
    "evaluate.generate=4",
    "evaluate.max_new_tokens=8",
    "evaluate.forgetting=false",
    "data.validation=0.3",
]
TEXTS = ["The fox's number 12345, isn't it?", "这个水壶漏水，已经退货了。😀👍🏽", "a\n\n  b\tc", "naïve — “ok”"]


def rows(count: int) -> list[dict[str, str]]:
    return [
        {"instruction": f"{TEXTS[i % 4]} Say {i}.", "input": "", "output": f"{i} {TEXTS[(i + 1) % 4]}"}
        for i in range(count)
    ]


def variant(folder: Path, to: Path, tokenizer: Any = None, **config: Any) -> Path:
    """A copy of a model folder with another tokenizer, or with other settings that leave the weights as they are."""
    shutil.copytree(folder, to)
    if tokenizer is not None:
        for file in [*to.glob("tokenizer*"), *to.glob("chat_template*")]:
            file.unlink()
        tokenizer.save_pretrained(to)
    settings = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(settings | config))
    return to


def sentencepiece(template: str | None = None) -> Any:
    """As Llama 2's: pieces in the order of their scores, every pair that makes one, bytes for what is none."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator([TEXT] * 4, trainers.BpeTrainer(vocab_size=140, show_progress=False))
    pieces = sorted(learned.get_vocab(), key=learned.get_vocab().__getitem__)
    letters, words = [p for p in pieces if len(p) == 1][:80], [p for p in pieces if len(p) > 1]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words, *letters]
    vocab = {name: number for number, name in enumerate(names[:400])}
    merges = [
        (word[:cut], word[cut:])
        for word in words
        for cut in range(1, len(word))
        if word in vocab and word[:cut] in vocab and word[cut:] in vocab
    ]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if template:
        fast.chat_template = template
    return fast


def byte_level(cuts: Sequence[str], whole_words: bool, template: str | None = None) -> Any:
    """A tokenizer that cuts text by these expressions; `DIGIT` and `GPT2` of gguf_vocab stand for steps of their own."""
    from tokenizers import Regex, pre_tokenizers

    from luthier.exports.llama_cpp.vocabulary import DIGIT, GPT2

    steps: list[Any] = [
        pre_tokenizers.Digits(True) if cut == DIGIT else pre_tokenizers.Split(Regex(cut), "isolated")
        for cut in cuts
        if cut != GPT2
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=GPT2 in cuts))
    return build_tokenizer(template=template, cuts=pre_tokenizers.Sequence(steps), whole_words=whole_words)
