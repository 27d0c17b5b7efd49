"""What papers say of a method, with the place to look it up: figures of theirs beside those measured here.

Each is on the paper's own models and data, so it is set beside a measured value, never against it.
"""

from __future__ import annotations

MAM = "arXiv 2110.04366, table 2 (RoBERTa-base, MNLI and SST-2)"
LORA = "arXiv 2106.09685, table 2 (RoBERTa-base, mean of GLUE)"

CLAIMS: dict[str, tuple[str, str]] = {
    "full": ("MNLI 87.6, SST-2 94.6: what the others are set beside", MAM),
    "bitfit": ("85.2 with 0.1 M parameters, full fine-tuning 86.4", LORA),
    "prefix": ("MNLI 86.3, SST-2 94.0 with 0.5 % of the parameters; full 87.6 and 94.6", MAM),
    "prompt": (
        "far below full fine-tuning on models of this size: BLEU 21.0, full 37.3 (BART-large, en-ro)",
        "arXiv 2110.04366, table 2",
    ),
    "p_tuning_v2": ("as good as full fine-tuning with 0.1 to 3 % of the parameters", "arXiv 2110.07602, abstract"),
    "houlsby": (
        "80.0 with 3.6 % of the parameters, full fine-tuning 80.4 (BERT-large, GLUE test)",
        "arXiv 1902.00751, table 1",
    ),
    "pfeiffer": (
        "88.24 with 1.2 M parameters, full fine-tuning 88.09 (DeBERTaV3-base, mean of GLUE)",
        "arXiv 2303.10512, table 1",
    ),
    "parallel_adapter": ("ROUGE-2 21.41 with 12.3 %, full 21.94 (BART-large, XSum)", "arXiv 2110.04366"),
    "scaled_parallel": ("ROUGE-2 21.54, full 21.94 (BART-large, XSum)", "arXiv 2110.04366"),
    "lora": ("87.2 with 0.3 M parameters, full fine-tuning 86.4", LORA),
    "dora": (
        "77.5 with rank 16 where LoRA of rank 32 has 76.3 (LLaMA-7B, mean of commonsense tasks)",
        "arXiv 2402.09353",
    ),
    "pissa": ("72.86 where LoRA has 67.7 (Mistral-7B, GSM8K)", "arXiv 2404.02948"),
    "adalora": (
        "89.31 where LoRA has 88.34 with as many parameters (DeBERTaV3-base, mean of GLUE)",
        "arXiv 2303.10512, table 1",
    ),
    "qlora": ("MMLU 53.1 in 4 bit, 53.0 in bfloat16", "arXiv 2305.14314"),
    "ia3": ("75.8 where people have 73.5 (T-Few 11B, RAFT)", "arXiv 2205.05638"),
    "mam": ("MNLI 87.4, SST-2 94.2 with 0.5 %; full 87.6 and 94.6", MAM),
    "unipelt": ("83.50 with 1.26 %, full fine-tuning 82.67 (BERT-base, mean of GLUE)", "arXiv 2110.07577"),
}
"""Name in a comparison -> what the paper's table says, and which."""


def claims(arm: str, method: str) -> dict[str, str] | None:
    """{text, source} for an arm; None where no figure of a paper is at hand."""
    found = CLAIMS.get(arm) or (CLAIMS.get(method) if arm == method else None)
    return {"text": found[0], "source": found[1]} if found else None
