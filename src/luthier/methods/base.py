"""What a tuning method is: a few fields, and how they change a model."""

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import MethodType
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator

from luthier.core.errors import CannotMerge, InputError, first_line
from luthier.core.registry import Family, Place, Plugin
from luthier.core.resources import is_out_of_memory
from luthier.core.strict_json import to_json
from luthier.models.targets import EXPERTS, HEADS, check_targets, is_named, untouched

Model: TypeAlias = Any
"""A torch.nn.Module of transformers or PEFT, with the methods that those add to torch's."""
State: TypeAlias = dict[str, Any]
"""Name -> tensor."""
Context: TypeAlias = AbstractContextManager[object]

TRAINING = "training.safetensors"
"""File beside an adapter in a checkpoint: what only further training needs, such as an encoder that is not saved."""
WIDE = 2000
"""Hidden size for which the suggested learning rates are given."""
BY_WIDTH = 0.78
"""`Method.lr_by_width` of most methods: the best rate falls with the width by this power.

Schulman et al. 2025, "LoRA Without Regret", fit it on Llama models of 1 to 70 billion parameters for LoRA and full
fine-tuning alike, with 5e-4 and 5e-5 at a width of 2,000. The searches of benchmarks/methods agree where bases are
small: 1.2e-3 and 1.2e-4 on SmolLM2-135M (576 wide), 2e-3 to 5e-3 and 2e-4 to 5e-4 on the embedded base (192 wide)."""


def split_names(value: object) -> object:
    """Read `q_proj,v_proj` and single numbers from the command line as lists."""
    if isinstance(value, int):
        return (value,)
    if value == "()":  # how help shows an empty list
        return ()
    if isinstance(value, str) and value != "all-linear":
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


TARGET_ALIASES = {"target_modules": "targets", "layers_to_transform": "layers"}


Branch: TypeAlias = Literal[
    "additive: adapters", "additive: soft prompts", "selective", "reparametrization", "hybrid", "other"
]
"""Class in the taxonomy of Lialin et al. 2023, arXiv 2303.15647, in the order of lists."""


