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
from typing import Any

from tunesmith.retrieval.chunk import document_of
from tunesmith.retrieval.corpus import Corpus
from tunesmith.retrieval.store import Hit, Store

RECALL_AT = 5

_WORD = re.compile(r"\w+")


def recall_at_k(store: Store, questions: Sequence[str], wanted: Sequence[Collection[str]], k: int) -> float:
    """Mean over questions of the share of their wanted documents (or passages) found among the first ``k`` passages.

    Args:
        wanted: ids for each question, at least one; a document's id stands for all of its passages.
    """
    return recall([store.search(question, k) for question in questions], wanted, k)


def recall(found: Sequence[Sequence[Hit]], wanted: Sequence[Collection[str]], k: int) -> float:
    """``recall_at_k`` of what was found."""
    shares = [len(_ids(hits[:k], want)) / len(want) for hits, want in zip(found, wanted, strict=True)]
    return sum(shares) / len(shares)


def ndcg(found: Sequence[Sequence[Hit]], wanted: Sequence[Collection[str]], k: int) -> float:
    """Mean normalised discounted cumulative gain of the first ``k`` passages; a document counts once, at its best rank."""
    total = 0.0
    for hits, want in zip(found, wanted, strict=True):
        ranks = _ids(hits[:k], want).values()
        ideal = sum(1.0 / math.log2(1 + rank) for rank in range(1, min(len(want), k) + 1))
        total += sum(1.0 / math.log2(1 + rank) for rank in ranks) / ideal
    return total / len(found)


def answer_recall(found: Sequence[Sequence[Hit]], references: Sequence[str], k: int) -> float:
    """Share of rows whose reference stands in one of the first ``k`` passages, as whole words, case and punctuation aside."""
    stands = [any(_stands(reference, hit.text) for hit in hits[:k]) for hits, reference in zip(found, references, strict=True)]
    return sum(stands) / len(stands)


def figures(found: Sequence[Sequence[Hit]], rows: Sequence[dict[str, Any]], corpus: Corpus) -> dict[str, Any]:
    """What is reported of a retrieval arm before its answers.

    Args:
        found: at least ``RECALL_AT`` passages a row where the store has them.
        rows: the rows that asked.

    Returns:
        ``searched`` (documents or train rows), ``passages``, ``k``, ``n`` rows, ``answer_recall``, ``relevant`` (how a right
        passage is known), and where rows name documents ``named`` (rows that do), ``recall`` and ``ndcg`` over those.
    """
    documents = corpus.documents if corpus.kind == "documents" else set()
    named = [(hits, {row["group"]}) for hits, row in zip(found, rows, strict=True) if row.get("group") in documents]
    result: dict[str, Any] = {
        "searched": corpus.kind,
        "passages": len(corpus.ids),
        "k": RECALL_AT,
        "n": len(rows),
        "answer_recall": answer_recall(found, [row["messages"][-1]["content"] for row in rows], RECALL_AT),
        "relevant": "the reference stands in the passage",
    }
    if named:
        hits, wanted = [hits for hits, _ in named], [want for _, want in named]
        result |= {"relevant": "the document that data.group_by names", "named": len(named)}
        result |= {"recall": recall(hits, wanted, RECALL_AT), "ndcg": ndcg(hits, wanted, RECALL_AT)}
    return result


def told(figures: dict[str, Any]) -> str:
    """The figures in one line."""
    k, named = figures["k"], ""
    if "recall" in figures:
        named = (
            f"recall@{k} {figures['recall']:.2f}, nDCG@{k} {figures['ndcg']:.2f} ({figures['named']} rows name a document), "
        )
    return (
        f"retrieval: {named}answer recall@{k} {figures['answer_recall']:.2f} on {figures['n']} rows, "
        f"{figures['passages']:,} passages of {figures['searched']}"
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
