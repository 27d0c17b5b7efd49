"""Make a class of ours a PEFT method.

PEFT keeps its method names in a closed enum, and transformers asks members for `.value`, so a plain
string will not do: the enum gets a new member. Goes when PEFT takes method names from outside
(https://github.com/huggingface/peft/issues/2634 is the nearest request).
"""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType


def peft_type(name: str) -> PeftType:
    """The member `name` of PeftType, made if it is not there."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    vars(member).update(_sort_order_=len(PeftType._member_names_), __objclass__=PeftType)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    if PeftType(name) is not member or PeftType[name] is not member or name not in list(PeftType):
        raise RuntimeError(f"PEFT's method names can no longer be extended (adding {name}): its enum has changed")
    return member


def register(config: Any, model: Any) -> None:
    """Register the pair under `config.kind` (upper case). Raises KeyError where PEFT has the name already."""
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type(config.kind)) is not config:
        register_peft_method(name=config.kind.lower(), config_cls=config, model_cls=model, prefix=model.prefix)