class Method(Plugin):
    """A way to make a pretrained model trainable. Only `attach` must be written, and how weights are kept."""

    required: ClassVar[tuple[str, ...]] = ("attach", "save", "restore")

    paper: ClassVar[str] = ""
    """arXiv id of the source."""
    family: ClassVar[Branch] = "other"
    """New weights beside the base's, some of its own, or a smaller form of their change; hybrid: several of these."""
    suggested_lr: ClassVar[float] = 1e-4
    """Peak learning rate of a decoder 2,000 wide when the recipe gives none; see `learning_rate`."""
    suggested_lr_encoder: ClassVar[float | None] = None
    """The same for an encoder with a classification head of any width; None means the decoder's."""
    lr_by_width: ClassVar[float] = BY_WIDTH
    """The rate falls with the width of a decoder by this power; 0: the same rate for all."""
    typical_share: ClassVar[float] = 1.0
    """Trainable share of Qwen2-0.5B with the defaults; a test compares it with the count."""
    mergeable: ClassVar[bool] = True
    """The tuned weights fold into the base model's own."""
    quantized_base: ClassVar[bool] = True
    """Works on a base model loaded in 8 or 4 bit."""
    packs: ClassVar[bool] = True
    """Rows may share a sequence; not where virtual tokens stand before the first one only."""
    saves: ClassVar[Literal["adapter", "model"]] = "adapter"
    """Folder of a run that holds the result: an adapter beside the base, or a whole model."""
    encoder_decoder: ClassVar[bool] = True
    """Works on an encoder-decoder such as T5 (with a classification head)."""

    @property
    def positions(self) -> int:
        """Positions of the model that the method takes from the text (a prompt's length)."""
        return 0

    def check(self, model: Model, *, classify: bool = False, quantize: str = "none", steps: int = 1000) -> Model:
        """Return `model`, which is on the meta device, with this method on it; InputError for what it cannot do."""
        if quantize != "none" and not self.quantized_base:
            message = f"method {self.name} cannot train a quantized base (model.quantize={quantize})"
            raise InputError(message, fix="method=lora, or model.quantize=none")
        if getattr(model.config, "is_encoder_decoder", False) and not self.encoder_decoder:
            message = f"method {self.name} does not work on the encoder-decoder {model.config.model_type}"
            raise InputError(message, fix="method=lora or method=adapter")
        return self.attach(model, steps=steps, classify=classify)

    def attach(self, model: Model, *, steps: int, classify: bool = False) -> Model:
        """Return `model`, frozen but for what trains in a run of `steps`; with `classify` its head for labels too."""
        raise NotImplementedError

    @property
    def starts_from(self) -> int:
        """Training rows that `begin` wants to see; 0 if it has nothing to do."""
        return 0

    def begin(self, model: Model, losses: Iterable[Callable[[Model], Any]]) -> None:
        """Called on an attached model before its first step: each of `losses` gives that of one row under a model."""

    def caveat(self, model: Model) -> str:
        """What the user should know before this method trains `model` (the untouched base); empty if nothing."""
        return ""

    def unmergeable(self, model: Model) -> str:
        """Why merged weights have no place in the architecture of `model` (perhaps without weights), or empty."""
        return ""

    def learning_rate(self, model: Model) -> float:
        """Peak learning rate for this model when the recipe gives none."""
        # On an encoder only whole weights are scaled: with scaled rates adapters lead after one epoch and fall behind
        # after three (benchmarks/methods/README.md).
        encoder = type(model).__name__.startswith(("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra"))
        lr = self.suggested_lr_encoder if encoder and self.suggested_lr_encoder else self.suggested_lr
        width = getattr(getattr(model, "config", None), "hidden_size", WIDE)
        power = self.lr_by_width if not encoder or self.saves == "model" else 0
        return float(f"{lr * (WIDE / width) ** power:.2g}")

    def lr_ratio_of(self, model: Model, name: str) -> float:
        """Factor on the learning rate of the parameter `name` of the tuned `model` (LoRA+, the prefix of MAM)."""
        return 1.0

    def penalty(self, model: Model) -> Any:
        """A scalar tensor to add to the loss of every step (AdaLoRA's orthogonality), or None."""
        return None

    def before_step(self, model: Model, index: int, seed: int) -> None:
        """Called before optimizer step `index` (from 1) of the run with `seed`: what a step draws follows from both."""

    def after_step(self, model: Model, index: int) -> None:
        """Called after each optimizer step, while gradients are still there."""

    def disabled(self, model: Model) -> Context | None:
        """A context in which `model` answers as the untouched base, or None where that is impossible."""
        return None

    def save(self, model: Model, folder: Path, *, training: bool = False) -> None:
        """Write the tuned weights to `folder` as safetensors; with `training` also what only `restore` needs."""
        raise NotImplementedError

    def restore(self, model: Model, folder: Path) -> None:
        """Put weights saved with `training` back into an attached `model`; a missing key is an error."""
        raise NotImplementedError

    def load(self, model: Model, folder: Path) -> Model:
        """The base `model` with the weights saved in `folder`, ready to use."""
        raise NotImplementedError

    def merge(self, model: Model) -> Model:
        """The plain base, unpacked, with the tuned weights folded in, or CannotMerge. Takes `model` over."""
        raise NotImplementedError


