"""Families of plugins: the file name is the name in the recipe.

`methods/lora.py` holds the one class behind `method: lora`, imported only when asked for. Installed packages add
members through entry points in the group `luthier.methods` (`.tasks`, `.data.formats`, ...). A plugin is one frozen
pydantic class: its fields are its configuration, its methods the behavior, and its attribute docstrings the help.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic.annotated_handlers import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema

from luthier.core.entry_points import installed
from luthier.core.errors import IncompletePlugin, UnknownPlugin

AUTO = BeforeValidator(lambda value: None if value == "auto" else value)
"""In the annotation of a field whose default is None: Luthier decides then, and the recipe's word for it is `auto`."""

Count = Annotated[int, Field(gt=0, le=1_000_000_000)]
"""A number of rows, tokens or steps."""
Size = Annotated[int, Field(gt=0, le=65_536)]
"""A rank, width or length that a method adds: wider than any layer, it could only run out of memory."""
Place = Annotated[int, Field(ge=0, le=65_536)]
"""The number of a block, from 0."""
Share = Annotated[float, Field(ge=0, lt=1)]
"""A share below one, such as of inputs dropped."""
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63 - 1_000_000)]
"""What starts generators; a comparison counts up from it."""


def word_for_none(field: FieldInfo) -> str:
    """What a recipe says for None in this field: `auto` where Luthier decides then, else `none`."""
    return "auto" if AUTO in field.metadata else "none"


class Config(BaseModel):
    """A block of configuration: immutable, no unknown keys, docstrings are the help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    aliases: ClassVar[dict[str, str]] = {}
    """Spellings of PEFT and TrainingArguments -> our field. They are accepted, with a note."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        """Take other spellings, and what `explain` shows for a default of None or an empty text as that default."""
        if not isinstance(value, dict):
            return value
        renamed: dict[str, Any] = {}
        for key, inner in value.items():
            name = cls.aliases.get(str(key), str(key))
            if name in renamed or (name != key and name in value):
                both = {"key": key, "name": name}
                raise PydanticCustomError("given_twice", "'{key}' and '{name}' are the same setting: keep one", both)
            if name != key and isinstance(info.context, dict):
                info.context.setdefault("notes", []).append(f"{key} is read as {name}")
            renamed[name], field = inner, cls.model_fields.get(name)
            if field is not None and field.default is None and inner == word_for_none(field):
                renamed[name] = None
            elif field is not None and field.default == "" and inner is None:  # the shell leaves nothing of key=""
                renamed[name] = ""
        return renamed


class Plugin(Config):
    """A block of configuration that is also the code it configures."""

    name: ClassVar[str]
    required: ClassVar[tuple[str, ...]] = ()
    """Methods of this class that every member of its family must define."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    @classmethod
    def more_help(cls, topic: str = "") -> list[str]:
        """Lines that `luthier explain` shows behind the fields, or only these about a `topic`."""
        return []

    def spec(self) -> dict[str, Any]:
        """The plugin as a recipe block, `name` first."""
        return {"name": self.name, **self.model_dump(mode="json")}


P = TypeVar("P", bound=Plugin)


class Family(Generic[P]):
    """All plugins of one kind, for example every tuning method."""

    def __init__(
        self,
        base: type[P],
        kind: str,
        *,
        presets: dict[str, tuple[str, dict[str, Any]]] | None = None,
        beyond: str = "",
    ) -> None:
        """`kind` is the word for one member; `presets` are further names, each a member with some of its fields set.

        Members are the modules beside `base`'s; folders there hold what several of them share. `beyond` says how to
        have what has no name here.
        """
        self.base, self.kind, self.presets, self.beyond = base, kind, presets or {}, beyond
        self.package = base.__module__.rpartition(".")[0]  # luthier.methods.base -> luthier.methods

    def names(self) -> list[str]:
        """Every member's name, sorted. Imports no plugin."""
        package = importlib.import_module(self.package)
        own = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg} - {"base"}
        return sorted(own | installed(self.package).keys())

    def all_names(self) -> list[str]:
        """Every name that `get` takes: the members' names, sorted, then the presets'."""
        return [*self.names(), *self.presets]

    def get(self, name: str) -> type[P]:
        """Import one plugin class by name or preset; UnknownPlugin names the nearest."""
        name = self.presets[name][0] if name in self.presets else name
        if name not in self.names():
            raise UnknownPlugin(self.kind, name, self.all_names(), self.beyond)
        module_name = installed(self.package).get(name, f"{self.package}.{name}")
        module = importlib.import_module(module_name)
        classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, self.base)]
        classes = [value for value in classes if value.__module__ == module_name]  # without those it imports
        if len(classes) != 1:
            what = f"{len(classes)} subclasses of {self.base.__module__}.{self.base.__name__}"
            raise IncompletePlugin(f"{self.kind} {name}: {module_name} must define one class, and has {what}")
        found = classes[0]
        required = [(base, method) for base in found.__mro__ for method in vars(base).get("required", ())]
        if lacks := [method for base, method in required if getattr(found, method) is getattr(base, method)]:
            where = f"{found.__name__} in {module_name}"
            raise IncompletePlugin(f"{self.kind} {name}: {where} must define {', '.join(lacks)}")
        return found

    def get_known(self, name: str) -> type[P]:
        """As `get`, for pydantic: an unknown name is an error of the field that holds it."""
        try:
            return self.get(name)
        except UnknownPlugin as error:
            raise PydanticCustomError("unknown_plugin", "{why}", {"why": error.message}) from None

    def parse(self, value: Any, context: dict[str, Any] | None = None) -> P:
        """Turn `"lora"` or `{"name": "lora", "rank": 8}` into a plugin."""
        if isinstance(value, self.base):
            return value
        names = {"names": ", ".join(self.names())}
        if not isinstance(value, str | dict):
            raise PydanticCustomError("plugin_type", "should be a name or a block with a name, one of: {names}", names)
        fields = {"name": value} if isinstance(value, str) else dict(value)
        name = fields.pop("name", None)
        if name is None:
            raise PydanticCustomError("plugin_name", "needs 'name', one of: {names}", names)
        found = self.get_known(str(name))
        if name in self.presets:
            fields = {**self.presets[name][1], **fields}
        try:
            return found.model_validate(fields, context=context)
        except ValidationError as error:
            # Pydantic would flatten this into one text: hand the parts on, so that each keeps its key.
            parts = {"why": str(error), "errors": error.errors(), "known": sorted(found.model_fields)}
            raise PydanticCustomError("plugin_fields", "{why}", parts) from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            lambda value, info: self.parse(value, info.context),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda plugin: plugin.spec()),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """One form per plugin."""
        forms = []
        for name in self.names():
            form = self.get(name).model_json_schema()
            form["properties"] = {"name": {"const": name}, **form.get("properties", {})}
            forms.append(form)
        return {"oneOf": forms}


@dataclass(frozen=True)
class NameOf:
    """In the annotation of a text field: the name of a member of `family`, or one of `spellings` -> name."""

    family: Family[Any]
    spellings: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Every name that the field takes, sorted; other spellings are left out."""
        return sorted(self.family.all_names())

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def known(value: str) -> str:
            name = self.spellings.get(value, value)
            self.family.get_known(name)
            return name

        return core_schema.no_info_after_validator_function(known, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": self.names(), "type": "string"}
