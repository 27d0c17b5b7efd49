"""AdaLoRA: LoRA whose rank moves to the layers that need it.

Zhang et al. 2023, arXiv 2303.10512. The update is P diag(lambda) Q, as in a singular value decomposition.
After a warm-up the budget of ranks falls with the third power from `rank` to `target_rank` per layer on
average: at each allocation the triplets with the least importance |w * grad|, smoothed over steps, get
lambda = 0, wherever they are. A penalty, `orthogonality` * (||P^T P - I|| + ||Q Q^T - I||), keeps P and Q
near orthogonal; the norm itself, as in PEFT, which the paper's eq. 4 squares. Layers and file format are
PEFT's; the allocation is called by the training loop.

When: the budget is small and layers differ. When not: the run is so short that importances do not
settle, or many adapters are to be trained on one base at once (PEFT trains one).
"""

import json
import warnings
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveFloat, model_validator

from luthier.core.errors import InputError
from luthier.core.registry import Count, Share, Size
from luthier.methods.base import TARGET_ALIASES, Model, State, TargetedMethod, trainable_state
from luthier.models.targets import check_rank

IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""Attributes of PEFT's rank allocator that hold a tensor per parameter."""


class AdaLoRA(TargetedMethod):
    """Low-rank updates that share one budget of ranks."""

    paper, typical_share = "2303.10512", 0.0132
    family = "reparametrization"
    suggested_lr, suggested_lr_encoder = 2e-3, 2e-3
    aliases: ClassVar = {
        **TARGET_ALIASES,
        "init_r": "rank",
        "target_r": "target_rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "orth_reg_weight": "orthogonality",
        "deltaT": "interval",
    }

    rank: Size = 12
    """Rank of every layer at the start; the paper has 1.5 times the target."""
    target_rank: Size = 8
    """Average rank at the end."""
    alpha: PositiveFloat = 32.0
    """Strength of the update, which is scaled by alpha / rank."""
    dropout: Share = 0.0
    """Share of the inputs dropped during training."""
    warmup: Share = 0.1
    """Share of the run before the budget falls."""
    final: Share = 0.3
    """Share of the run with the final ranks."""
    interval: Count = 10
    """Steps between allocations; short runs allocate at least ten times."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the penalty; the paper has 0.1 to 0.5."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.rank <= self.target_rank:
            raise ValueError(f"rank {self.rank} must be above target_rank {self.target_rank}: the budget falls")
        if self.warmup + self.final >= 1:
            raise ValueError("warmup and final leave no share of the run for the budget to fall")
        return self

    def check_layers(self, layers: State) -> None:
        def fix(most: int) -> str:  # the rank must stay above the target
            both = f"method.rank={most} method.target_rank={min(self.target_rank, most - 1)}"
            return both if most > 1 else "method=lora"

        check_rank(layers, self.rank, fix)

    def peft_config(self, model: Model, steps: int) -> Any:
        from peft import AdaLoraConfig

        if steps < 2:  # PEFT would ask for an importance that no step has measured
            message = "method adalora: 1 step is too few, for ranks move between steps"
            raise InputError(message, fix="train.steps=20 or more")
        begin, end = int(self.warmup * steps), int(self.final * steps)
        run: dict[str, Any] = {"tinit": begin, "tfinal": end, "total_step": steps}
        run["deltaT"] = max(1, min(self.interval, (steps - begin - end) // 10))
        ranks: dict[str, Any] = {"init_r": self.rank, "target_r": self.target_rank, "lora_alpha": self.alpha}
        own: dict[str, Any] = {"lora_dropout": self.dropout, "orth_reg_weight": self.orthogonality}
        return AdaLoraConfig(target_modules=self.target_modules(model), **run, **ranks, **own)

    def guard(self, model: Model) -> None:
        for name, parameter in model.named_parameters():
            if ".ranknum." in name:  # a count; where the base is half precision PEFT 0.21 makes it trainable
                parameter.requires_grad_(False)

    def penalty(self, model: Model) -> Any:
        """PEFT adds this to the loss that a model computes itself; ours is computed by the task."""
        import torch

        if not self.orthogonality:
            return None
        weights = trainable_state(model).items()
        grams = [w @ w.T if ".lora_A." in n else w.T @ w for n, w in weights if ".lora_A." in n or ".lora_B." in n]
        terms = [torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)) for gram in grams]
        return self.orthogonality * torch.stack(terms).mean()

    def after_step(self, model: Model, index: int) -> None:
        model.base_model.update_and_allocate(index)

    def write_adapter(self, model: Model, folder: Path) -> None:
        config = model.peft_config["default"]
        pattern = config.rank_pattern
        weights = {name.replace(".default", ""): value for name, value in model.named_parameters()}
        try:
            for name, kept in (pattern or {}).items():
                values = next(v for n, v in weights.items() if n.endswith(name.replace(".default", "")))
                if any(float(value) for value, keep in zip(values.detach().view(-1), kept, strict=True) if not keep):
                    config.rank_pattern = None  # pruned triplets may come back until the final phase: keep them all
            with warnings.catch_warnings():
                # A layer that lost all its ranks has empty matrices, which PEFT takes for shards not gathered.
                warnings.filterwarnings("ignore", r".*LoRA tensor\(s\) have invalid shape")
                super().write_adapter(model, folder)
        finally:
            config.rank_pattern = pattern

    def training_state(self, model: Model) -> State:
        import torch

        state = trainable_state(model)
        for kind in IMPORTANCES:
            own = getattr(model.base_model.rankallocator, kind)
            state |= {f"allocator.{kind}:{name}": value for name, value in own.items()}
        pattern = json.dumps(model.peft_config["default"].rank_pattern)
        state["allocator.pattern"] = torch.tensor(list(pattern.encode()), dtype=torch.uint8)
        return state

    def load_training_state(self, model: Model, state: State, file: Path) -> None:
        device = next(model.parameters()).device
        weights = {name: value for name, value in state.items() if not name.startswith("allocator.")}
        super().load_training_state(model, weights, file)
        for kind in IMPORTANCES:
            start = f"allocator.{kind}:"
            kept = {name.removeprefix(start): v.to(device) for name, v in state.items() if name.startswith(start)}
            setattr(model.base_model.rankallocator, kind, kept)
        model.peft_config["default"].rank_pattern = json.loads(bytes(state["allocator.pattern"].tolist()))