class WholeMethod(Method):
    """A method that changes the base's own weights, and keeps a whole model in transformers' layout."""

    quantized_base = False
    saves = "model"

    def save(self, model: Model, folder: Path, *, training: bool = False) -> None:
        model.save_pretrained(folder)

    def restore(self, model: Model, folder: Path) -> None:
        from safetensors.torch import load_file

        from luthier.methods.layers.loading import copy_same

        stored = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
        if stored.keys() != dict(model.named_parameters()).keys():  # saved in the layout of the hub: MoE, GPT-NeoX
            again, found = type(model).from_pretrained(
                folder, use_safetensors=True, dtype=model.dtype, output_loading_info=True
            )
            if not any(found.values()):
                stored = {name: again.get_parameter(name) for name, _ in model.named_parameters()}
                stored |= {name: buffer for name, buffer in again.named_buffers() if name in again.state_dict()}
        buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
        copy_same(stored, {**dict(model.named_parameters()), **buffers}, folder)

    def load(self, model: Model, folder: Path) -> Model:
        self.restore(model, folder)
        return model

    def merge(self, model: Model) -> Model:
        return model


class PeftMethod(Method):
    """A method whose layers and file format are PEFT's, or registered with PEFT by `luthier.methods.layers`."""

    required = ("peft_config",)
    tries: ClassVar[bool] = False
    """Whether a pass without numbers is part of the check: what is put in front of a text does not suit every model."""

    from_adapter: str = ""
    """Folder of an adapter whose weights are the start (`--from`); its file then says the other settings."""

    def check(self, model: Model, *, classify: bool = False, quantize: str = "none", steps: int = 1000) -> Model:
        tuned = super().check(model, classify=classify, quantize=quantize, steps=steps)
        # T5's head for labels has no kernel without numbers; where its layers are is known.
        if self.tries and not getattr(model.config, "is_encoder_decoder", False):
            from luthier.models.module_map import try_without_numbers

            try:
                try_without_numbers(tuned)
            except Exception as error:  # an attention that keeps more in its cache, a router that wants the tokens
                kind = tuned.config.model_type if hasattr(tuned.config, "model_type") else tuned.config["model_type"]
                what = f"{type(error).__name__}: {error}"
                message = f"method {self.name} does not work on {kind}: a pass through the model fails with it ({what})"
                raise InputError(message, fix="method=lora or method=adapter") from error
        return tuned

    def peft_config(self, model: Model, steps: int) -> Any:
        """PEFT's configuration of this method for `model`."""
        raise NotImplementedError

    def building(self, model: Model) -> Context:
        """Where PEFT builds the adapter: without memory, as `model` is, or as usual."""
        place = next(model.parameters()).device
        return place if place.type == "meta" else nullcontext()

    def attach(self, model: Model, *, steps: int, classify: bool = False) -> Model:
        _refuse_second(model, self.name)
        tuned = self._started(model, steps, classify) if self.from_adapter else self._begun(model, steps, classify)
        for parameter in tuned.parameters():
            if parameter.requires_grad:  # optimizer states and small updates need float32
                parameter.data = parameter.data.float()
        return self._ready(tuned)

    def _started(self, model: Model, steps: int, classify: bool) -> Model:
        from luthier.methods.layers.origin import start_on

        return start_on(model, self, steps, classify=classify)

    def _begun(self, model: Model, steps: int, classify: bool) -> Model:
        from peft import TaskType, get_peft_model

        try:
            with self.building(model):
                config = self.peft_config(model, steps)
                config.task_type = TaskType.SEQ_CLS if classify else TaskType.CAUSAL_LM
                if classify and getattr(config, "exclude_modules", "") is None:  # the head trains as a whole
                    config.exclude_modules = rf"(.*\.)?({'|'.join(HEADS)})(\..*)?"
                if classify and hasattr(model, "classification_head"):  # T5's, whose name PEFT does not know
                    config.modules_to_save = ["classification_head"]
                return get_peft_model(model, config)
        except (ValueError, TypeError) as error:  # how PEFT refuses targets, shapes and layer types
            raise InputError(f"method {self.name}: {error}", fix=f"luthier explain method {self.name}") from error

    def _ready(self, tuned: Model, stored: Path | None = None) -> Model:
        from luthier.methods.layers.base import cast_heads

        cast_heads(tuned, stored)
        if hasattr(tuned.base_model, "unload"):  # not for a prompt, which stands beside a base that it never touches
            # PEFT's own gives the base back with the trained head. A bound method: copies of the model get their own.
            tuned.tuning_method, tuned.unload = self, MethodType(_unload, tuned)
        self.guard(tuned)
        return tuned

    def give_back(self, model: Model) -> None:
        """Undo, before the adapter comes off, what this method did to the base's own weights; most do nothing."""

    def guard(self, model: Model) -> None:
        """Work around what PEFT gets wrong for this method; most need nothing."""

    def disabled(self, model: Model) -> Context | None:
        return model.disable_adapter()  # type: ignore[no-any-return]

    def training_state(self, model: Model) -> State:
        """What `restore` needs beside the adapter: the trained weights, where its file holds others (`as_saved`)."""
        return {} if self.as_saved(model)[0] is None else trainable_state(model)

    def load_training_state(self, model: Model, state: State, file: Path) -> None:
        """Put back what `training_state` gave, which then includes the weights. InputError where `file` has others."""
        from luthier.methods.layers.loading import copy_same

        copy_same(state, trainable_state(model), file)

    def save(self, model: Model, folder: Path, *, training: bool = False) -> None:
        from safetensors.torch import save_file

        self.write_adapter(model, folder)
        if training and (state := self.training_state(model)):
            save_file({key: value.detach().contiguous().clone() for key, value in state.items()}, folder / TRAINING)

    def as_saved(self, model: Model) -> tuple[State | None, dict[str, Any]]:
        """The weights to write in place of the model's own, if others, and what is then different in its settings."""
        return None, {}

    def write_adapter(self, model: Model, folder: Path) -> None:
        """Write the adapter in PEFT's format."""
        state, changes = self.as_saved(model)
        # save_embedding_layers="auto" would ask the hub for the base model's config.
        model.create_or_update_model_card = lambda folder: None  # PEFT's is an empty form that takes 0.1 s to fill in
        try:
            model.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
        finally:
            del model.create_or_update_model_card
        file = folder / "adapter_config.json"
        settings = {**json.loads(file.read_text(encoding="utf-8")), **changes}
        for value in settings.values():  # PEFT writes sets in an order that differs from process to process
            if isinstance(value, list) and all(isinstance(each, str) for each in value):
                value.sort()
        file.write_text(to_json(settings, indent=2, sort_keys=True), encoding="utf-8")

    def restore(self, model: Model, folder: Path) -> None:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        from luthier.methods.layers.loading import WEIGHTS, check_same, fill

        if (folder / TRAINING).is_file():
            self.load_training_state(model, load_file(folder / TRAINING), folder / TRAINING)
            return
        stored = load_file(folder / WEIGHTS)
        own = get_peft_model_state_dict(model, save_embedding_layers=False)
        check_same(own, stored, folder / WEIGHTS)
        set_peft_model_state_dict(model, stored)
        fill(own, stored)

    def load(self, model: Model, folder: Path) -> Model:
        from luthier.methods.layers.loading import WEIGHTS, load_adapter

        _refuse_second(model, self.name)
        return self._ready(load_adapter(model, folder), folder / WEIGHTS)

    def merge(self, model: Model) -> Model:
        from luthier.methods.layers.base import free_heads
        from luthier.models.load import unpack

        if not self.mergeable:
            why = f"method {self.name} changes what the model computes, not only its weights: nothing to fold into"
            raise CannotMerge(f"{why}. Deploy the adapter beside its base")
        base = model.get_base_model()
        if getattr(base, "is_quantized", False):  # merging into packed weights would round them again
            with TemporaryDirectory() as folder:
                self.write_adapter(model, Path(folder))
                base.is_loaded_in_4bit = base.is_loaded_in_8bit = False  # else PEFT keeps (IA)3 from being taken off
                model = self.load(unpack(model.unload()), Path(folder))
        free_heads(model)
        try:
            return model.merge_and_unload(safe_merge=True)
        except (RuntimeError, NotImplementedError) as error:  # lora_bias on a layer without a bias, and other kinds
            if is_out_of_memory(error):
                raise
            raise CannotMerge(f"method {self.name}: {first_line(error)}. Deploy the adapter beside its base") from error


