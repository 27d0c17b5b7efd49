"""What the layers here share: finding modules, wrapping and attaching layers, and taking them off again.

Two rules of PEFT 0.21 shape all files here, each learnt from a failing test:

- A parameter container is named `<prefix of the tuner><short name>` and keyed by the adapter name: transformers' own
  `load_adapter` finds weights by that prefix.
- Tuner layers are never nested: PEFT skips everything below one when a second adapter comes. So a prefix is a child of
  the attention with a hook, not a wrapper around it.

PEFT's enum of method names is closed, so `register` adds members to it. Goes when PEFT takes names from outside
(https://github.com/huggingface/peft/issues/2634 is the nearest request).
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, register_peft_method
from peft.utils.peft_types import PeftType, TaskType
from safetensors import safe_open
from torch import Tensor, nn

from luthier.models.module_map import TABLES, ModuleMap, module_map_of


def register(name: str, config: Any, model: Any) -> None:
    """Add `name` (upper case) to PEFT's enum of methods, and register configuration and model under it."""
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    vars(member).update(_sort_order_=len(PeftType._member_names_), __objclass__=PeftType)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    if PeftType(name) is not member or name not in list(PeftType):
        raise RuntimeError(f"PEFT's method names can no longer be extended (adding {name}): its enum has changed")
    config.kind = member
    register_peft_method(name=name.lower(), config_cls=config, model_cls=model, prefix=model.prefix)


@dataclass
class TunerConfig(PeftConfig):
    """Fields that every configuration here has, beside PEFT's own."""

    kind: ClassVar[PeftType]  # set by `register`
    target_modules: Any = None  # filled in from the architecture
    exclude_modules: Any = None  # read by PEFT
    layers_to_transform: Any = None  # read by PEFT
    modules_to_save: list[str] | None = None  # trained and saved whole: a head

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = self.kind

    @property
    def blocks(self) -> set[int] | None:
        """The blocks that `layers_to_transform` names, or None for all."""
        chosen = self.layers_to_transform
        return None if chosen is None else {chosen} if isinstance(chosen, int) else set(chosen)


class Target(NamedTuple):
    """Where a layer goes: on `module`, which is `parent.name`."""

    config: Any
    adapter: str
    module: nn.Module
    name: str
    parent: nn.Module
    key: str = ""
    """Its whole name in the model."""


class Tuner(BaseTuner):
    """What our PEFT model classes share."""

    tuner_layer_cls: type[BaseTunerLayer] = BaseTunerLayer
    target_module_mapping: dict[str, Any] = {}  # noqa: RUF012  (PEFT's own declaration)
    mergeable: ClassVar[bool] = False

    @cached_property
    def module_map(self) -> ModuleMap:
        return module_map_of(self.model)

    def wrap(self, layer: type[Any], target: Target) -> None:
        """Add the adapter to an existing layer of ours, or put a new one around the module."""
        if isinstance(target.module, layer):
            target.module.update_layer(target.adapter, target.config)
        else:
            self._replace_module(target.parent, target.name, layer(self, target), target.module)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        # PEFT's own expects weights of both modules, and a block, a dropout or a whole head owns none.
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()  # type: ignore[no-untyped-call]
        if not self.mergeable:
            what = f"{type(self).__name__} changes the computation"
            raise ValueError(f"{what}, so it cannot fold into the base's weights")

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if merge:
            self._check_merge_allowed()
        for module in list(self.model.modules()):  # the root too: it holds the shared half of a prefix
            for name, child in list(module.named_children()):
                if isinstance(child, TunerLayer):
                    for hook in child.hooks:
                        hook.remove()
                    if child.attached:
                        delattr(module, name)
        return super()._unload_and_optionally_merge(merge, *args, **kwargs)


