"""YAML that a stranger wrote, read in bounds.

PyYAML takes a second for 5,000 brackets and then runs out of Python's stack; and ten lines of aliases, each a list of the line
before, are a value of gigabytes for whoever walks over it. Nobody's recipe has either. Depth and aliases are counted while the
text is composed, so neither is built first.
"""

from typing import Any, cast

import yaml
from pydantic import JsonValue

DEPTH, ALIASES = 64, 20


class _Bounded(yaml.SafeLoader):
    depth = 0
    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, within the bounds."""
        untyped, above = cast("Any", self), cast("Any", super())
        self.aliases += bool(untyped.check_event(yaml.AliasEvent))
        self.depth += 1
        if self.depth > DEPTH or self.aliases > ALIASES:
            what = f"nested more than {DEPTH} deep" if self.depth > DEPTH else f"more than {ALIASES} aliases"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=untyped.peek_event().start_mark)
        node = above.compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(text: str) -> JsonValue:
    """The value of a text.

    Raises:
        yaml.YAMLError: it is no YAML, holds what JSON has no word for, or is past the bounds.
    """
    try:
        return cast("JsonValue", yaml.load(text, Loader=_Bounded))
    except (ValueError, TypeError, RecursionError, OverflowError) as error:  # a date that is none, a number of 5,000 digits
        raise yaml.YAMLError(f"a value that cannot be read: {error}") from error
