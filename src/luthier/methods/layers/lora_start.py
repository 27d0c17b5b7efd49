"""Where LoRA's A and B start, other than as noise and zero.

With W: [out, in] frozen, s the scale, A: [rank, in], B: [out, rank]. Some starts are taken out of the base, which
becomes W - s B A, so that the tuned model starts at the base's function.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.core.errors import InputError

GAMMA = 16.0
"""LoRA-GA: the larger, the smaller A and B start; the authors' code has 16."""
DAMPING, INVERTED = 0.01, 0.05
"""CorDA: what is added to the covariance's diagonal, relative to its mean, doubled until the inverse is this exact."""

TOGETHER = 256
"""EVA: inputs that are taken into account at a time."""

Pair = tuple[Tensor, Tensor]
"""A and B."""


def adapted(model: nn.Module) -> dict[str, Any]:
    """Name -> LoRA layer of each plain linear layer; experts held as one tensor start as noise and zero."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    single = {n: layer for n, layer in found.items() if getattr(layer, "num_experts", 1) == 1}
    return {n: layer for n, layer in single.items() if hasattr(layer.get_base_layer(), "weight")}


def weight_of(layer: Any) -> Tensor:
    """The frozen weight in float32, [out, in]."""
    weight: Tensor = dequantize_module_weight(layer.get_base_layer()).detach().float()
    return weight.T if _turned(layer) else weight


def _turned(layer: Any) -> bool:
    """Whether the weight is [in, out], as GPT-2's."""
    return isinstance(layer.get_base_layer(), Conv1D)


def set_pair(layer: Any, pair: Pair) -> None:
    """Give the layer this A and B; its weights keep their memory, which an optimizer may hold."""
    for container, value in zip((layer.lora_A, layer.lora_B), pair, strict=True):
        container["default"].weight.data.copy_(value)


@torch.no_grad()
def take_out(layer: Any) -> None:
    """Take what A and B add at the start out of the frozen weight."""
    base = layer.get_base_layer()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    rest = weight_of(layer) - layer.scaling["default"] * (b.float() @ a.float())
    base.weight.data = (rest.T.contiguous() if _turned(layer) else rest).to(
        base.weight.dtype
    )  # others may share the old one


