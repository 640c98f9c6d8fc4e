"""Was the right passage found? Said before any answer is scored: a bad answer over good passages is the model's fault.

What "right" means depends on what the data says, and is written beside the figures:

* The rows name their documents (``data.group_by`` is a column that holds the id of a document of ``data.documents``):
  recall@k is the share of rows whose document is among the first k, nDCG@k weighs it by ``1 / log2(1 + rank)``. Passages
  of one document count once, at the best rank.
* They do not: answer recall@k, the share of rows whose reference stands word for word in one of the first k passages. It
  bounds what copying can reach, no more: a label stands in many passages for no good reason, a long answer in none.

Refused: to call a train row relevant because it has the same answer; that is the task itself, and not retrieval.

Source: Jarvelin and Kekalainen, TOIS 2002 (discounted cumulative gain; the log2(1 + rank) form).
"""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from tunesmith.retrieval.chunk import document_of
from tunesmith.retrieval.corpus import Corpus
from tunesmith.retrieval.store import Hit
from tunesmith.rundir.records.evidence import RetrievalRecall
from tunesmith.rundir.rows import Row

RECALL_AT = 5

_WORD = re.compile(r"\w+")


def recall(hits: Sequence[Sequence[Hit]], wanted: Sequence[Collection[str]], k: int) -> float:
    """Mean over questions of the share of their wanted documents (or passages) found among the first ``k`` passages.

    Args:
        hits: of each question.
        wanted: ids for each question, at least one; a document's id stands for all of its passages.
    """
    shares = [len(_ids(first[:k], want)) / len(want) for first, want in zip(hits, wanted, strict=True)]
    return sum(shares) / len(shares)


def ndcg(hits: Sequence[Sequence[Hit]], wanted: Sequence[Collection[str]], k: int) -> float:
    """Mean normalised discounted cumulative gain of the first ``k`` passages; a document counts once, at its best rank."""
    total = 0.0
    for first, want in zip(hits, wanted, strict=True):
        ranks = _ids(first[:k], want).values()
        ideal = sum(1.0 / math.log2(1 + rank) for rank in range(1, min(len(want), k) + 1))
        total += sum(1.0 / math.log2(1 + rank) for rank in ranks) / ideal
    return total / len(hits)


def answer_recall(hits: Sequence[Sequence[Hit]], references: Sequence[str], k: int) -> float:
    """Share of rows whose reference stands in one of the first ``k`` passages, as whole words, case and punctuation aside."""
    stands = [any(_stands(text, hit.text) for hit in first[:k]) for first, text in zip(hits, references, strict=True)]
    return sum(stands) / len(stands)


def recall_of(hits: Sequence[Sequence[Hit]], rows: Sequence[Row], corpus: Corpus) -> RetrievalRecall:
    """What is reported of a retrieval arm before its answers.

    Args:
        hits: at least ``RECALL_AT`` passages a row where the store has them.
        rows: the rows that asked.
    """
    documents = corpus.documents if corpus.kind == "documents" else set[str]()
    named = [(first, {row.group}) for first, row in zip(hits, rows, strict=True) if row.group in documents]
    result = RetrievalRecall(
        searched=corpus.kind,
        passages=len(corpus.ids),
        k=RECALL_AT,
        n=len(rows),
        answer_recall=answer_recall(hits, [row.reference for row in rows], RECALL_AT),
        relevant="the reference stands in the passage",
    )
    if not named:
        return result
    of_named, wanted = [first for first, _ in named], [want for _, want in named]
    return replace(
        result,
        relevant="the document that data.group_by names",
        named=len(named),
        recall=recall(of_named, wanted, RECALL_AT),
        ndcg=ndcg(of_named, wanted, RECALL_AT),
    )


def recall_line(recall: RetrievalRecall) -> str:
    """The figures in one line."""
    k, named = recall.k, ""
    if recall.recall is not None:
        named = f"recall@{k} {recall.recall:.2f}, nDCG@{k} {recall.ndcg:.2f} ({recall.named} rows name a document), "
    return (
        f"retrieval: {named}answer recall@{k} {recall.answer_recall:.2f} on {recall.n} rows, "
        f"{recall.passages:,} passages of {recall.searched}"
    )


def _ids(hits: Sequence[Hit], want: Collection[str]) -> dict[str, int]:
    """Wanted ids among the hits, each with its rank (from 1) among documents and passages met so far."""
    ranks: dict[str, int] = {}
    for rank, hit in enumerate(hits, start=1):
        name = hit.id if hit.id in want else document_of(hit.id)
        if name in want:
            ranks.setdefault(name, rank)
    return ranks


def _stands(reference: str, text: str) -> bool:
    """Whether the words of a reference stand in a text one after another; a reference without words, its characters."""
    words = _WORD.findall(reference.casefold())
    if not words:
        return reference.strip() in text
    return f" {' '.join(words)} " in f" {' '.join(_WORD.findall(text.casefold()))} "
