"""Any other method of PEFT, by the name of its type there: `method: {name: peft, type: boft, boft_block_size: 4}`.

The fields are those of the type's own configuration in PEFT, with its defaults, and are checked against it before
anything is loaded. Where PEFT has a list of layers, `targets` and `layers` say which, as for lora. `docs/methods.md`
has a table of what each type was tested for. Types that cannot train from a data file alone, or that would train
something else than they say, are refused with the reason.

When: a paper's method is to be compared, or PEFT has what nothing else here has. When not: a method of Luthier does the
same, for its fields, defaults and learning rate are tuned.
"""

import dataclasses
from functools import lru_cache
from textwrap import fill
from typing import Any, ClassVar, Self, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from luthier.core.errors import CannotMerge, InputError, LuthierError, did_you_mean, first_line
from luthier.core.resources import is_out_of_memory
from luthier.core.strict_json import to_json
from luthier.methods.base import METHODS, TARGET_ALIASES, Context, Model, State, TargetedMethod
from luthier.models.targets import check_targets, sides

WIDTH = 80
"""Columns of help."""

OWN = {
    "ln_tuning": "layernorm",
    "prefix_tuning": "prefix",
    "prompt_tuning": "prompt",
}
"""Type of PEFT -> the method here that it is, where that has another name."""

REFUSED = {
    "adamss": "cuts each layer by its weights, so its size and memory are not known before they are read",
    "cartridge": "starts from the keys and values of a text that was read before; method=prefix learns them from rows",
    "cpt": "needs the token ids of a prompt and which of them are labels; method=prompt needs neither",
    "frod": "is computed from the weights of all layers at once, which cannot be checked before they are read",
    "lily": "chooses its experts by a mean over the sequence: a decoder would see tokens that it is to predict, and "
    "padding would change answers",
    "multitask_prompt_tuning": "needs the number of a task with each row; method=prompt has one task",
    "osf": "fails under bfloat16 autocast (PEFT 0.21), and leaves out layers that it does not know without a word",
    "poly": "needs the number of a task with each row; method=lora has one task",
    "xlora": "mixes adapters that were trained before; train those with method=lora",
}
"""Type -> why it cannot be trained."""

ELSEWHERE = ("adaption_prompt", "shadow", "trainable_tokens")
"""Types whose targets are not linear layers: PEFT finds them."""

BESIDE = {
    "c3a": "method.init_weights=true starts from the base",
    "fourierft": "method.init_weights=true starts from the base",
    "unilora": "its vector starts random",
    "vblora": "its vectors start random",
}
"""Types that do not start from the base -> why, or what changes that."""

UNMERGEABLE = {
    "adaption_prompt": "adds a prompt to attentions",
    "shadow": "has a second, smaller model beside the base",
}
"""Types that change what the model computes, not only its weights."""

NOTES = {
    "pvera": "type pvera draws noise at each pass, so the result depends on how a step is cut into micro-batches",
    "shadow": "type shadow trains without the loss that PEFT adds for the shadow itself",
}
"""What else a user of a type should know."""

ON_CPU = ("boft", "shira", "unilora")
"""Types that compute indices when they are built, which needs numbers."""

SET_HERE = {
    "bias": "trains the base's own biases, so the base could not be had back; method=lora has it",
    "modules_to_save": "trains whole modules; Luthier does that with a head for labels itself, method=full with all",
    "use_asa": "needs a schedule that is not kept in checkpoints",
}
"""Field -> why nothing but PEFT's default is taken."""


