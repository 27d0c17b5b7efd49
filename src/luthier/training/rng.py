"""Random states of all generators that a run draws from: put back, the next draws are the same."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.errors import InputError


@dataclass(frozen=True, slots=True)
class RandomState:
    """What torch (on the CPU and each GPU), Python and NumPy will draw next."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]
    """JSON holds them."""

    @classmethod
    def now(cls) -> "RandomState":
        """The states as they are."""
        tensors = {"rng.torch": torch.get_rng_state()}
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            tensors |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        version, inner, gauss = random.getstate()
        kind, keys, place, has_gauss, kept = np.random.get_state(legacy=True)
        numpy = [kind, np.asarray(keys).tolist(), place, has_gauss, kept]
        return cls(tensors, {"python": [version, list(inner), gauss], "numpy": numpy})

    def put_back(self) -> None:
        """Let every generator go on from here. InputError where the number of GPUs is another."""
        cuda = [key for key in self.tensors if key.startswith("rng.cuda.")]
        if cuda and torch.cuda.is_available():
            if len(cuda) != torch.cuda.device_count():
                raise InputError(
                    f"the run was started with {len(cuda)} GPUs, here are {torch.cuda.device_count()}",
                    fix="CUDA_VISIBLE_DEVICES as at the start, or run=ANOTHER_DIR",
                )
            torch.cuda.set_rng_state_all([self.tensors[f"rng.cuda.{i}"] for i in range(len(cuda))])
        version, inner, gauss = self.numbers["python"]
        random.setstate((version, tuple(inner), gauss))
        kind, keys, place, has_gauss, kept = self.numbers["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, has_gauss, kept))
        torch.set_rng_state(self.tensors["rng.torch"])


def seed(number: int) -> None:
    """Seed every generator: Python, NumPy and torch on each device."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)
