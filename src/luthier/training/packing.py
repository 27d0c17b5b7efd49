"""Packing: may this task and method share a sequence among rows, and does this model keep the rows apart?"""

from typing import Any

from luthier.core.errors import InputError
from luthier.methods.base import Method, Model
from luthier.tasks.base import Task

FIX = "train.packing=false"


def check_packing(task: Task, method: Method) -> None:
    """InputError where rows cannot share a sequence. Cheap: comes before any weights."""
    if task.model_class == "classification":
        raise InputError(f"train.packing: task {task.name} has one answer for each sequence", fix=FIX)
    if not method.packs or method.positions:
        why = "puts its tokens in front of a sequence, so only its first row would have them"
        fix = f"{FIX}, or method=prefix, whose keys and values every row sees"
        raise InputError(f"train.packing: method {method.name} {why}", fix=fix)


def packs_well(device: str, precision: str) -> bool:
    """Is a packed sequence no slower than padded rows? A GPU needs a kernel for rows of many lengths."""
    if device != "cuda" or precision == "fp32":
        return device == "cpu"
    import torch

    return torch.cuda.get_device_capability()[0] >= 8  # torch's variable-length kernel is Flash Attention's


def prove_packing(model: Model, vocabulary: int) -> None:
    """Run two short rows apart and in one sequence; InputError where the logits differ."""
    import torch

    from luthier.kernels.attention import row_by_row
    from luthier.kernels.frozen_linear import evaluating

    # Whether attention stops at a row's edge is up to the model's own code: most of transformers reads it off the
    # positions, some (state-space and linear attention, remote code) do not.
    rows = [[1 + (7 * place + start) % (vocabulary - 1) for place in range(6)] for start in (3, 11)]
    place = next(model.parameters()).device

    def logits(ids: list[int], positions: list[int]) -> Any:
        row, places = torch.tensor([ids], device=place), torch.tensor([positions], device=place)
        return model(input_ids=row, position_ids=places, use_cache=False).logits[0].float()

    with evaluating(model), row_by_row(model):
        apart = torch.cat([logits(ids, list(range(6))) for ids in rows])
        together = logits(rows[0] + rows[1], [*range(6), *range(6)])
    half = any(p.dtype.itemsize < 4 for p in model.parameters())
    difference = float((apart - together).abs().max() / apart.std())
    if not difference < (0.1 if half else 1e-3):
        what = f"crosses from row to row in one sequence (logits differ by {difference:.2g} of their spread)"
        raise InputError(f"train.packing: the attention of {type(model).__name__} {what}", fix=FIX)
