"""What the owner of rows decides about their meaning, applied while they are read, counted and said.

A row can be read to the letter and mean something else: reasoning between tags, a bad answer beside a good one, a conversation
inside one text, nulls that a table put there. Each is settled in a file of its own; here they meet the reader in one call, so
that the id of a row is a hash of what is trained. Without a choice nothing is changed but padding, which is proven
(``tool_use.py``); what looks as if it wanted a choice is a finding or an error.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from tunesmith.data import preference
from tunesmith.data.conversation import check_messages
from tunesmith.data.problems import RowError
from tunesmith.data.reasoning import Mode, settled
from tunesmith.data.rendered_text import parsed, parsed_turns
from tunesmith.data.tool_use import without_padding
from tunesmith.messages import Message, Tools

Kind = Literal["chat", "text"]
Take = Literal["chosen"]


class NotTaken(Exception):
    """A row of preference data whose answer is a bad one: left out, as was asked."""


class Choices:
    """Settles rows, and keeps count.

    Args:
        reasoning: as ``data.reasoning``.
        take: as ``data.take``.
        parse_template: whether a plain text that holds a rendered template becomes the conversation in it.
    """

    def __init__(self, reasoning: Mode | None = None, take: Take | None = None, parse_template: bool = False):
        self.reasoning: Mode | None = reasoning
        self.take: Take | None = take
        self.parse_template = parse_template
        self._counts: Counter[str] = Counter()
        self._forms: Counter[str] = Counter()

    @property
    def leaves_plain_rows(self) -> bool:
        """Whether rows of plain turns need not be looked at."""
        return self.reasoning in (None, "keep") and not self.parse_template

    def answer(self, row: Mapping[str, JsonValue], answers: str) -> Mapping[str, JsonValue]:
        """The good half of a row of preference data, as a row of another format.

        Args:
            answers: what makes it one, in words.

        Raises:
            RowError: there is no choice, or no good answer.
            NotTaken: its answer is a bad one.
        """
        if self.take is None:
            raise RowError("$", "preference-data", f"a row with {answers} (preference data)", preference.HINT)
        good = preference.chosen(row)
        self._counts["taken" if good is not None else "not taken"] += 1
        if good is None:
            raise NotTaken
        return good

    def pass_over(self, row: Mapping[str, JsonValue]) -> None:
        """Count a row whose columns were named, and whose mark of a bad answer is therefore not read."""
        self._counts["bad"] += preference.marked_as_bad(row)

    def settle(self, messages: list[Message], tools: Tools, kind: Kind, path: str) -> tuple[list[Message], Tools, Kind]:
        """A checked row as it is trained.

        Args:
            path: where a plain text stands in the file.

        Raises:
            RowError: what was chosen cannot be done with this row.
        """
        if kind == "text":
            if not self.parse_template:
                return messages, tools, kind
            messages, form = parsed(messages[0]["content"], path)
            self._forms[f"texts in the form of {form}"] += 1
            try:
                messages, kind = check_messages(messages), "chat"
            except RowError as bad:
                raise RowError(path, bad.code, f"in the form of {form}: {bad.message}", bad.hint) from None
        elif self.parse_template and (found := parsed_turns(messages)) is not None:
            messages = check_messages(found[0])
            self._forms[found[1]] += 1
        if tools:
            messages, tools, nulls = without_padding(messages, tools)
            self._counts["padded"] += nulls > 0
        messages, split, dropped = settled(messages, self.reasoning)
        self._counts["split"] += split > 0
        self._counts["dropped"] += dropped > 0
        return messages, tools, kind

    def notes(self) -> list[str]:
        """What was done, for people."""
        count = self._counts
        lines = [
            (count["taken"], "the chosen answer is trained (data.take: chosen), and the rejected one is not read"),
            (count["not taken"], "left out, since their answer is marked as a bad one (data.take: chosen)"),
            (
                count["bad"],
                "an answer that label or kto_tag marks as false is read like any other, since the columns are named",
            ),
            (count["padded"], "nulls dropped that a table put into tool schemas or arguments (no such property or argument)"),
            (count["split"], f"reasoning in the text is put into reasoning_content (data.reasoning: {self.reasoning})"),
            (count["dropped"], "turns of weight 0 lose their reasoning (data.reasoning: drop)"),
        ]
        lines += [(rows, f"{what} are read as messages") for what, rows in self._forms.most_common()]
        return [f"{rows:,} rows: {what}" for rows, what in lines if rows]
