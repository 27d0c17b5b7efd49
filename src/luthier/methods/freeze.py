"""Freeze: train the chosen layers of the base model, leave the rest as it is.

The oldest economy: the last layers hold what is nearest to the task. The optimizer keeps states for
the trained layers only, and the backward pass ends at the first of them.

When: a strong base, a near task, and no wish for adapters. When not: several variants are to share a
base, for each run saves a whole model.
"""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from luthier.core.errors import InputError, did_you_mean
from luthier.methods.base import Model, WholeMethod, split_names
from luthier.models.targets import HEADS, text_part


class Freeze(WholeMethod):
    """Train the last (or first) layers, and nothing else but a head."""

    suggested_lr, suggested_lr_encoder = 1e-4, 8e-5
    typical_share = 0.0604
    family = "selective"

    layers: Annotated[int, Field(ge=-10_000, le=10_000)] = 2
    """How many layers train: the last ones, or below zero the first ones."""
    extra: Annotated[tuple[str, ...], BeforeValidator(split_names)] = ()
    """Names of further modules to train, such as norm or embed_tokens."""

    def attach(self, model: Model, *, steps: int, classify: bool = False) -> Model:
        chosen = self._chosen(model)
        model.float().requires_grad_(False)
        for module in chosen:
            module.requires_grad_(True)
        if classify:
            next(getattr(model, name) for name in HEADS if hasattr(model, name)).requires_grad_(True)
        return model

    def _chosen(self, model: Model) -> list[Any]:
        """The modules to train. Raises InputError where a number or a name hits none."""
        stacks: dict[str, dict[int, Any]] = {}
        modules, text = dict(model.named_modules()), text_part(model)
        for name, module in modules.items():
            found = re.fullmatch(r"(.*\.(?:layers|layer|h|blocks?))\.(\d+)", name)
            if found and name.startswith(text):
                stacks.setdefault(found[1], {})[int(found[2])] = module
        if not stacks:
            raise InputError("method freeze: this model has no stack of layers that Luthier knows", fix="method=lora")
        stacks = {name: stack for name, stack in stacks.items() if not re.search(r"\.(layer|block)\.\d+\.", name)}
        depth = min(len(stack) for stack in stacks.values())
        if not self.layers or abs(self.layers) > depth:
            raise InputError(f"method.layers: {self.layers} of {depth} layers", fix=f"1 to {depth}, or -1 to -{depth}")
        wanted = range(depth - self.layers, depth) if self.layers > 0 else range(-self.layers)
        chosen = [stack[i] for stack in stacks.values() for i in wanted]
        for extra in self.extra:
            hits = [module for name, module in modules.items() if f".{name}".endswith(f".{extra}")]
            if not hits:
                short = {name.rpartition(".")[2] for name in modules}
                fix = f"choose from {', '.join(sorted(n for n in short if n and not n.isdigit()))}"
                raise InputError(f"method.extra: no module is named {extra!r}{did_you_mean(extra, short)}", fix=fix)
            chosen += hits
        return chosen
