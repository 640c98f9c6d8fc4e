"""Rows that mean something else than what they will teach: the part of a check that looks for it.

Three questions, each asked in its own file: does reasoning stand in the text of an answer, does a plain text hold a rendered
conversation, do calls and declared tools belong together? A batch that holds no trace of a tag, a mark or a tool costs a few
searches of its bytes: under 1 % of a check.
"""

from collections.abc import Sequence

import pyarrow as pa

from tunesmith.data import reasoning, rendered_text
from tunesmith.data.finding import Finding
from tunesmith.data.reasoning import ReasoningInText
from tunesmith.data.rendered_text import RenderedTexts
from tunesmith.data.tool_use import ToolUse
from tunesmith.rundir.rows import Row


class Misread:
    """Collects over a stream: ``add`` each batch, then ``findings``.

    Args:
        reasoning_is_text: whether its owner says that reasoning in the text is meant as text (``data.reasoning: keep``).
    """

    def __init__(self, *, reasoning_is_text: bool = False):
        self._reasoning = None if reasoning_is_text else ReasoningInText()
        self._rendered = RenderedTexts()
        self._tools = ToolUse()

    def add(self, rows: Sequence[Row], texts: pa.Array, first: int) -> None:
        """Look at a batch.

        Args:
            texts: large_binary, all that the rows say.
            first: number of ``rows[0]`` in reading order.
        """
        data = texts.buffers()[2]
        whole = b"" if data is None else data.to_pybytes()
        if self._reasoning is not None and reasoning.may_hold(whole):
            self._reasoning.add(rows, first)
        # Each path of a source has a kind of its own, and one batch may hold rows of several.
        if any(row.kind == "text" for row in rows) and rendered_text.may_hold(whole):
            self._rendered.add(rows, first)
        self._tools.add(rows, first)

    def findings(self, rows: int) -> list[Finding]:
        """What was found in so many rows."""
        found = [] if self._reasoning is None else self._reasoning.finding(rows)
        return [*found, *self._rendered.finding(rows), *self._tools.findings()]
