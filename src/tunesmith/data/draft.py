"""A row on its way: its turns in OpenAI's shape, not yet checked, and where in the file each of them stands."""

from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.problems import RowError


@dataclass(slots=True)
class Draft:
    """A row's turns in OpenAI's shape, not yet checked.

    Attributes:
        messages: the turns, of whatever type the file held when it is not a list.
        tools: as in the file, or None.
        text: whether the row is one plain text.
        origins: where each turn came from, when that is not ``$.messages[i]``, and whether a whole turn stands there
            (True) or the one value that it was made of (False).
        whole: where the list of turns came from.
        tools_path: where the tools came from.
    """

    messages: Any
    tools: Any = None
    text: bool = False
    origins: list[tuple[str, bool]] = field(default_factory=list)
    whole: str = "$.messages"
    tools_path: str = "$.tools"

    def locate(self, path: str) -> str:
        """The path in the file of a path under ``$.messages``."""
        if not path.startswith("$.messages"):
            return path
        if not path.startswith("$.messages[") or not self.origins:
            return self.whole + path.removeprefix("$.messages")
        index, _, rest = path.removeprefix("$.messages[").partition("]")
        origin, is_turn = self.origins[int(index)]
        return origin + rest if is_turn else origin

    def located(self, bad: RowError) -> RowError:
        """The same problem, at its place in the file."""
        return RowError(self.locate(bad.path), bad.code, bad.message, bad.hint)
