"""What the methods' papers print for the tasks of this benchmark, and how its own order compares: docs/methods.md.

Only figures for the very task: other tasks are in src/luthier/planning/advisor/papers.json. CLINC150 stands in none of the papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Printed:
    """One column of a paper's table."""

    source: str
    base: str
    scores: dict[str, float]
    """Name as in run.ARMS -> score of the table; for adapters, the size nearest to the other methods'."""


_ROBERTA = "RoBERTa-base, 125 M"
_DEBERTA = "DeBERTaV3-base, 184 M"
_GPT2 = "GPT-2 medium, 355 M"

PAPERS: dict[str, list[Printed]] = {
    "sst2": [
        Printed("Hu 2021, Table 2", _ROBERTA, {"full": 94.8, "bitfit": 93.7, "lora": 95.1}),
        Printed(
            "He 2021, Table 2",
            _ROBERTA,
            {"full": 94.6, "bitfit": 93.7, "prefix": 94.0, "lora": 94.2, "mam": 94.2},
        ),
        Printed(
            "Zhang 2023, Table 1",
            _DEBERTA,
            {"full": 95.63, "bitfit": 94.84, "houlsby": 95.53, "pfeiffer": 95.61, "lora": 94.95, "adalora": 96.10},
        ),
        Printed("Kopiczko 2023, Table 2", _ROBERTA, {"full": 94.8, "bitfit": 93.7, "lora": 95.1, "vera": 94.6}),
    ],
    "cola": [
        Printed("Hu 2021, Table 2", _ROBERTA, {"full": 63.6, "bitfit": 62.0, "lora": 63.4}),
        Printed(
            "Zhang 2023, Table 1",
            _DEBERTA,
            {"full": 69.19, "bitfit": 66.96, "houlsby": 68.64, "pfeiffer": 68.77, "lora": 69.82, "adalora": 71.45},
        ),
        Printed("Kopiczko 2023, Table 2", _ROBERTA, {"full": 63.6, "bitfit": 62.0, "lora": 63.4, "vera": 65.6}),
    ],
    "e2e": [
        Printed(
            "Hu 2021, Table 3",
            _GPT2,
            {"full": 68.2, "freeze": 68.1, "houlsby": 67.3, "prefix": 69.7, "lora": 70.4},
        ),
    ],
}
"""Task -> what is printed. In Hu 2021 `prefix` is PreLayer, `freeze` its FT of the top two layers, `houlsby` AdapterH of
11 million parameters."""


def pairs(ours: dict[str, tuple[float, float]], printed: dict[str, float]) -> tuple[list[str], list[str], list[str]]:
    """Pairs of methods in the same order as printed, in the other, and undecided here, as "better > worse" of the paper.

    `ours` is (mean, spread) by method. A pair is undecided where the means are nearer than the larger spread.
    """
    same, other, open_ = [], [], []
    for one, two in combinations([name for name in printed if name in ours], 2):
        if printed[one] == printed[two]:
            continue
        better, worse = (one, two) if printed[one] > printed[two] else (two, one)
        gap, spread = ours[better][0] - ours[worse][0], max(ours[one][1], ours[two][1])
        (open_ if abs(gap) <= spread else same if gap > 0 else other).append(f"{better} > {worse}")
    return same, other, open_
