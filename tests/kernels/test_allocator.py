"""Freed memory stays with a process that trains."""

from __future__ import annotations

import subprocess
import sys

import pytest

TRIAL = """
import resource, torch
from luthier.kernels.process import keep_freed_memory
kept = {kept} and keep_freed_memory()
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for turn in range(5):
        # About 64 MiB, each a little smaller: a small allocation in between may take
        # the edge of what was freed, and glibc before 2.38 asks for an edge to align by.
        torch.zeros(2**24 - turn * 2**16)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc's allocator that is told")
def test_the_next_tensor_takes_the_pages_of_the_last_one() -> None:
    found = []
    for kept in (False, True):
        made = subprocess.run(
            [sys.executable, "-c", TRIAL.format(kept=kept)], capture_output=True, text=True, check=True
        )
        said, faults = made.stdout.split()
        if kept and said == "False":
            pytest.skip("no glibc here")
        found.append(int(faults))
    assert found[1] < 0.6 * found[0], found