@torch.no_grad()
def from_weights(model: nn.Module, init: str, rank: int) -> None:
    """PiSSA (arXiv 2404.02948, eq. 2 to 4) or OLoRA (2406.01775, section 3); or PEFT's orthogonal, where B A is 0."""
    for layer in adapted(model).values():
        weight = weight_of(layer)
        if init == "pissa":
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            set_pair(layer, halves(u, s, vh, rank, layer.scaling["default"]))
        elif init == "olora":
            q, r = torch.linalg.qr(weight)
            set_pair(layer, (r[:rank], q[:, :rank]))
        else:
            q, _ = torch.linalg.qr(torch.randn(rank, rank))
            a, b = (torch.randn(side, rank // 2) @ q[half::2] / 10 for half, side in enumerate(reversed(weight.shape)))
            set_pair(layer, (a.T, b))


def halves(u: Tensor, s: Tensor, vh: Tensor, rank: int, scale: float) -> Pair:
    """The first directions of U S V^T as A and B of equal size, whose product times `scale` is their sum."""
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


@torch.no_grad()
def from_files(model: Any, init: str, rank: int) -> None:
    """LoftQ (arXiv 2310.08659, algorithm 1, one iteration): A and B from what packing has lost of the weights.

    InputError where the base's files hold no weight by the name of a layer, or one of another shape.
    """
    from safetensors import safe_open

    from luthier.kernels.frozen_linear import is_packed

    layers = {name: layer for name, layer in adapted(model).items() if is_packed(layer.get_base_layer())}
    files = files_of(model, map(stored_name, layers))
    for name, layer in layers.items():
        packed, key = weight_of(layer), stored_name(name)
        with safe_open(files[key], framework="pt") as opened:
            weight = opened.get_tensor(key).to(packed)
            weight = weight.T if _turned(layer) else weight
        u, s, vh = torch.linalg.svd(weight - packed, full_matrices=False)
        set_pair(layer, halves(u, s, vh, rank, layer.scaling["default"]))


def stored_name(layer: str) -> str:
    """Name of the weight of a layer of the tuned model in the base's files."""
    return f"{layer.removeprefix('base_model.model.')}.weight"


def files_of(model: Any, names: Iterable[str]) -> dict[str, Path]:
    """Name -> file of each weight of the base; InputError where one of `names` is in none."""
    from huggingface_hub import snapshot_download

    from luthier.models.files import shapes_in, weight_files

    source, commit = model.config._name_or_path, getattr(model.config, "_commit_hash", None)
    folder = Path(source)
    if source and not folder.is_dir():
        folder = Path(snapshot_download(source, revision=commit, local_files_only=True))
    files = {n: file for file in weight_files(folder) for n in shapes_in(file, "restore it")} if source else {}
    if missing := sorted({*names} - files.keys()):
        message = f"method.init=loftq: the files of the base {source} hold no {missing[0]} as it was before packing"
        raise InputError(message, fix="a base that is stored layer by layer and not packed, or method.init=default")
    return files


def from_rows(model: Any, init: str, rank: int, batches: Iterable[Callable[[Any], Tensor]]) -> None:
    """EVA, CorDA or LoRA-GA, from losses of rows: each of `batches` gives the loss of one row under a model."""
    layers = adapted(model)
    put_in = {"eva": _eva, "corda": _corda, "lora_ga": _lora_ga}[init]
    training = model.training
    try:
        with model.disable_adapter():
            put_in(model.eval(), layers, rank, batches)
    finally:
        model.train(training)


@contextmanager
def _watched(layers: dict[str, Any], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within it, `see` is called with the name of a layer and its inputs, [tokens, in]."""

    def hook(name: str) -> Any:
        return lambda module, args: see(name, args[0].detach().float().flatten(0, -2))

    hooks = [layer.get_base_layer().register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


@torch.no_grad()
def _eva(model: Any, layers: dict[str, Any], rank: int, batches: Iterable[Callable[[Any], Tensor]]) -> None:
    """Paischer et al. 2024, arXiv 2410.07170, section 3: A is the largest directions of a layer's inputs, B zero.

    All layers have the same rank, which the paper moves to where more variance is explained.
    """
    from peft.utils.incremental_pca import IncrementalPCA

    def tracker(width: int) -> Any:
        kept = min(2 * rank, width)  # more than are wanted, so that what comes late is not lost
        return IncrementalPCA(kept, lowrank=True, lowrank_q=min(2 * kept, width), lowrank_seed=0)

    found = {name: tracker(layer.lora_A["default"].in_features) for name, layer in layers.items()}
    waiting: dict[str, list[Tensor]] = {name: [] for name in layers}

    def fit(name: str, least: int) -> None:
        if sum(map(len, waiting[name])) >= least:
            found[name].partial_fit(torch.cat(waiting[name]))
            waiting[name].clear()

    def see(name: str, x: Tensor) -> None:
        waiting[name].append(x)
        fit(name, max(TOGETHER, 8 * rank))

    with _watched(layers, see):
        for loss in batches:
            loss(model)
    for name, layer in layers.items():
        fit(name, need := 4 * rank)
        seen = getattr(found[name], "components_", None)
        if seen is None:
            few = f"only {sum(map(len, waiting[name]))} tokens of {name} were seen, and rank {rank} needs {need}"
            raise InputError(f"method.init=eva: {few}", fix="more method.start_rows, more rows, or method.init=default")
        set_pair(layer, (seen[:rank], torch.zeros_like(layer.lora_B["default"].weight)))


@torch.no_grad()
def _corda(model: Any, layers: dict[str, Any], rank: int, batches: Iterable[Callable[[Any], Tensor]]) -> None:
    """Yang et al. 2024, arXiv 2406.05223, section 3.2, instruction-previewed: W C = U S V^T, W = U S (V^T C^-1).

    C is the covariance of a layer's inputs; A and B are the components with the largest S.
    """
    sums: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        sums[name] = sums[name].addmm_(x.T, x) if name in sums else x.T @ x

    with _watched(layers, see):
        for loss in batches:
            loss(model)
    for name, layer in layers.items():
        if name not in sums:  # no token came here: the identity says nothing about the inputs
            sums[name] = torch.eye(weight_of(layer).shape[1], device=weight_of(layer).device)
        covariance = sums.pop(name)
        covariance /= covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        one = torch.eye(len(covariance), device=covariance.device)
        damping = DAMPING
        while torch.dist((covariance + damping * one) @ torch.linalg.inv(covariance + damping * one), one) > INVERTED:
            damping *= 2
        damped = covariance + damping * one
        u, s, vh = torch.linalg.svd(weight_of(layer) @ damped, full_matrices=False)
        set_pair(layer, halves(u, s, vh @ torch.linalg.inv(damped), rank, layer.scaling["default"]))


def _lora_ga(model: Any, layers: dict[str, Any], rank: int, batches: Iterable[Callable[[Any], Tensor]]) -> None:
    """Wang et al. 2024, arXiv 2407.05000, algorithm 1: the first step goes where a step of full fine-tuning would.

    Of the gradient of W, U S V^T: A is the first `rank` rows of V^T, B the next columns of U, both times
    out^(1/4) / sqrt(gamma).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        for weight in weights.values():
            weight.requires_grad_(True)
        with torch.enable_grad():
            for loss in batches:
                torch.autograd.backward(loss(model))
        for name, layer in layers.items():
            grad = weights[name].grad
            grad = torch.zeros_like(weights[name]) if grad is None else grad
            weights[name].grad = None
            grad = grad.float().T if _turned(layer) else grad.float()
            u, _, v = torch.svd_lowrank(grad, q=min(4 * rank, *grad.shape), niter=4)
            size = len(u) ** 0.25 / GAMMA**0.5
            set_pair(layer, (size * v[:, :rank].T, size * u[:, rank : 2 * rank]))
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None
        for parameter in trained:
            parameter.requires_grad_(True)
