"""Layers that PEFT lacks, registered as PEFT methods: bias deltas, bottlenecks, prefixes, MAM, UniPELT.

`import luthier` arranges that this package is imported with PEFT, which then knows them, and so does transformers.
"""

from luthier.methods.layers import bias, composite  # noqa: F401  (both register theirs)
