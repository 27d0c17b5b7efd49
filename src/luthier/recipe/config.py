"""One run as one typed object: YAML, command line, Python and docs are all made from it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from luthier.core.errors import ConfigError, InputError
from luthier.core.registry import AUTO, Config, Family, Seed
from luthier.core.strict_yaml import parse_value
from luthier.data.formats.base import FORMATS
from luthier.data.settings import DataConfig
from luthier.evaluation.records.settings import EvaluateConfig
from luthier.methods.base import METHODS, QUANTIZED, Method
from luthier.models.settings import ModelConfig
from luthier.recipe.origin import complete
from luthier.recipe.parse import RecipeSource, assign, problems, read_yaml, relative_paths
from luthier.runs.remote import is_url, problem_of
from luthier.tasks.base import TASKS, Task
from luthier.training.settings import TrainConfig


class RunConfig(Config):
    """One fine-tuning run."""

    run: str = ""
    """Folder of the run, or a URL such as s3://bucket/name; default runs/<recipe or data>-<method>. Rerun the same
    command to resume."""
    model: ModelConfig = ModelConfig()
    """The base model."""
    data: DataConfig = DataConfig()
    """The rows to learn from and to test on."""
    task: Annotated[Annotated[Task, TASKS] | None, AUTO] = None
    """What to learn; auto follows the data: dialogues chat, plain text complete, labels classify."""
    method: Annotated[Method, METHODS] = Field(default_factory=lambda: METHODS.parse("lora"))
    """How to tune."""
    train: TrainConfig = TrainConfig()
    """Length, speed and exactness."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured."""
    seed: Seed = 0
    """Seed of initial weights, order of rows and dropout."""

    @property
    def sources(self) -> str:
        """Base and data, as they are named on the terminal."""
        return f"{self.model.path}, data {self.data.path}" if self.data.path else self.model.path

    @field_validator("run")
    @classmethod
    def _a_url_without_secrets(cls, value: str) -> str:
        if is_url(value) and (problem := problem_of(value)):
            raise ValueError(problem)
        return value

    @model_validator(mode="before")
    @classmethod
    def _quantizing_method(cls, value: Any, info: ValidationInfo) -> Any:
        """`method: qlora` is lora on a base in 4 bit: the other blocks follow where they are silent."""
        method = value.get("method") if isinstance(value, dict) else None
        name = str(method.get("name") if isinstance(method, dict) else method)
        if name not in QUANTIZED:
            return value
        quantize, optimizer = QUANTIZED[name]
        model, train = dict(value.get("model") or {}), dict(value.get("train") or {})
        if model.setdefault("quantize", quantize) == "none":
            raise ValueError(f"method {name} is lora on a quantized base, and model.quantize is none: take method=lora")
        said = [f"model.quantize={model['quantize']}"]
        if optimizer and not {"optimizer", "optim"} & train.keys():
            train["optimizer"] = optimizer
            said.append(f"train.optimizer={optimizer}")
        if isinstance(info.context, dict):
            info.context.setdefault("notes", []).append(f"method {name} is lora with {' and '.join(said)}")
        return {**value, "model": model, "train": train}

    @model_validator(mode="after")
    def _a_stream_has_steps(self) -> Self:
        if self.data.streaming and not self.train.steps:
            raise ValueError("data.streaming=true needs train.steps, for nobody knows how many rows there are")
        if self.data.streaming and self.method.starts_from:
            raise ValueError("data.streaming=true has no rows to start from, which method.init asks for")
        return self

    @classmethod
    def load(
        cls,
        path: RecipeSource | None = None,
        overrides: Sequence[str] = (),
        notes: list[str] | None = None,
        *,
        source: str = "the command line",
    ) -> "RunConfig":
        """Read a YAML recipe, of a file or a URL, and apply `key.path=value` overrides, whose values are YAML too.

        ConfigError reports all mistakes at once. `notes` receives what was read under another spelling; `source` is
        where the overrides come from.
        """
        data = read_yaml(path) if path else {}
        wrong = relative_paths(data, overrides) if isinstance(path, str) else []
        return cls.of(data, overrides, notes, source=str(path) if path else source, wrong=wrong)

    @classmethod
    def of(
        cls,
        data: dict[str, Any],
        overrides: Sequence[str] = (),
        notes: list[str] | None = None,
        *,
        source: str,
        wrong: Sequence[str] = (),
    ) -> "RunConfig":
        """The recipe of a mapping, with overrides as `load` takes them. Completes `data`, and sets them there too.

        ConfigError has every mistake, after those that are known already (`wrong`).
        """
        wrong = list(wrong)
        for override in overrides:
            key, equals, text = override.partition("=")
            if not equals or not key:
                wrong.append(f"{override!r} is no override; write key.path=value")
                continue
            try:
                assign(data, key, parse_value(text))
            except (yaml.YAMLError, InputError) as error:
                wrong.append(f"{key[:60]}: {getattr(error, 'problem', None) or error}")
        complete(data)
        if isinstance(data.get("method"), dict):
            data["method"].setdefault("name", "lora")
        try:
            config = cls.model_validate(data, context={"notes": [] if notes is None else notes})
        except ValidationError as error:
            wrong += [line for part in error.errors() for line in problems(cls, dict(part))]
        if wrong:
            raise ConfigError(source, wrong)
        return config

    def dump(self) -> str:
        """The resolved recipe as YAML; loading it gives the same run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


FAMILIES: Mapping[str, Family[Any]] = {"method": METHODS, "task": TASKS, "format": FORMATS}
"""Every family of plugins that a recipe can name, by the word for one of it."""
