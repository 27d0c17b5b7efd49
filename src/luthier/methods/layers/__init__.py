"""Layers that PEFT lacks, registered as PEFT methods: bias deltas, bottlenecks, prefixes, MAM, UniPELT.

Importing this package makes `get_peft_model`, `PeftModel.from_pretrained` and transformers' own `load_adapter` know
them. `import luthier` arranges that it is imported with PEFT.
"""

from luthier.methods.layers import bias, composite  # noqa: F401  (both register theirs)