class DroppingMethod(PeftMethod):
    """Bottlenecks that may be left out of the lowest blocks (AdapterDrop)."""

    mergeable, tries = False, True
    lr_by_width = 0  # on bases 192 wide higher rates than 5e-4 end at one label (benchmarks/methods: heads, reviews)

    drop: Place = 0
    """AdapterDrop: so many of the lowest blocks get no adapter, which makes training and use faster."""
    drop_each_step: bool = False
    """Robust AdapterDrop: every block gets one, and each step leaves out those of the lowest 0 to `drop` blocks."""

    def before_step(self, model: Model, index: int, seed: int) -> None:
        if self.drop_each_step:
            from luthier.methods.layers.bottleneck import sit_out

            sit_out(model, Random(f"drop:{seed}:{index}").randint(0, self.drop))

    def bottleneck_config(self, model: Model, **settings: Any) -> Any:
        """PEFT's configuration, of this method's own fields and further `settings`."""
        from luthier.methods.layers.bottleneck import BottleneckConfig, blocks_above

        own = self.model_dump(exclude={"drop", "drop_each_step", "from_adapter"})
        kept = blocks_above(model, self.drop)
        return BottleneckConfig(layers_to_transform=None if self.drop_each_step else kept, **own, **settings)


class TargetedMethod(PeftMethod):
    """A method that adapts chosen linear layers."""

    targets: Annotated[tuple[str, ...] | Literal["all-linear"], BeforeValidator(split_names)] = "all-linear"
    """Names of the linear layers to adapt, such as q_proj and v_proj, or all-linear: every one but the output."""
    layers: Annotated[tuple[Place, ...], BeforeValidator(split_names)] = ()
    """Numbers of the blocks to adapt, from 0; empty means every block."""

    @property
    def elsewhere(self) -> str:
        """What trains the experts that this method leaves as they are."""
        return "method=lora adapts experts, method=full trains them"

    def taken(self, model: Model) -> frozenset[str]:
        """Names of layers that PEFT would mistake for something else, so the method leaves them out."""
        return frozenset()

    def target_modules(self, model: Model) -> list[str]:
        """The chosen layers for PEFT, whose all-linear takes routers: short names if they say the same, else whole."""
        chosen = check_targets(model, self.targets, self.layers, self.taken(model))
        if isinstance(self.targets, str):
            return sorted(chosen)
        hit = {name for name, _ in model.named_modules() if any(is_named(name, target) for target in self.targets)}
        return list(self.targets) if hit <= chosen.keys() else sorted(chosen)

    def parameters(self, model: Model) -> list[str]:
        """Names of tensors that belong to no linear layer and take an adapter as well: experts."""
        return []

    def check_layers(self, layers: State) -> None:
        """Raise InputError where a setting does not suit one of the chosen layers (name -> module, or tensor)."""

    def check(self, model: Model, *, classify: bool = False, quantize: str = "none", steps: int = 1000) -> Model:
        if not self.from_adapter:
            tensors = {name: model.get_parameter(name) for name in self.parameters(model)}
            self.check_layers(check_targets(model, self.targets, self.layers, self.taken(model)) | tensors)
        return super().check(model, classify=classify, quantize=quantize, steps=steps)

    def caveat(self, model: Model) -> str:
        if not isinstance(self.targets, str):
            return ""
        taken = self.taken(model)
        chosen = check_targets(model, self.targets, self.layers, taken)
        note = untouched(model, {*chosen, *self.parameters(model)}, self.layers, taken)
        return f"{note}; {self.elsewhere}" if EXPERTS in note else note


