"""The same three methods over a Qdrant server, for those who outgrow one file.

Vectors alone: Qdrant's word search needs a second encoder. The search is exact (``exact=True`` scans, as the SQLite store
does), so that a verdict does not hang on the settings of an index.

A collection is named by the fingerprint of its passages and embedder, and its points by their order: the same passages are
uploaded once, and a collection that holds another number of points (an upload broke off) is made anew. No other collection
is touched.

``:memory:`` in the place of a URL is the client's local mode: brute force in this process, the oracle of the tests.

Refused: gRPC (``prefer_grpc``) and a key in the recipe. A server that asks for a key is reached through ``api_key``, which
the caller reads by name.

Shape suffixes: N rows (passages), D hidden size (of the embedding model).
"""

from collections.abc import Sequence
from typing import Any

from tunesmith.errors import DataError, MissingPackage, RunError
from tunesmith.retrieval.store import DIGITS, Embed, Hit
from tunesmith.rundir import fingerprint

BATCH = 256  # points of one upload
MEMORY = ":memory:"


class QdrantStore:
    """Passages in one collection of a Qdrant server.

    Args:
        url: ``http://host:6333``, or ``:memory:``.
        collection: its name; made with the first passages when it is not there.
        embed: makes the vectors.
        api_key: sent with every request; None for a server without.

    Raises:
        MissingPackage: qdrant-client is not installed.
        RunError: the server does not answer.
    """

    def __init__(self, url: str, collection: str, embed: Embed, api_key: str | None = None):
        try:
            from qdrant_client import QdrantClient
        except ImportError as error:
            raise MissingPackage(
                "evaluate.retrieval.qdrant needs the package qdrant-client, which is not installed",
                "pip install 'tunesmith[qdrant]', or leave evaluate.retrieval.qdrant out: one SQLite file will do",
            ) from error
        self._url, self._collection, self._embed = url, collection, embed
        place: dict[str, Any] = {"location": MEMORY} if url == MEMORY else {"url": url, "check_compatibility": False}
        self._client = QdrantClient(**place, api_key=api_key)
        self._count = self._asked(self._counted)

    def __len__(self) -> int:
        """Passages in the collection."""
        return self._count

    def add(self, texts: Sequence[str], ids: Sequence[str]) -> None:
        """Take in passages behind those that are there. A passage sent twice with the same place is one.

        Raises:
            DataError: an id is given twice.
            RunError: the server refused them.
        """
        assert len(texts) == len(ids)
        if len(set(ids)) < len(ids):
            raise DataError("a passage's id is given twice", "give each passage its own id")
        for start in range(0, len(texts), BATCH):
            part = slice(start, start + BATCH)
            self._asked(lambda part=part: self._upload(texts[part], ids[part]))

    def search(self, query: str, k: int) -> list[Hit]:
        """The ``k`` passages nearest to the question (cosine), equal ones in the order of adding.

        Raises:
            RunError: the server does not answer.
        """
        if not self._count:
            return []
        return self._asked(lambda: self._nearest(query, k))

    def close(self) -> None:
        """Close the connection; the collection stays on the server."""
        self._client.close()

    def delete(self) -> None:
        """Take the collection off the server."""
        self._asked(lambda: self._client.delete_collection(self._collection))
        self._count = 0

    def _counted(self) -> int:
        if not self._client.collection_exists(self._collection):
            return 0
        return self._client.count(self._collection, exact=True).count

    def _upload(self, texts: Sequence[str], ids: Sequence[str]) -> None:
        from qdrant_client import models

        vectors_ND = self._embed(texts)
        if not self._client.collection_exists(self._collection):
            size = vectors_ND.shape[1]
            params = models.VectorParams(size=size, distance=models.Distance.COSINE)
            self._client.create_collection(self._collection, vectors_config=params)
        numbers = range(self._count, self._count + len(texts))
        points = [
            models.PointStruct(id=number, vector=vector.tolist(), payload={"id": row_id, "text": text})
            for number, vector, row_id, text in zip(numbers, vectors_ND, ids, texts, strict=True)
        ]
        self._client.upsert(self._collection, points, wait=True)
        self._count += len(texts)

    def _nearest(self, query: str, k: int) -> list[Hit]:
        from qdrant_client import models

        vector = self._embed([query])[0].tolist()
        exact = None if self._url == MEMORY else models.SearchParams(exact=True)  # the local mode knows no other way
        found = self._client.query_points(self._collection, query=vector, limit=k, search_params=exact).points
        ranked = sorted(found, key=lambda point: (-round(point.score, DIGITS), int(point.id)))
        kept = [(point.payload or {}, float(point.score)) for point in ranked]
        return [Hit(payload["id"], payload["text"], score) for payload, score in kept]

    def _asked(self, request: Any) -> Any:
        """What the server answers to one request."""
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        try:
            return request()
        except (ResponseHandlingException, UnexpectedResponse) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"evaluate.retrieval.qdrant: {self._url} does not answer as a Qdrant server: {reason}",
                "is it running (docker run -p 6333:6333 qdrant/qdrant), and is the URL right?",
            ) from error


def build_qdrant(url: str, texts: Sequence[str], ids: Sequence[str], embed: Embed, api_key: str | None = None) -> QdrantStore:
    """The store of these passages on a server: the collection if it holds all of them already, else made anew.

    Raises:
        RunError: the server does not answer.
    """
    name = f"tunesmith-{fingerprint('qdrant 1', list(ids), list(texts), embed.key)[:16]}"
    store = QdrantStore(url, name, embed, api_key)
    if len(store) != len(texts):
        store.delete()
        store.add(texts, ids)
    return store
