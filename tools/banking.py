"""Writes builtin:banking: the domain banking of CLINC150 (Larson et al. 2019, CC BY 3.0), as Luthier embeds it.

    python tools/banking.py DATA        DATA: the folder data of https://github.com/clinc/oos-eval

Training rows are the first 60 of each intent that its train part has, and held-out rows the first 20 of its test part
that resemble no training row: of their four-letter stretches fewer than half are common to both.
"""

import json
import random
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "src" / "luthier" / "builtin" / "data" / "banking"
TRAIN, HELD_OUT = 60, 20
LIKENESS = 0.5
"""Share of common stretches from which on two messages are nearly the same."""


def stretches(text: str) -> set[str]:
    plain = "".join(text.casefold().split())
    return {plain[i : i + 4] for i in range(len(plain) - 3)}


def main(source: Path) -> None:
    intents = json.loads((source / "domains.json").read_text(encoding="utf-8"))["banking"]
    parts = json.loads((source / "data_full.json").read_text(encoding="utf-8"))
    rows: dict[str, list[dict[str, str]]] = {"train": [], "heldout": []}
    for intent in intents:
        label = intent.replace("_", " ")
        texts = {part: list(dict.fromkeys(t for t, i in parts[part] if i == intent)) for part in ("train", "test")}
        rows["train"] += [{"text": text, "label": label} for text in texts["train"][:TRAIN]]
        rows["heldout"] += [{"text": text, "label": label} for text in texts["test"]]
    known = [stretches(row["text"]) for row in rows["train"]]

    def new(row: dict[str, str]) -> bool:
        own = stretches(row["text"])
        return all(len(own & other) < LIKENESS * len(own | other) for other in known)

    fresh = [row for row in rows["heldout"] if new(row)]
    labels = dict.fromkeys(row["label"] for row in fresh)
    rows["heldout"] = [row for label in labels for row in [r for r in fresh if r["label"] == label][:HELD_OUT]]
    TARGET.mkdir(exist_ok=True)
    for part, found in rows.items():
        random.Random(0).shuffle(found)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (TARGET / f"{part}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{part}: {len(found)} rows, {len(lines.encode()):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
