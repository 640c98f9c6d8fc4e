"""What rendering with a model's template says of the rows of a check: the part of ``check --model`` that needs a tokenizer."""

from collections import Counter
from pathlib import Path

import numpy as np

from tunesmith.chat.render import Conversation, Renderer
from tunesmith.chat.template_choice import template_text
from tunesmith.data.finding import recorded
from tunesmith.data.lengths import histogram, keep_shares, row_lengths, summary
from tunesmith.data.own_dates import OwnDates
from tunesmith.data.places import FindPlaces
from tunesmith.engines.base import BaseModel, open_base
from tunesmith.errors import DataError
from tunesmith.pipeline.windows import Window
from tunesmith.rundir.records.check import Refusals, TokenReport, TooLong
from tunesmith.rundir.records.quality import CheckFinding, RowExcerpt
from tunesmith.rundir.rows import Row

SHOWN = 20  # rows of a kind


def tokens_of(model: str, template: Path | None, max_length: int | None) -> "Tokens":
    """Rendering with a model's template, or with the one of a file.

    Raises:
        ModelError: no tokenizer there, or a template that cannot be used.
    """
    text = None if template is None else template_text(template)
    return Tokens(open_base(model, text), model, max_length)


def dated(renderer: Renderer, rows: int) -> dict[str, int]:
    """What is to be said of rows into which the template writes the date of the day; nothing where it writes none."""
    if renderer.date is None or not rows:
        return {}
    return {f"the chat template writes the date, here {renderer.date}; a run keeps the one of its first rendering": rows}


class Tokens:
    """What rendering says of the rows of a check."""

    def __init__(self, base: BaseModel, model: str, max_length: int | None):
        renderer = base.renderer
        self._renderer, self._model, self._max_length, self._window = renderer, model, max_length, Window(base.directory)
        self._lengths: list[int] = []
        self._tokens: list[int] = []
        self._supervised: list[int] = []
        self._rows: list[int] = []
        self._seen = 0
        self._own_dates = OwnDates(renderer.date)
        self._notes: Counter[str] = Counter()
        self._refusals: list[tuple[int, str]] = []

    def add(self, rows: list[Row]) -> None:
        """Render a batch and keep its figures."""
        for rendered in self._renderer.render_batch([Conversation.of(row) for row in rows]):
            if isinstance(rendered, DataError):
                self._refusals.append((self._seen, rendered.message))
            else:
                self._rows.append(self._seen)
                self._lengths.append(rendered.longest)
                self._tokens.append(rendered.tokens)
                self._supervised.append(rendered.supervised_tokens)
                self._notes.update([*rendered.notes, *self._window.note(rendered.longest)])
            self._seen += 1
        self._own_dates.add(rows)

    def sizes_of(self, rows: list[Row]) -> list[tuple[int, int]]:
        """Tokens of each row that can be rendered, and those of its answers; nothing of them is kept."""
        rendered = self._renderer.render_batch([Conversation.of(row) for row in rows])
        return [(row.tokens, row.supervised_tokens) for row in rendered if not isinstance(row, DataError)]

    def findings(self, find: FindPlaces) -> list[CheckFinding]:
        """What is wrong with rows under this template."""
        found = self._own_dates.finding()
        places = find({example.row for finding in found for example in finding.examples})
        return [recorded(finding, places) for finding in found]

    def report(self, find: FindPlaces) -> TokenReport:
        """The part ``tokens`` of a check."""
        lengths, supervised, rows = np.array(self._lengths), np.array(self._supervised), np.array(self._rows)
        tokens = np.array(self._tokens)  # of all documents of a row, as training computes them
        limit = self._max_length
        over = [] if limit is None else np.flatnonzero(lengths > limit).tolist()
        refusals = self._refusals[:SHOWN]
        places = find({row for row, _ in refusals})
        return TokenReport(
            model=self._model,
            max_length=limit,
            rows=len(lengths),
            lengths=summary(lengths, rows, find),
            supervised_share=int(supervised.sum()) / max(1, int(tokens.sum())),
            supervised_histogram=histogram(supervised / np.maximum(tokens, 1), log=False),
            too_long=TooLong(
                count=len(over),
                examples=row_lengths([(int(rows[i]), int(lengths[i])) for i in over[:SHOWN]], find),
                keep=keep_shares(self._lengths),
            ),
            notes={**self._notes, **dated(self._renderer, len(lengths))},
            refusals=Refusals(
                count=len(self._refusals),
                by_reason=dict(Counter(reason for _, reason in self._refusals).most_common(SHOWN)),
                examples=tuple(
                    RowExcerpt(id=places[row].id, place=places[row].place, excerpt=reason) for row, reason in refusals
                ),
            ),
        )
