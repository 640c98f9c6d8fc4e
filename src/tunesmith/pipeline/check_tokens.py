"""What rendering with a model's template says of the rows of a check: the part of ``check --model`` that needs a tokenizer."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.chat.render import Conversation
from tunesmith.chat.template_choice import template_text
from tunesmith.data.quality import Quality, histogram, summary
from tunesmith.engines.base import open_base
from tunesmith.errors import DataError
from tunesmith.rundir.rows import Row


def keeping(lengths: list[int]) -> dict[str, int]:
    """The ``max_length`` that keeps 95, 99 and 100 % of the rows."""
    found = np.percentile(np.array(lengths or [0]), [95, 99, 100], method="inverted_cdf").astype(int).tolist()
    return dict(zip(("95", "99", "100"), found, strict=True))


class Tokens:
    """What rendering says of the rows of a check."""

    def __init__(self, model: str, template: Path | None, max_length: int | None):
        text = None if template is None else template_text(template)
        self._renderer, self._max_length = open_base(model, text).renderer, max_length
        self._lengths: list[int] = []
        self._supervised: list[int] = []
        self._rows: list[int] = []
        self._seen = 0
        self._notes: Counter[str] = Counter()
        self._refused: list[tuple[int, str]] = []

    def add(self, rows: list[Row]) -> None:
        """Render a batch and keep its figures."""

        for rendered in self._renderer.render_batch([Conversation.of(row) for row in rows]):
            if isinstance(rendered, DataError):
                self._refused.append((self._seen, rendered.message))
            else:
                self._rows.append(self._seen)
                self._lengths.append(len(rendered.ids))
                self._supervised.append(sum(rendered.supervised))
                self._notes.update(rendered.notes)
            self._seen += 1

    def report(self, quality: Quality) -> dict[str, Any]:
        """The part ``tokens`` of a check's result."""

        lengths, supervised, rows = np.array(self._lengths), np.array(self._supervised), np.array(self._rows)
        found = summary(lengths, rows)
        limit = self._max_length
        over = [] if limit is None else np.flatnonzero(lengths > limit).tolist()
        shown = [(int(rows[i]), int(lengths[i])) for i in over[:20]]
        places = quality.places.find({row for row, _ in [*found["longest"], *shown, *self._refused[:20]]})

        def named(row: int, **facts: Any) -> dict[str, Any]:
            return {**places[row], **facts}

        return {
            "max_length": limit,
            "rows": len(lengths),
            "lengths": {key: value for key, value in found.items() if key != "longest"},
            "supervised_share": int(supervised.sum()) / max(1, int(lengths.sum())),
            "supervised_histogram": histogram(supervised / np.maximum(lengths, 1), log=False),
            "too_long": {
                "count": len(over),
                "shown": [named(row, tokens=tokens) for row, tokens in shown],
                "keep": keeping(self._lengths),
            },
            "notes": dict(self._notes),
            "refused": {
                "count": len(self._refused),
                "by_reason": dict(Counter(reason for _, reason in self._refused).most_common(20)),
                "shown": [named(row, reason=reason) for row, reason in self._refused[:20]],
            },
            "longest": [named(row, tokens=tokens) for row, tokens in found["longest"]],
        }
