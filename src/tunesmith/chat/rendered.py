"""A conversation as token ids: one document, or one for each supervised turn (``chat/as_asked.py``)."""

from dataclasses import dataclass

EACH_ALONE = "every supervised turn is a document of its own, as it is asked: the chat template rewrites earlier turns"


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation.

    Attributes:
        ids: token ids, of the document of the last supervised turn.
        supervised: 1 for a supervised token, 0 for context, as long as ``ids``.
        notes: what the template left out or took as plain text, for people: ``chat template leaves out name``, ...
        earlier: the documents of earlier supervised turns, where each has its own.
    """

    ids: list[int]
    supervised: list[int]
    notes: tuple[str, ...] = ()
    earlier: tuple["Rendered", ...] = ()

    @property
    def documents(self) -> tuple["Rendered", ...]:
        """All documents, in the order of their turns."""
        return (*self.earlier, self)

    @property
    def longest(self) -> int:
        """Tokens of the longest document, which is what has to fit."""
        return max(len(document.ids) for document in self.documents)

    @property
    def tokens(self) -> int:
        """Tokens of all documents, what they begin with alike counted once (``train/prefix.py``)."""
        contexts = [document.ids[: max(0, document.supervised.index(1) - 1)] for document in self.earlier]
        return len(self.ids) + sum(
            len(document.ids) - _common(context, self.ids) for document, context in zip(self.earlier, contexts, strict=True)
        )

    @property
    def supervised_tokens(self) -> int:
        """Supervised tokens of all documents."""
        return sum(sum(document.supervised) for document in self.documents)

    @classmethod
    def of(cls, documents: "list[Rendered]") -> "Rendered":
        """A conversation of these documents."""
        *earlier, last = documents
        if not earlier:
            return last
        notes = dict.fromkeys(note for document in documents for note in document.notes)
        return cls(last.ids, last.supervised, (EACH_ALONE, *notes), tuple(earlier))

    @property
    def last_answer(self) -> int:
        """Tokens of the last supervised turn, its end of turn included."""
        end = len(self.supervised) - self.supervised[::-1].index(1)
        before = self.supervised[:end][::-1]
        return before.index(0) if 0 in before else end


def _common(first: list[int], second: list[int]) -> int:
    """Length of the common beginning."""
    return next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
