"""What the retrieval arms search, and how a row asks for it.

``data.documents`` names the texts. Without it the train rows are searched, each as ``question``, a line break and ``->
answer``: nearest-neighbour prompting, which needs no documents and is often hard to beat on narrow tasks. A row asks with
its last user turn, because that is what a user of the deployed model types; earlier turns would drown it.

No test row may be found. A store of train rows is refused when it holds a test row by id, or one whose question is the
same up to case and white space. Documents are the user's own knowledge and stay as they are (a real assistant would search
them too), but how many test questions stand in them word for word, answer included, is counted and said: on such rows
retrieval only copies.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.errors import RunError
from tunesmith.recipe import Recipe
from tunesmith.retrieval.chunk import document_of, read_passages
from tunesmith.retrieval.embed import load_embedder
from tunesmith.retrieval.qdrant import build_qdrant
from tunesmith.retrieval.store import Hit, Store, build_store
from tunesmith.rundir.rows import Row
from tunesmith.tracking import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """What is searched.

    Attributes:
        kind: where it comes from.
        texts, ids: of the passages; a passage of a document has the id ``<document>#<number>``.
        questions: normalized question of each train row; empty for documents.
    """

    kind: Literal["documents", "train rows"]
    texts: list[str]
    ids: list[str]
    questions: list[str]

    @property
    def documents(self) -> set[str]:
        """Ids of the documents, or of the rows."""
        return {document_of(name) for name in self.ids}


def read_corpus(recipe: Recipe, train: list[Row]) -> Corpus:
    """The passages of ``data.documents``, or the train rows.

    Raises:
        DataError: documents that cannot be read.
        RunError: neither documents nor a train row that asks something.
    """
    if recipe.data.documents is not None:
        passages = read_passages(recipe.data.documents)
        logger.info(f"retrieval: {len(passages):,} passages of {recipe.data.documents}")
        return Corpus("documents", [p.text for p in passages], [p.id for p in passages], [])
    asking = [row for row in train if row.question]
    if not asking:
        raise RunError("nothing to search: no train row asks anything", "name documents in data.documents")
    texts = [f"{row.question}\n-> {row.reference}" for row in asking]
    return Corpus("train rows", texts, [row.id for row in asking], [_normalized(row.question) for row in asking])


def check_sealed(corpus: Corpus, sealed: list[Row]) -> int:
    """Make sure that no test row can be found.

    Returns:
        How many test rows stand in a document with question and answer (0 for train rows).

    Raises:
        RunError: a test row is among the train rows, by id or by its question.
    """
    if corpus.kind == "documents":
        count = _rows_in_documents(corpus, sealed)
        if count:
            logger.warning(
                f"retrieval: {count} of {len(sealed)} test rows stand in data.documents, question and answer word for word"
            )
        return count
    ids, questions = set(corpus.ids), set(corpus.questions)
    for row in sealed:
        if row.id in ids or _normalized(row.question) in questions:
            raise RunError(
                f"test row {row.id} can be found in the store of train rows: the split leaks",
                "run: tunesmith data RUN (the split keeps rows that ask the same together)",
            )
    return 0


def open_store(recipe: Recipe, path: Path, corpus: Corpus) -> Store:
    """The store that the recipe asks for: the file ``path``, or a Qdrant server; built once for the same passages.

    Raises:
        MissingPackage, ModelError: the embedder or the Qdrant client is not there.
        RunError: the server does not answer.
    """
    settings = recipe.evaluate.retrieval
    embedder = None if settings.embedder is None else load_embedder(settings.embedder)
    if settings.qdrant is not None:
        assert embedder is not None  # the recipe sees to it
        store: Store = build_qdrant(settings.qdrant, corpus.texts, corpus.ids, embedder)
    else:
        store = build_store(path, corpus.texts, corpus.ids, embedder)
    if embedder is not None and embedder.cut:
        logger.warning(
            f"retrieval: the embedder read {embedder.cut} of {len(corpus.texts)} passages in part; words see them whole"
        )
    return store


def find(store: Store, rows: Sequence[Row], k: int) -> list[list[Hit]]:
    """The ``k`` best passages for every row."""
    hits: list[list[Hit]] = []
    with progress("searching", len(rows)) as bar:
        for row in rows:
            hits.append(store.search(row.question, k))
            bar.advance(1)
    return hits


def _rows_in_documents(corpus: Corpus, sealed: list[Row]) -> int:
    """Test rows whose question stands in a passage that holds their answer too."""
    passages = [_normalized(text) for text in corpus.texts]
    whole = "\0".join(passages)
    count = 0
    for row in sealed:
        question, answer = _normalized(row.question), _normalized(row.reference)
        if question and question in whole:  # one search of all text; the second look is rare
            count += any(question in passage and answer in passage for passage in passages)
    return count


def _normalized(text: str) -> str:
    """Without what a reader does not see a difference in: case and white space."""
    return "".join(text.casefold().split())
