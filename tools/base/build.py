"""Builds the embedded base model: corpus, tokenizer, random start, training with Luthier itself, installation.

    python tools/base/build.py corpus    --data DIR     texts into build/base/corpus
    python tools/base/build.py start                    tokenizer and config.json into build/base/start
    luthier train recipes/builtin-base.yaml             stage 1, as any run
    python tools/base/build.py verdicts  --data DIR     reviews and their verdicts into build/base/verdicts
    luthier train recipes/builtin-base-verdicts.yaml    stage 2: the loss on the verdicts
    python tools/base/build.py install                  bf16 weights, tokenizer and model card into src/luthier/builtin/base

DIR holds the open data sets that the model card names (sst2, tinystories, llamafactory_demos). Their
texts stay out of the repository; the weights and this script are in it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import bank_en
import bank_zh
from generate import generated_texts, judged_review

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "base"
INSTALLED = ROOT / "src" / "luthier" / "builtin" / "base"
EMBEDDED = ROOT / "src" / "luthier" / "builtin" / "data"

GENERATED = 60_000
JUDGED, REHEARSED = 30_000, 6_000
HELD_OUT = 0.01
SHINGLE = 24  # characters; a text that shares this much with an embedded row is left out

END, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{%- for message in messages -%}\n<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor -%}\n{%- if add_generation_prompt -%}\n<|im_start|>assistant\n{% endif -%}"
)
CONFIG = {
    "vocab_size": 5120,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}

VERDICTS = {
    0: ["Thumbs down.", "One star.", "Not worth it.", "Skip it.", "Two stars at most.", "Bad."],
    1: ["Thumbs up.", "Five stars.", "Worth it.", "See it.", "Four stars at least.", "Good."],
}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def chat(*turns: tuple[str, str]) -> str:
    return "\n".join(f"{IM_START}{role}\n{text}{IM_END}" for role, text in turns)


def open_texts(data: Path, rng: random.Random) -> Iterator[tuple[str, str]]:
    """(source, text) of the openly licensed sets."""
    for row in lines(data / "sst2" / "train.jsonl"):
        text = str(row["text"]).strip()
        if len(text.split()) >= 3:
            verdict = rng.choice(VERDICTS[int(str(row["label"]))])
            shape = rng.random()
            yield "sst2", f"{text} {verdict}" if shape < 0.5 else (f"{verdict} {text}" if shape < 0.65 else text)
    for row in lines(data / "tinystories" / "train.jsonl"):
        yield "tinystories", str(row["text"])
    demos = data / "llamafactory_demos"
    for name in ("alpaca_en_demo", "alpaca_zh_demo"):
        for row in json.loads((demos / f"{name}.json").read_text(encoding="utf-8")):
            question = row["instruction"] + ("\n" + row["input"] if row.get("input") else "")
            yield name, chat(("user", question), ("assistant", row["output"]))
    for name in ("dpo_zh_demo", "dpo_en_demo"):
        for row in json.loads((demos / f"{name}.json").read_text(encoding="utf-8")):
            roles = {"human": "user", "gpt": "assistant", "system": "system"}
            turns = [(roles[turn["from"]], turn["value"]) for turn in row["conversations"] if turn["from"] in roles]
            yield name, chat(*turns, ("assistant", row["chosen"]["value"]))
    for row in json.loads((demos / "glaive_toolcall_zh_demo.json").read_text(encoding="utf-8")):
        roles = {"human": "user", "gpt": "assistant"}
        yield (
            "glaive_toolcall_zh_demo",
            chat(*((roles[turn["from"]], turn["value"]) for turn in row["conversations"] if turn["from"] in roles)),
        )
    for row in lines(demos / "c4_demo.jsonl"):
        yield "c4_demo", str(row["text"])
    for block in (demos / "wiki_demo.txt").read_text(encoding="utf-8").split("\n"):
        if len(block) > 80:
            yield "wiki_demo", block


def squeeze(text: str) -> str:
    return "".join(text.casefold().split())


def shingles(text: str) -> set[str]:
    """Every stretch of SHINGLE characters, white space and case left out."""
    plain = squeeze(text)
    return {plain[i : i + SHINGLE] for i in range(len(plain) - SHINGLE + 1)}


class Embedded:
    """The texts of every embedded row, training and held out: no corpus text may share a stretch with one."""

    def __init__(self) -> None:
        self.stretches: set[str] = set()
        self.short: set[str] = set()
        for file in EMBEDDED.glob("*/*.jsonl"):
            for row in lines(file):
                messages = row.get("messages", [])
                assert isinstance(messages, list)
                for part in [str(row.get("text", "")), *(message["content"] for message in messages)]:
                    self.stretches |= shingles(part)
                    # "Who are you?" belongs to everybody: short rows count from 16 bytes on.
                    if len(squeeze(part)) < SHINGLE and len(squeeze(part).encode()) >= 16:
                        self.short.add(squeeze(part))

    def overlaps(self, text: str) -> bool:
        plain = squeeze(text)
        return bool(shingles(text) & self.stretches) or any(row in plain for row in self.short)


def corpus(data: Path) -> None:
    rng = random.Random(0)
    embedded = Embedded()
    texts = list(open_texts(data, rng)) + [("generated", text) for text in generated_texts(GENERATED, seed=0)]
    counts: dict[str, list[int]] = {}
    kept, seen = [], set()
    for source, text in texts:
        count = counts.setdefault(source, [0, 0, 0])
        if text in seen:
            count[2] += 1
        elif embedded.overlaps(text):
            count[1] += 1
        else:
            count[0] += 1
            seen.add(text)
            kept.append(text)
    rng.shuffle(kept)
    cut = int(len(kept) * HELD_OUT)
    (BUILD / "corpus").mkdir(parents=True, exist_ok=True)
    for name, part in (("heldout", kept[:cut]), ("train", kept[cut:])):
        with (BUILD / "corpus" / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part)
    table = {
        source: dict(zip(("texts", "overlapping", "repeated"), count, strict=True)) for source, count in counts.items()
    }
    (BUILD / "corpus" / "sources.json").write_text(json.dumps(table, indent=1))
    print(json.dumps(table, indent=1))


def judged(text: str, said: str, gap: str, rng: random.Random) -> tuple[str, str]:
    """(review, its verdict): half of them as a dialogue, half with the verdict right behind the review."""
    if rng.random() < 0.5:
        return f"{IM_START}user\n{text}{IM_END}\n{IM_START}assistant\n", said + IM_END
    return text, gap + said


def verdicts(data: Path) -> None:
    """Stage 2: rows of a review and its verdict, and of texts cut in two, so that plain language is not lost."""
    rng = random.Random(1)
    embedded = Embedded()
    rows: list[tuple[str, str]] = []
    for row in lines(data / "sst2" / "train.jsonl"):
        text = str(row["text"]).strip()
        if len(text.split()) >= 3:
            bank = bank_en.VERDICT_GOOD if int(str(row["label"])) else bank_en.VERDICT_BAD
            rows.append(judged(text, rng.choice(bank), " ", rng))
    for _ in range(JUDGED):
        text, good, chinese = judged_review(rng)
        bank = bank_zh if chinese else bank_en
        said = rng.choice(bank.VERDICT_GOOD if good else bank.VERDICT_BAD)
        rows.append(judged(text, said, "" if chinese else " ", rng))
    for row in rng.sample(lines(BUILD / "corpus" / "train.jsonl"), REHEARSED):
        text = str(row["text"])[:600]
        cut = max(8, len(text) // 3)
        if len(text) > 24:
            rows.append((text[:cut], text[cut:]))
    kept = [row for row in rows if row[0].strip() and row[1].strip() and not embedded.overlaps("".join(row))]
    print(f"{len(kept)} rows, {len(rows) - len(kept)} left out")
    rng.shuffle(kept)
    (BUILD / "verdicts").mkdir(parents=True, exist_ok=True)
    for name, part in (("heldout", kept[:800]), ("train", kept[800:])):
        with (BUILD / "verdicts" / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"prompt": p, "completion": c}, ensure_ascii=False) + "\n" for p, c in part)


def start() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[END, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (str(row["text"]) for row in lines(BUILD / "corpus" / "train.jsonl"))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=512,
        extra_special_tokens=[IM_START, IM_END],
    )
    fast.chat_template = TEMPLATE
    (BUILD / "start").mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(BUILD / "start")
    ids = dict(bos_token_id=None, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id)
    Qwen2Config(**CONFIG, **ids, architectures=["Qwen2ForCausalLM"]).save_pretrained(BUILD / "start")


def install() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    run = BUILD / "run-verdicts"
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.bfloat16)
    model.save_pretrained(INSTALLED)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(run / "model" / name, INSTALLED / name)
    result = json.loads((run / "result.json").read_text())
    print(f"parameters {result['parameters']:,}, tokens seen {result['tokens']:,}, tuned {result['tuned']}")
    total = sum(path.stat().st_size for path in INSTALLED.iterdir())
    print(f"{total / 1e6:.2f} MB in {INSTALLED.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["corpus", "start", "verdicts", "install"])
    parser.add_argument("--data", type=Path, help="folder with sst2, tinystories and llamafactory_demos")
    arguments = parser.parse_args()
    if arguments.step in ("corpus", "verdicts"):
        if arguments.data is None:
            parser.error(f"{arguments.step} needs --data DIR")
        (corpus if arguments.step == "corpus" else verdicts)(arguments.data)
    elif arguments.step == "start":
        start()
    else:
        install()


if __name__ == "__main__":
    main()