@lru_cache(maxsize=1)
def config_classes() -> dict[str, Any]:
    """Type -> PEFT's configuration of it, without those that have a method of their own here."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    found = {str(kind.value).lower(): made for kind, made in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    return {
        name: made
        for name, made in sorted(found.items())
        if name not in {*OWN, *METHODS.names()} and not made.__module__.startswith("luthier.")
    }


def fields_of(kind: str) -> dict[str, dataclasses.Field[Any]]:
    """Name -> field of what can be set for a type."""
    from peft import PeftConfig

    common = {field.name for field in dataclasses.fields(PeftConfig)} | TARGET_ALIASES.keys() | {"layers_pattern"}
    return {field.name: field for field in dataclasses.fields(config_classes()[kind]) if field.name not in common}


def known_type(value: str) -> str:
    """The type that `value` names; ValueError says what to take instead of one that is unknown or refused."""
    name = value.lower()
    own = OWN.get(name, name)
    if own in METHODS.names():
        raise ValueError(f"{value} is a method of its own here: method={own}")
    if name not in config_classes():
        known = sorted(config_classes().keys() - REFUSED.keys())
        raise ValueError(f"PEFT has no type {value!r}{did_you_mean(name, known)}; choose one of: {', '.join(known)}")
    if name in REFUSED:
        raise ValueError(f"{name} {REFUSED[name]}")
    return name


class Peft(TargetedMethod):
    """Any other type that PEFT has."""

    model_config = ConfigDict(extra="allow")

    typical_share = 0.0
    suggested_lr, suggested_lr_encoder = 1e-3, 2e-3
    quantized_base = False
    aliases: ClassVar = TARGET_ALIASES

    type: str
    """Type of PEFT, such as boft. Its own fields stand beside it: luthier explain method.type=boft."""

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        return known_type(value)

    @model_validator(mode="after")
    def _fields_are_the_types(self) -> Self:
        """Check each field against the type's configuration; all mistakes at once, each with its key."""
        fields, hints = fields_of(self.type), get_type_hints(config_classes()[self.type])
        settings, wrong = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True), list[Any]()
        for key, value in (self.model_extra or {}).items():
            if key not in fields:
                known = f"{did_you_mean(key, fields)}; known are {', '.join(sorted(fields))}"
                wrong.append((key, value, f"type {self.type} has no such field{known}"))
            elif key in SET_HERE and value != fields[key].default:
                wrong.append((key, value, SET_HERE[key]))
            elif key == "shadow_model" and value != "mirror":
                wrong.append((key, value, "opens a model that it names, which Luthier does not do; leave it at mirror"))
            elif value != fields[key].default:  # None stands in fields whose type does not say so
                try:
                    TypeAdapter(hints[key], config=settings).validate_python(value)
                except ValidationError as error:
                    said = dict.fromkeys(part["msg"].replace("Input should be", "should be") for part in error.errors())
                    wrong.append((key, value, f"{', or '.join(said)}, not {value!r}"))
        if wrong:
            lines = [
                InitErrorDetails(type=PydanticCustomError("peft_field", "{why}", {"why": w}), loc=(k,), input=None)
                for k, _, w in wrong
            ]
            raise ValidationError.from_exception_data("peft", lines)
        return self

    @classmethod
    def more_help(cls, topic: str = "") -> list[str]:
        """The types; of the type `topic` its fields, with PEFT's own words about them."""
        if not topic:
            known = sorted(config_classes().keys() - REFUSED.keys())
            refused = [f"{name}: {why}" for name, why in REFUSED.items()]
            lines = [f"types: {', '.join(known)} (luthier explain method.type=boft has the fields of one)"]
            return ["", *(fill(line, WIDTH, subsequent_indent="    ") for line in [*lines, "", "refused", *refused])]
        try:
            fields = fields_of(known_type(topic))
        except ValueError as error:
            raise InputError(f"method.type: {error}") from None
        lines = [f"{topic.lower()}, a type of method peft; targets and layers are as with lora"]
        for key, field in ((key, field) for key, field in fields.items() if key not in SET_HERE):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            text = " ".join(str(field.metadata.get("help", "")).split())
            lines += [
                f"method.{key} = {to_json(default, default=str)}",
                fill(text, WIDTH, initial_indent="    ", subsequent_indent="    "),
            ]
        return [line for line in lines if line]

    def peft_config(self, model: Model, steps: int) -> Any:
        own = dict(self.model_extra or {})
        if self.type not in ELSEWHERE:
            own["target_modules"] = self.target_modules(model)
        if self.type == "adaption_prompt":  # the paper's length, and every block
            own = {"adapter_len": 10, "adapter_layers": int(model.config.get_text_config().num_hidden_layers), **own}
        config = config_classes()[self.type](**own)
        if self.type == "shira" and next(model.parameters()).is_meta:
            config.mask_fn = _mask_of_shape
        return config

    def check_layers(self, layers: State) -> None:
        if self.type == "trainable_tokens" and not (self.model_extra or {}).get("token_indices"):
            message = "method peft: type trainable_tokens needs the ids of the tokens whose embeddings train"
            raise InputError(message, fix="method.token_indices=[5,6]")

    def attach(self, model: Model, *, steps: int, classify: bool = False) -> Model:
        if self.type == "trainable_tokens" and (classify or getattr(model.config, "is_encoder_decoder", False)):
            where = "with a head for labels, which PEFT leaves untrained" if classify else "on encoder-decoders"
            raise InputError(f"method peft: type trainable_tokens does not work {where}", fix="method=lora")
        try:
            return super().attach(model, steps=steps, classify=classify)
        except LuthierError:
            raise
        except Exception as error:  # each type refuses what it does not know in its own way
            if is_out_of_memory(error):
                raise
            message = f"method peft: type {self.type} does not fit this model: {first_line(error)}"
            raise InputError(message, fix=f"luthier explain method.type={self.type}, or method=lora") from error

    def building(self, model: Model) -> Context:
        import torch

        return (
            torch.device("cpu") if self.type in ON_CPU and next(model.parameters()).is_meta else super().building(model)
        )

    def caveat(self, model: Model) -> str:
        notes = [super().caveat(model)] if self.type not in ELSEWHERE else []
        if self.type in BESIDE and (self.model_extra or {}).get("init_weights") is not True:
            notes.append(f"type {self.type} changes the base's answers before the first step: {BESIDE[self.type]}")
        notes += [NOTES.get(self.type, ""), self.unmergeable(model)]
        return "; ".join(note for note in notes if note)

    def unmergeable(self, model: Model) -> str:
        why = UNMERGEABLE.get(self.type, "")
        if self.type == "beft":
            places = [module for module in model.modules() if hasattr(module, "beft_bias")]
            layers = places or check_targets(model, self.targets, self.layers).values()
            bare = sum(getattr(layer, "bias", None) is None for layer in layers)
            why = f"adds a bias to {bare} layers that have none" if bare else ""
        return f"type {self.type} {why}, so the result works beside its base, but not merged" if why else ""

    def merge(self, model: Model) -> Model:
        if why := self.unmergeable(model):
            raise CannotMerge(f"method {self.name}: {why}. Deploy the adapter beside its base")
        return super().merge(model)


def _mask_of_shape(base_layer: Any, r: int, **kwargs: Any) -> Any:
    """SHiRA's mask for a layer without weights, in which PEFT 0.21 cannot count the places."""
    from peft.tuners.shira.mask_functions import random_mask
    from torch import nn

    skip_init: Any = nn.utils.skip_init
    return random_mask(skip_init(nn.Linear, *sides(base_layer)), r, **kwargs)