class PromptMethod(PeftMethod):
    """A method that puts `length` trained embeddings in front of the text."""

    mergeable = packs = encoder_decoder = False
    tries, family = True, "additive: soft prompts"

    @property
    def positions(self) -> int:
        return self.length  # type: ignore[attr-defined, no-any-return]

    def check(self, model: Model, *, classify: bool = False, quantize: str = "none", steps: int = 1000) -> Model:
        config = model.config.get_text_config()
        if getattr(config, "hidden_size_per_layer_input", 0):
            message = f"method {self.name} does not work on {config.model_type}: its layers look up every token's id"
            raise InputError(message, fix="method=p_tuning_v2 or method=lora")
        return super().check(model, classify=classify, quantize=quantize, steps=steps)

    def disabled(self, model: Model) -> Context | None:
        from luthier.methods.layers.base import without_prompt

        return without_prompt(model)

    def guard(self, model: Model) -> None:
        from luthier.methods.layers.base import guard_prompts

        guard_prompts(model)


def prompt_sizes(model: Model) -> dict[str, int]:
    """What PEFT's configurations of prompts need to know of a model; it guesses them by the names of a few."""
    config = model.config.get_text_config()
    width = model.get_input_embeddings().embedding_dim
    heads = getattr(config, "num_attention_heads", None)
    layers = int(config.num_hidden_layers)
    return {"token_dim": width, "num_layers": layers, "num_attention_heads": heads if isinstance(heads, int) else 1}


