"""What ``tunesmith push`` sends to the hub, and what came of it."""

from dataclasses import dataclass
from typing import Literal

from tunesmith.rundir.records.base import FileRecord, Record

PushForm = Literal["adapter", "merged", "gguf"]


@dataclass(frozen=True, kw_only=True)
class PushFile(Record):
    """One file of the repository.

    Attributes:
        name: in the repository.
        source: path below the run directory; None for what is written for the hub alone.
        bytes: of it.
        sha256: of it, as it is sent.
        text: the content of what is not sent as it lies on the disk; None for the others.
    """

    name: str
    source: str | None
    bytes: int
    sha256: str
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Push(FileRecord):
    """Files of a run for a repository of the hub.

    Attributes:
        run: the directory.
        to: owner and name of the repository.
        form: what is published.
        private: whether the repository is to be seen by its owner alone.
        decision: the verdict's.
        files: the card (``README.md``) first.
        notes: what a person should know before it is sent, a sentence each.
        url: of the commit; None where nothing was sent.
    """

    run: str
    to: str
    form: PushForm
    private: bool
    decision: str
    files: tuple[PushFile, ...]
    notes: tuple[str, ...]
    url: str | None = None

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def card(self) -> str:
        """The text of the card."""
        return self.files[0].text or ""
