"""The models that are served, by the names that lead to them.

Engines differ in how a model comes and goes. What can be asked for, and that a model stays until its last answer has ended, is
alike for all of them.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from tunesmith.serve.asking import Borrowed, Served
from tunesmith.serve.leases import Leases


class Placed(Borrowed, Protocol):
    """A model with what answers for it, and who uses that."""

    @property
    def leases(self) -> Leases:
        """Who still answers with it."""
        ...


P = TypeVar("P", bound=Placed)


class PlacedModels(Generic[P]):
    """The part of ``asking.Models`` that needs no engine. Names are exchanged together, so that a request waits for nobody."""

    def __init__(self) -> None:
        self._placed: dict[str, P] = {}  # by the name of a request

    def served(self) -> list[Served]:
        """See ``asking.Models``."""
        return sorted((placed.served for placed in self._placed.values()), key=lambda served: served.run is not None)

    @asynccontextmanager
    async def borrow(self, name: str) -> AsyncGenerator[P, None]:
        """See ``asking.Models``.

        Raises:
            KeyError: no model of that name.
        """
        placed = self._placed[name]
        with placed.leases.held():
            yield placed
