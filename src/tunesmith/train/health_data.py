"""Before the first step: every part teaches what it should, or the run stops.

Three mistakes of data preparation show in no loss curve. A mask that covers the answers trains on nothing, and one that
covers nothing trains the model to write its users' questions. A mask that leaves out the token that ends an answer makes a
model that never stops. A second beginning-of-text token, put in front of a template that writes its own, is an input that
the base model has never seen. All three can be read off the rendered tokens, and here they are: every token of a part,
a record batch at a time, a second for some hundred million.

The renderer (``chat/render.py``) makes none of these by construction. What is checked is what the file says, whoever
rendered it: it may be older than the template, and the template may be the user's own.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tunesmith.chat.render import Renderer
from tunesmith.errors import DataError
from tunesmith.messages import Message
from tunesmith.rundir import stream_rows
from tunesmith.train.documents import Documents, Lists
from tunesmith.train.prefix import row_tokens

KINDS = 10_000  # rows whose kind is looked at where all tokens are supervised: a large part of plain texts is not read twice


@dataclass(frozen=True)
class Taught:
    """What a part teaches.

    Attributes:
        part: its name.
        share: supervised tokens of all its tokens, what the documents of a row begin with alike counted once.
        unstopped: its documents whose last supervised token ends no answer.
        first_unstopped: row id of the first of them.
    """

    part: str
    share: float
    unstopped: int
    first_unstopped: str

    def words(self) -> str:
        """For the one line that a healthy run says."""
        rows = f" ({self.unstopped:,} rows end without a stop token, first {self.first_unstopped})" if self.unstopped else ""
        return f"{100 * self.share:.1f} % of {self.part}{rows}"


def check_part(part: str, documents: Documents, rows: Path, renderer: Renderer) -> Taught:
    """Read what a part teaches off its tokens.

    Args:
        part: ``train`` or ``dev``.
        documents: its rendered documents.
        rows: the JSONL file that they were rendered from.
        renderer: says which tokens end an answer, and which begins a text.

    Raises:
        DataError: nothing is supervised; everything is, prompts too; no row ends in a stop token; or a row holds the
            beginning-of-text token where it has no place.
    """
    bos, repeats = _bos(renderer)
    unstopped: list[int] = []
    opened = 0
    for first, ids, spans in documents.batches():
        last = _last_supervised(ids, spans)
        unstopped += (first + np.flatnonzero(~np.isin(last, renderer.stop_ids))).tolist()
        if bos is not None:
            opened += int((ids.values[ids.offsets[:-1]] == bos).sum())
            _refuse_second_bos(part, documents, first, ids, bos, repeats)
    tokens = int(documents.lengths.sum())
    if not documents.supervised_tokens:
        raise DataError(f"{part}: none of its {tokens:,} tokens is supervised", "give an assistant turn of a row weight 1")
    if documents.supervised_tokens >= tokens - opened:
        _refuse_supervised_prompts(part, rows)
    if len(unstopped) == len(documents):
        stops = renderer.tokenizer.convert_ids_to_tokens(renderer.stop_ids)
        raise DataError(
            f"{part}: no row's supervised tokens end in a stop token ({', '.join(stops)}), so the model would never stop",
            "chat.template has to end a turn with one of them; run: tunesmith preview",
        )
    named = documents.row_id(unstopped[0]) if unstopped else ""
    return Taught(part, documents.supervised_tokens / int(row_tokens(documents).sum()), len(unstopped), named)


def _last_supervised(ids: Lists, spans: Lists) -> np.ndarray:
    """The last supervised token of each document, -1 where there is none."""
    taught = spans.offsets[1:] > spans.offsets[:-1]
    last = np.full(len(taught), -1, np.int64)
    ends = spans.values[spans.offsets[1:][taught] - 1]
    last[taught] = ids.values[ids.offsets[:-1][taught] + ends - 1]
    return last


def _bos(renderer: Renderer) -> tuple[int | None, bool]:
    """The beginning-of-text token, and whether the template writes it in front of every turn."""
    bos = renderer.tokenizer.bos_token_id
    if not isinstance(bos, int):
        return None, False
    turns: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return bos, renderer.render([*turns, *turns]).ids.count(bos) > 1


def _refuse_second_bos(part: str, documents: Documents, first: int, ids: Lists, bos: int, repeats: bool) -> None:
    """A document has one, as its first token; where it opens turns too, no two may stand side by side at the start."""
    places = np.flatnonzero(ids.values[: ids.offsets[-1]] == bos)
    document = np.searchsorted(ids.offsets, places, side="right") - 1
    at = places - ids.offsets[document]
    wrong = np.flatnonzero((at == 1) & np.isin(document, document[at == 0]) if repeats else at > 0)
    if len(wrong):
        row = documents.row_id(first + int(document[wrong[0]]))
        raise DataError(
            f"{part}, row {row}: token {int(at[wrong[0]]) + 1} is a beginning-of-text token (id {bos}), which stands first or "
            "nowhere",
            "does chat.template write it, and the row or a second template as well? run: tunesmith preview",
        )


def _refuse_supervised_prompts(part: str, rows: Path) -> None:
    """All tokens are supervised: right for plain texts, wrong as soon as somebody asks something."""
    first = itertools.islice(stream_rows(rows), KINDS)
    chat = next((row for row in first if row.kind != "text"), None)
    if chat is not None:
        raise DataError(
            f"{part}: every token is supervised, the prompts too, first row {chat.id}, {chat.place}",
            "the model would learn to write its users' turns; run: tunesmith render",
        )