class PrefixMethod(PeftMethod):
    """A method with trained keys and values; the MLP that they may come from is kept for further training only."""

    mergeable = encoder_decoder = False
    tries = True
    family: ClassVar[Branch] = "additive: soft prompts"

    def as_saved(self, model: Model) -> tuple[State | None, dict[str, Any]]:
        from luthier.methods.layers.prefix import flat_state

        mlp = model.peft_config["default"].reparam == "mlp"
        return (flat_state(model), {"reparam": "none"}) if mlp else (None, {})


def _unload(tuned: Model) -> Model:
    from luthier.methods.layers.base import free_heads

    tuned.tuning_method.give_back(tuned)
    free_heads(tuned, trained=False)
    return tuned.base_model.unload()


def _refuse_second(model: Model, name: str) -> None:
    """Raise InputError where `model` already carries an adapter: PEFT would only warn."""
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer | PeftModel) for module in model.modules()):
        message = f"method {name}: this model carries an adapter already, and the two would answer together"
        fix = "one copy of the base for each, or PEFT's load_adapter for a second adapter of the same method"
        raise InputError(message, fix=fix)


def trainable_state(model: Model) -> State:
    """Every trainable parameter by its name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("lora", {"rslora": True}),
    "dora": ("lora", {"dora": True}),
    "pissa": ("lora", {"init": "pissa", "alpha": 16.0}),
    "lora_plus": ("lora", {"lr_ratio": 16.0}),
    "houlsby": ("adapter", {"place": "houlsby"}),
    "pfeiffer": ("adapter", {"place": "pfeiffer", "activation": "relu"}),
    "compacter": ("adapter", {"place": "houlsby", "phm": 4, "size": 24}),
    "compacter_pp": ("adapter", {"place": "output", "phm": 4, "size": 24}),
    "scaled_parallel": ("parallel_adapter", {"scale": 4.0}),
    "qlora": ("lora", {}),
    "lora_int8": ("lora", {}),
}
"""Names of the field that are settings of a method here: `method: dora` is `method: {name: lora, dora: true}`."""

QUANTIZED: dict[str, tuple[str, str | None]] = {"qlora": ("nf4", "paged_adamw"), "lora_int8": ("int8", None)}
"""Presets that also quantize the base: `model.quantize` and, where the paper has one, `train.optimizer`."""

METHODS = Family(Method, "method", presets=PRESETS, beyond="any other of PEFT: method=peft method.type=boft")
