"""What rounding to 8 and 4 bit changes, on the embedded base: a LoRA run of its dialogues, exported in each scheme.

    python -m benchmarks.exports

It prints the table of docs/export.md: differences of the logits as shares of their standard deviation, over the held-out
answers. torchao and bitsandbytes are needed.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

SCHEMES = ("int8", "int8_dynamic", "llm_int8", "nf4")


def main() -> None:
    from luthier.pipeline.export import export
    from luthier.pipeline.train import train
    from luthier.recipe.config import RunConfig
    from luthier.recipe.parse import parse_export

    with tempfile.TemporaryDirectory() as place:
        words = ["model=builtin", "data=builtin:assistant", "method=lora", "train.epochs=10", "train.precision=fp32"]
        result = train(
            RunConfig.load(None, [*words, "evaluate.before=false", "evaluate.generate=0", f"run={place}/run"])
        )
        trained = result["tuned"]["loss"]["value"]
        print(
            f"| scheme | largest | mean | same most likely token | loss on held-out rows ({trained:.3f} as trained) |"
        )
        print("|---|---|---|---|---|")
        for scheme in SCHEMES:
            made = export(Path(place, "run"), parse_export("quantized", [f"scheme={scheme}"]))
            parity, loss = made["parity"][0], made["scores"]["export"]["loss"]["value"]
            print(
                f"| `{scheme}` | {parity['largest'] / parity['spread']:.2f} | {parity['mean'] / parity['spread']:.3f} "
                f"| {parity['same_top']:.1%} | {loss:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
