"""AdapterFusion: what several trained adapters add, combined by attention over them (arXiv 2005.00247, section 3).

    delta(u) = sum_n p_n V d_n(u),  p = softmax_n((Q u + b_q) . (K d_n(u) + b_k))      Q, K, V: [H, H]

d_n is what adapter n adds to the residual. As in AdapterHub, which the authors wrote: u is what the adapters read, V
starts as the identity (1e-6 beside the diagonal), Q and K at N(0, 0.02). AdapterHub also drops scores, at the rate of
the model's attention; here nothing is dropped, so that a step does not depend on the model's own dropout.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.activations import ACT2FN

from luthier.core.errors import InputError
from luthier.core.files import read_object
from luthier.methods.layers.bottleneck import (
    PHM,
    AfterOutput,
    AroundBertOutput,
    AroundBlock,
    Bottleneck,
    BottleneckConfig,
    projections,
)
from luthier.methods.layers.loading import RESTORE, WEIGHTS, shapes_of
from luthier.models.files import refuse_file

FIX = "method.adapters: runs or adapter folders that pfeiffer, houlsby, compacter or parallel_adapter left on this base"
OWN = "base_model.model."
"""What stands before a module's name in an adapter's file."""


@dataclass
class FusionConfig(BottleneckConfig):
    """The adapters that are fused."""

    adapters: list[str] | None = None  # folders that they are read from, at the start only
    sizes: list[int] | None = None  # width of each
    activations: list[str] | None = None  # non-linearity of each

    def to_dict(self) -> dict[str, Any]:
        # A saved fusion holds its adapters' weights, and does not need their folders again.
        return {**super().to_dict(), "adapters": None}


class UpProjections(nn.Module):
    """The up projections of the fused adapters, side by side: weight [H, sum of the widths], bias [N, H]."""

    def __init__(self, sizes: list[int], hidden: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.weight = nn.Parameter(torch.zeros(hidden, sum(sizes)))
        self.bias = nn.Parameter(torch.zeros(len(sizes), hidden))

    def forward(self, parts: list[Tensor]) -> Tensor:
        """[..., width] of each adapter -> [..., N, H]."""
        each = zip(parts, torch.split(self.weight, self.sizes, dim=1), self.bias, strict=True)
        return torch.stack([nn.functional.linear(h, weight, bias) for h, weight, bias in each], dim=-2)


class Fused(Bottleneck):
    """The fused delta; subclasses say where it is added."""

    containers: ClassVar = dict.fromkeys(("down", "up", "query", "key", "value"), nn.ModuleDict)

    def fill(self, adapter: str, config: Any) -> None:
        hidden = self.model_config.hidden_size
        self.held("down")[adapter] = nn.Linear(hidden, sum(config.sizes))
        self.held("up")[adapter] = UpProjections(config.sizes, hidden)
        for short in ("query", "key"):
            linear = self.held(short)[adapter] = nn.Linear(hidden, hidden)
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        value = self.held("value")[adapter] = nn.Linear(hidden, hidden, bias=False)
        with torch.no_grad():
            value.weight.fill_(1e-6).fill_diagonal_(1.0)

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        super().set_adapter(*args, **kwargs)
        for short in ("down", "up"):
            self.held(short).requires_grad_(False)

    def weights(self, name: str, u: Tensor, made: Tensor) -> Tensor:
        """How much each adapter counts for each token: u [..., H], made [..., N, H] -> [..., N]."""
        query, key = self.held("query")[name](u), self.held("key")[name](made)
        return torch.softmax((key @ query[..., None])[..., 0].float(), dim=-1)

    def delta(self, name: str, u: Tensor) -> Tensor:
        config, value = self.settings[name], self.held("value")[name]
        x = u.to(value.weight.dtype)
        parts = self.held("down")[name](x).split(config.sizes, dim=-1)
        acts = [ACT2FN[activation] for activation in config.activations]
        made = self.held("up")[name]([act(part) for act, part in zip(acts, parts, strict=True)])  # [..., N, H]
        shares = self.weights(name, x, made)
        # V is linear: it is applied once, to the sum, in place of once for each adapter.
        return value((shares[..., None].to(made.dtype) * made).sum(-2)).to(u.dtype)  # type: ignore[no-any-return]


class FusedAfter(Fused, AfterOutput):
    """After a sub-layer."""


class AroundFused(Fused, AroundBlock):
    """Around the feed-forward of a model, or its last layer."""


class BertFused(Fused, AroundBertOutput):
    """Around BertOutput."""


def penalty(model: nn.Module) -> Tensor:
    """0.01 times the squared distance of every V from the identity, which AdapterHub adds to the loss."""
    values = [m.weight for each in model.modules() if isinstance(each, Fused) for m in each.held("value").values()]
    eye = torch.eye(len(values[0]), device=values[0].device)
    return 0.01 * torch.stack([(value - eye.to(value.device)).square().sum().to(eye.device) for value in values]).sum()


def read_parts(config: FusionConfig, model: nn.Module) -> None:
    """Fill in place and settings from the folders that `config` names. InputError where they cannot be fused.

    Without folders it must hold the settings already, as a saved fusion does.
    """
    if not config.adapters:
        if not config.sizes:
            raise InputError("method fusion: it has no adapters to fuse", fix=FIX)
        return
    folders = [_folder(given) for given in config.adapters]
    all_settings = [read_object(folder / "adapter_config.json", RESTORE) for folder in folders]
    for folder, settings in zip(folders, all_settings, strict=True):
        if settings.get("peft_type") != "BOTTLENECK":
            kind = str(settings.get("peft_type")).lower()
            raise InputError(f"method fusion: {folder} is no bottleneck adapter ({kind})", fix=FIX)
        base, own = settings.get("base_model_name_or_path"), getattr(model, "name_or_path", "")
        if base and own and Path(base).expanduser().resolve() != Path(own).expanduser().resolve():
            fix = f"adapters of {own}; or if it was only moved, its new path in {folder / 'adapter_config.json'}"
            raise InputError(f"method fusion: {folder} was trained on another base, {base}", fix=fix)
        for key in ("place", "reads"):
            if settings[key] != all_settings[0][key]:
                what = f"{key} is {all_settings[0][key]} in {folders[0]} and {settings[key]} in {folder}"
                raise InputError(f"method fusion: the adapters stand at different places: {what}", fix=FIX)
    blocks = [{name for name in shapes_of(folder) if name.endswith("up.bias")} for folder in folders]
    for folder, names in zip(folders, blocks, strict=True):
        if names != blocks[0]:
            what = f"{folders[0]} and {folder} have adapters in different layers, among them {min(names ^ blocks[0])}"
            raise InputError(f"method fusion: {what}", fix="adapters with the same place and drop")
    config.place, config.reads = all_settings[0]["place"], all_settings[0]["reads"]
    config.target_modules, config.layers_to_transform = all_settings[0]["target_modules"], None
    config.sizes = [settings["size"] for settings in all_settings]
    config.activations = [settings["activation"] for settings in all_settings]


@torch.no_grad()
def load_parts(config: Any, model: nn.Module, adapter: str) -> None:
    """Read the weights of the adapters that `config` names. InputError where they do not fit this base.

    They never train, so factors are multiplied into the up projection, and sums of Kronecker products are carried out.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, Fused)]
    for number, folder in enumerate(map(_folder, config.adapters or ())):
        own: Any = BottleneckConfig.from_pretrained(str(folder))
        # One bottleneck takes in the weights of each place in turn.
        down, up = projections(own, layers[0][1].model_config.hidden_size)
        template = nn.ModuleDict({"down": down, "up": up})
        if own.learned_scale:
            template.register_parameter("scale", nn.Parameter(torch.ones(1)))
        wanted = {
            f"{OWN}{name}.bottleneck_{key}": each for name, _ in layers for key, each in template.state_dict().items()
        }
        shapes = {name: shape for name, shape in shapes_of(folder).items() if ".bottleneck_" in name}
        odd = wanted.keys() ^ shapes.keys() or {name for name in wanted if tuple(wanted[name].shape) != shapes[name]}
        if odd:
            what = f"{len(odd)} of its weights do not fit this base, among them {min(odd)}"
            raise InputError(f"method fusion: {folder}: {what}", fix=FIX)
        if layers[0][1].held("down")[adapter].weight.is_meta:
            continue
        refuse_file(folder / WEIGHTS)
        stored, start = load_file(folder / WEIGHTS), sum((config.sizes or [])[:number])
        span = slice(start, start + own.size)
        for name, layer in layers:
            template.load_state_dict({key: stored[f"{OWN}{name}.bottleneck_{key}"] for key in template.state_dict()})
            scale = getattr(template, "scale", own.scale)
            into, back = layer.held("down")[adapter], layer.held("up")[adapter]
            into.weight[span], into.bias[span] = _matrix(down), down.bias
            back.weight[:, span], back.bias[number] = _matrix(up) * scale, up.bias * scale


def _matrix(projection: Any) -> Tensor:
    """[out, in]."""
    return projection.matrix().T if isinstance(projection, PHM) else projection.weight


def _folder(given: str) -> Path:
    """The adapter's folder of a run, or the folder itself. InputError where it holds no adapter."""
    path = Path(given).expanduser()
    for folder in (path / "adapter", path):
        if (folder / "adapter_config.json").is_file():
            return folder
    what = "there is no such folder" if not path.is_dir() else "it holds no adapter, nor is it a finished run"
    raise InputError(f"method fusion: {given}: {what}", fix=FIX)
