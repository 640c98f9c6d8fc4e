"""What every tracker can do, and how its library is imported: when it is asked for, and by name where it is not installed.

The libraries are in no environment of the program's own, so they are modules of any type here; what is used of each is a
handful of calls, and tests run them against the library itself.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tunesmith.errors import MissingPackage
from tunesmith.tracking.trackers.facts import Facts
from tunesmith.tracking.trackers.steps import Point

ErrorTypes = tuple[type[Exception], ...]


class Tracker(Protocol):
    """One run in one store, open for writing.

    Attributes:
        place: where it is, for people.
        look: a command or an address that shows it.
        errors: what the library raises where the store fails.
        forgets: whether steps can be taken back.
    """

    place: str
    look: str
    errors: ErrorTypes
    forgets: bool

    def held(self) -> Mapping[int, float] | None:
        """The loss of every step that the store has; None where it cannot be asked."""
        ...

    def log(self, points: Sequence[Point]) -> None:
        """Add steps, in order; they are in the store, or on a safe way to it, when this returns."""
        ...

    def forget_from(self, step: int) -> None:
        """Take this step and all after it back; called where ``forgets``."""
        ...

    def summarise(self, facts: Facts, page: Path | None) -> None:
        """Write what is known of the whole run, in the place of what stood there.

        Args:
            page: ``report.html``, to be kept as a file; None for none.
        """
        ...

    def close(self, facts: Facts) -> None:
        """Leave the store in order."""
        ...


def library(name: str, extra: str) -> Any:
    """The module of a tracker's library.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = error.name or name
        raise MissingPackage(
            f"{extra} needs the package {package}, which is not installed", f"run: pip install 'tunesmith[{extra}]'"
        ) from error
