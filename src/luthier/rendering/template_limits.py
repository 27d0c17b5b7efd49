"""Limits for chat templates: a template is code that comes with a model, and may loop or build text forever.

transformers renders in Jinja's sandbox, which limits neither nested loops nor sizes. The environment here does the same
and counts: steps (turns of loops and calls), characters, and seconds. It takes the sandbox's place in transformers, and
counts only within `apply_chat_template`. It can go when transformers limits rendering itself.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

STEPS, CHARACTERS, SECONDS = 500_000, 2**26, 20.0
"""Most that one rendering may take. 1,999 turns take 6,000 steps in Llama 3.1's template (tests/strangers)."""
GROWING = ("center", "format", "indent", "join", "list", "batch", "slice", "replace", "wordwrap")
"""Filters whose output may be much larger than their input."""


class LimitExceeded(Exception):
    """A template takes too many steps, too much memory or too long."""


@dataclass(slots=True)
class Budget:
    """The steps, characters and seconds (as a time on the monotonic clock) that are left to one rendering."""

    steps: int = STEPS
    characters: int = CHARACTERS
    until: float = field(default_factory=lambda: time.monotonic() + SECONDS)


_left: ContextVar[Budget | None] = ContextVar("left", default=None)


def take(steps: int = 0, characters: int = 0) -> None:
    """Count what a template does, within `apply_chat_template`; LimitExceeded where the budget is used up."""
    left = _left.get()
    if left is None:
        return
    left.steps -= steps
    left.characters -= characters
    if left.steps < 0:
        raise LimitExceeded(f"it takes more than {STEPS:,} steps")
    if left.characters < 0:
        raise LimitExceeded(f"it makes more than {CHARACTERS:,} characters")
    if left.steps % 256 < steps and time.monotonic() > left.until:
        raise LimitExceeded(f"it takes more than {SECONDS:.0f} s")


def limited_turns(values: Iterable[Any], characters: int) -> Iterator[Any]:
    """The values of a `for`, each turn of which is a step and writes this many characters of the template itself."""
    for value in values:
        take(1, characters)
        yield value


class Generator(CodeGenerator):
    """Jinja's compiler with counting loops and joins."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        turns = nodes.EnvironmentAttribute("limited_turns")
        node.iter = nodes.Call(turns, [node.iter, nodes.Const(written)], [], None, None, lineno=node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class CountingEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox in which transformers renders, with what a template takes counted."""

    code_generator_class = Generator
    intercepted_binops = frozenset({"+", "*", "**"})
    limited_turns = staticmethod(limited_turns)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, finalize=_counted, **options)
        for name in GROWING:
            self.filters[name] = _counting(self.filters[name])

    def call(self, context: Context, called: Any, *args: Any, **options: Any) -> Any:
        if called is limited_turns:  # a loop's own
            return limited_turns(*args)
        take(1, _sizes(args, options))
        return _counted(super().call(context, called, *args, **options))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            take(1, len(left) + len(right))
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    take(1, len(value) * max(0, times))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            take(1, left.bit_length() * max(0, right) if operator == "**" else left.bit_length() + right.bit_length())
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def joined(parts: Iterable[Any]) -> str:
        """The parts of `a ~ b` as one text."""
        made = [str(part) for part in parts]
        take(1, sum(map(len, made)))
        return str_join(made)


def _sizes(args: Iterable[Any], options: dict[str, Any]) -> int:
    """Sum of the large numbers that a method or filter may take as a width."""
    return sum(each for each in (*args, *options.values()) if isinstance(each, int) and each > 2**16)


def _counted(value: Any, kinds: Any = str) -> Any:
    """The value, with its characters or items counted."""
    take(0, len(value) if isinstance(value, kinds) else 0)
    return value


def _counting(filter_: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(filter_)
    def limited(*args: Any, **options: Any) -> Any:
        take(1, _sizes(args, options))
        return _counted(filter_(*args, **options), str | list)

    return limited


def apply_chat_template(tokenizer: Any, turns: Any, **options: Any) -> Any:
    """`tokenizer.apply_chat_template`, stopped at the limits: LimitExceeded."""
    from transformers.utils import chat_template_utils as used

    if used.ImmutableSandboxedEnvironment is not CountingEnvironment:  # type: ignore[attr-defined]
        used.ImmutableSandboxedEnvironment = CountingEnvironment  # type: ignore[attr-defined]
        used._compile_jinja_template.cache_clear()  # of templates that were compiled before
    outer = _left.set(Budget())
    try:
        return tokenizer.apply_chat_template(turns, **options)
    finally:
        _left.reset(outer)
