"""What ``tunesmith verify`` says: whether the files that a verdict speaks of are still those it spoke of."""

from dataclasses import dataclass

from tunesmith.notebook import paragraph, table
from tunesmith.rundir.records.base import FileRecord


@dataclass(frozen=True, kw_only=True)
class Verification(FileRecord):
    """The files of a run against its verdict.

    Attributes:
        run: the directory.
        decision: the verdict's.
        verdict_sha256: of ``evaluation/verdict.json``, which names all others; kept elsewhere, this one hash proves them all.
        same: files that are what the verdict names.
        bytes: of those.
        differs: files whose content is another, sources included.
        gone: files of the run that are not there.
        unnamed: files beside them of which the verdict does not speak.
        elsewhere: sources (rows, the base) that are not on this machine.
    """

    run: str
    decision: str
    verdict_sha256: str
    same: int
    bytes: int
    differs: tuple[str, ...]
    gone: tuple[str, ...]
    unnamed: tuple[str, ...]
    elsewhere: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every file of the run is there and the same, and no source is known to be another."""
        return not self.differs and not self.gone

    def _repr_html_(self) -> str:
        """The files that are not what the verdict names, each with what it is instead."""
        kinds = (
            ("differs", self.differs),
            ("gone", self.gone),
            ("not named", self.unnamed),
            ("not on this machine", self.elsewhere),
        )
        rows = [(name, kind) for kind, names in kinds for name in names]
        heading = f"{self.same} files are what the verdict names"
        return paragraph(heading, self.decision) + (table(("file", "state"), rows) if rows else "")
