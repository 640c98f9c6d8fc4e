"""What was sent to a tracker: ``tracked/<tracker>.json``, and what ``tunesmith track`` answers."""

from dataclasses import dataclass

from tunesmith.recipe.run import TrackerName
from tunesmith.rundir.records.base import FileRecord


@dataclass(frozen=True, kw_only=True)
class Sent(FileRecord):
    """``tracked/<tracker>.json``: what was sent of a training.

    Attributes:
        id: of the training, by which the tracker knows it; trained anew from other keys or rows it has another.
        step: the last one that was sent.
        summary: fingerprint of what was said of the whole run; empty where nothing was yet.
        page: sha256 of the report that was sent; empty for none.
        place: where it went, for people.
        look: a command or an address that shows it.
    """

    id: str
    step: int = 0
    summary: str = ""
    page: str = ""
    place: str = ""
    look: str = ""


@dataclass(frozen=True, kw_only=True)
class Tracked(FileRecord):
    """What ``tunesmith track`` did.

    Attributes:
        run: the directory.
        to: the tracker.
        id: by which the tracker knows the training.
        place: where it went, for people.
        look: a command or an address that shows it.
        steps: that were sent now.
        earlier: steps that were there.
        verdict: that was sent; None where there is none, or it is not of what is there now.
    """

    run: str
    to: TrackerName
    id: str
    place: str
    look: str
    steps: int
    earlier: int
    verdict: str | None
