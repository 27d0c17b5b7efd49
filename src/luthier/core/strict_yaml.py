"""YAML of recipes and overrides, stricter than PyYAML: a key set twice or too large a value is an error."""

import re
from typing import Any

import yaml
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode, Node

DEEPEST = 50
"""Levels of nesting: a recipe has five, and PyYAML reads each by a call of itself."""
LARGEST = 2**63
"""Whole numbers stay below it: torch and the operating system hold no larger ones."""

_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def parse_yaml(text: str) -> Any:
    """The value that `text` holds. Raises yaml.YAMLError, which says where."""
    return yaml.load(text, _Loader)


def parse_value(text: str) -> Any:
    """A YAML value; `1e-4` is a number here, which YAML 1.1 reads as text."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else parse_yaml(text)


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Node | None:
        if self.depth == DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise MarkedYAMLError(problem=f"nested more than {DEEPEST} levels deep", problem_mark=mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[tuple[str, Any], int] = {}
        for key, _ in node.value if isinstance(node, MappingNode) else ():
            line, name = key.start_mark.line + 1, (key.tag, str(key.value))
            if name in seen:
                what = f"the key {key.value!r} is set in line {seen[name]} and again in line {line}: keep one"
                raise MarkedYAMLError(problem=what, problem_mark=key.start_mark)
            seen[name] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except ValueError as error:  # more digits than Python reads, the 31st of February
            raise MarkedYAMLError(problem=str(error).split(";")[0], problem_mark=node.start_mark) from None
        if isinstance(value, int) and not -LARGEST <= value < LARGEST:
            what = "a whole number this large cannot be used (64 bits at most)"
            raise MarkedYAMLError(problem=what, problem_mark=node.start_mark)
        return value