class TunerLayer(nn.Module, BaseTunerLayer):
    """A layer of ours. Each of its containers maps an adapter's name to its modules or its parameter."""

    attached: ClassVar[bool] = False
    """Added as a child beside what is there, rather than put around it."""
    containers: ClassVar[dict[str, type[nn.Module]]]
    """Short name -> kind of each container; the tuner's prefix stands before the name."""

    def __init__(self, tuner: Tuner, target: Target) -> None:
        super().__init__()
        if not self.attached:
            self.base_layer = target.module
        self.namespace = prefix = tuner.prefix
        self.model_config = tuner.model.config.get_text_config()
        self.settings: dict[str, Any] = {}
        self.merged_adapters: list[str] = []
        self.hooks: list[Any] = []  # handles of those that the layer has put on other modules
        self._active_adapter = target.adapter
        for short, kind in self.containers.items():
            self.add_module(prefix + short, kind())
        self.adapter_layer_names = tuple(prefix + short for short in self.containers)
        self.other_param_names = ("settings",)
        weights = chain(target.module.parameters(), target.parent.parameters())
        home = next(weights, torch.empty(0))
        self.home, self.dtype = home.device, home.dtype if home.is_floating_point() else torch.float32
        self._prepare(tuner, target)
        self.update_layer(target.adapter, target.config)
        if target.adapter not in tuner.active_adapters:
            self.requires_grad_(False)

    def _prepare(self, tuner: Tuner, target: Target) -> None:
        """Set what does not depend on the adapter, and hook what the layer must see beside its own input."""

    def update_layer(self, adapter: str, config: Any) -> None:
        """Add an adapter, in the base layer's type and on its device, and set what trains."""
        self.fill(adapter, config)
        self.settings[adapter] = config
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def fill(self, adapter: str, config: Any) -> None:
        """Put the adapter's modules and parameters into the containers."""
        raise NotImplementedError

    def held(self, short: str) -> Any:
        """The container `short`."""
        return self._modules[self.namespace + short]

    def hold_gate(self, short: str, adapter: str, size: int) -> None:
        """Add a gate [1, size] of UniPELT to the container `short`."""
        gate = nn.Linear(size, 1)
        nn.init.normal_(gate.weight, std=0.02)
        self.held(short)[adapter] = gate

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        for container in self.adapter_layer_names:
            held = getattr(self, container)
            item = held[adapter_name] if adapter_name in held else nn.Identity()
            for parameter in [item] if isinstance(item, nn.Parameter) else item.parameters():
                if not parameter.is_meta:
                    parameter.data = parameter.data.to(device or self.home, self.dtype)

    def live(self) -> list[str]:
        """Names of the active adapters that this layer holds."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.settings]

    def get_base_layer(self) -> nn.Module:
        return self if self.attached else super().get_base_layer()

    weight = property(lambda layer: None if layer.attached else getattr(layer.get_base_layer(), "weight", None))
    bias = property(lambda layer: None if layer.attached else getattr(layer.get_base_layer(), "bias", None))


@contextmanager
def untrained_heads(model: nn.Module) -> Iterator[None]:
    """Within it, every module that was trained whole (a classification head) is as it was before."""
    heads = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    for module in heads:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in heads:
            module.enable_adapters(True)


def cast_heads(model: nn.Module, stored: Path | None = None) -> None:
    """Make trained heads float32, and their input too; `stored` is the file that PEFT loaded them from, and rounded."""
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for head in module.modules_to_save.values():
                half = next(head.parameters()).dtype != torch.float32
                head.float().register_forward_pre_hook(_in_own_dtype)
                if stored is not None and half:
                    with safe_open(stored, framework="pt") as file, torch.no_grad():
                        for key, weight in head.named_parameters():
                            weight.copy_(file.get_tensor(f"{name}.{key}"))


def _in_own_dtype(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(head.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)


def free_heads(model: nn.Module, *, trained: bool = True) -> None:
    """Replace PEFT's wrapper around a head by the trained head, in the base's type, or by the base's own one."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ModulesToSaveWrapper):
                own = child.original_module
                tuned = child.modules_to_save[child.active_adapters[0]] if trained else own
                setattr(module, name, tuned.to(next(own.parameters()).dtype))


def pooled_gate(gate: nn.Linear, x: Tensor, pooling: str) -> Tensor:
    """Gate in (0, 1) of UniPELT (Mao et al. 2022, section 3.2): [B, T, H] -> [B, 1, G] (mean) or [B, T, G] (token)."""
    # The paper's mean over the sequence lets a causal model see its future, so those take the token's own.
    g = torch.sigmoid(gate(x.to(gate.weight.dtype)))
    return g.mean(dim=1, keepdim=True) if pooling == "mean" else g


def guard_prompts(model: Any) -> None:
    """Hook the base of a PEFT prompt-learning model so that padding on either side changes nothing."""
    # PEFT 0.21.2 hands embeddings over without ids and positions: a decoder counts padding as positions, and its
    # classifier reads the last column, which is padding. Goes when PEFT passes positions on (`PeftModel.forward`) and
    # transformers finds the last token by the attention mask (seen in 5.23).
    base = model.base_model
    takes = "position_ids" in inspect.signature(base.forward).parameters
    if base.config.model_type in TABLES or not takes or hasattr(base, "luthier_prompt_guard"):
        return
    base.register_forward_pre_hook(_give_positions, with_kwargs=True)
    base.luthier_prompt_guard = True
    if model.peft_config["default"].task_type == TaskType.SEQ_CLS:
        getattr(base, base.base_model_prefix).register_forward_hook(_last_token_to_the_end, with_kwargs=True)


@contextmanager
def without_prompt(model: Any) -> Iterator[None]:
    """Within it, the base answers alone, with its own head."""
    # PEFT's own leaves the trained head in place here, and fails on models that do not generate.
    with untrained_heads(model):
        if hasattr(model.base_model, "prepare_inputs_for_generation"):
            with model.disable_adapter():
                yield
            return
        model.forward = model.base_model.forward
        try:
            yield
        finally:
            del model.forward


def _give_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Positions by the mask: [B, past + T] of ones and zeros -> [B, T], each token's number among the real ones."""
    mask, entered = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
    entered = kwargs.get("input_ids") if entered is None else entered
    if mask is None or mask.ndim != 2 or entered is None or kwargs.get("position_ids") is not None:
        return None
    # Padding on the left would stand between prompt and text, where a sliding window counts it: it goes first.
    if bool(mask[:, -1].all()) and not bool(mask.all()):
        order = mask.long().argsort(dim=-1, stable=True)
        mask = mask.gather(1, order)
        kwargs = {**kwargs, "attention_mask": mask}
        if kwargs.get("inputs_embeds") is not None and entered.shape[1] == mask.shape[1]:
            kwargs["inputs_embeds"] = entered.gather(1, order[..., None].expand_as(entered))
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -entered.shape[1] :]
    return args, {**kwargs, "position_ids": positions}


def _last_token_to_the_end(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Copy the hidden state of each row's last real token to the last column, which the classifier reads."""
    mask = kwargs.get("attention_mask")
    if kwargs.get("input_ids") is not None or mask is None or mask.ndim != 2:
        return None
    hidden = output.last_hidden_state.clone()  # [B, T, H]
    last = (torch.arange(mask.shape[1], device=mask.device) * (mask != 0)).argmax(-1)
    hidden[:, -1] = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
    output.last_hidden_state = hidden
    return output
