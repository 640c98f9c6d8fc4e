"""All models of a server, each with the engine that answers for it; engines start beside the old ones and take over.

A base and all adapters on it are one process. llama.cpp takes its adapters when it starts, so another adapter, or another
version of one, needs another process: it is started and asked for its tokens while the old one answers, then the names lead to
it in one step, and the old one ends with its last answer. Where it does not start, everything stays as it was. The weights are
mapped, so two processes share their pages for the moment. An adapter that is taken away only loses its name; its process drops
it the next time that it is exchanged.

A model with everything in one file has a process for itself.

Changes wait for each other; requests wait for none. Refused: exchanging files below a running process, and llama.cpp's global
scales, which apply to requests of every client.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunesmith.errors import RunError, TunesmithError
from tunesmith.serve.asking import Ask, End, EngineGone, Piece, Served
from tunesmith.serve.entry import Entry, Find
from tunesmith.serve.leases import Leases
from tunesmith.serve.llama_cpp_engine import LlamaCppEngine, Room
from tunesmith.serve.placed import PlacedModels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Generation:
    """An engine and who uses it."""

    engine: LlamaCppEngine
    leases: Leases


@dataclass(frozen=True)
class _Placed:
    """A model and what answers for it; ``placed.Placed``."""

    served: Served
    generation: _Generation
    adapter: int | None

    @property
    def leases(self) -> Leases:
        return self.generation.leases

    def answer(self, ask: Ask) -> AsyncGenerator[Piece | End, None]:
        return self.generation.engine.answer(self.adapter, ask, self.served.renderer)


class Generations(PlacedModels[_Placed]):
    """``asking.Models`` with llama.cpp; made by ``open``.

    Args:
        find: what of a run can be served.
        slots: answers at a time, of each process.
    """

    def __init__(self, find: Find, slots: int):
        super().__init__()
        self._find, self._slots = find, slots
        self._entries: dict[str, Entry] = {}
        self._bases: dict[str, Served] = {}  # by group
        self._living: list[_Generation] = []
        self._changing = asyncio.Lock()

    @classmethod
    async def open(cls, entries: Sequence[Entry], find: Find, slots: int) -> "Generations":
        """Start the engines of some models.

        Args:
            entries: from the catalogue.
            find: for those that are added later.
            slots: answers at a time, of each process.

        Raises:
            RunError: two models of one name.
            ExportError: llama.cpp cannot run a file.
            MissingPackage: the extra is not installed.
        """
        models = cls(find, slots)
        try:
            for entry in entries:
                models._refuse_taken(entry, is_named=False)
                models._entries[entry.served.name] = entry
            for group in dict.fromkeys(_group(entry) for entry in entries):
                await models._exchange(group, models._entries)
        except (TunesmithError, EngineGone):
            await models.close()
            raise
        return models

    async def add(self, run: Path, name: str | None = None, *, force: bool = False) -> Served:
        """See ``asking.Models``. A name that is given takes the place of the adapter that has it.

        Raises:
            TunesmithError: nothing deployable there, or a name that is taken by something else; all stays as it was.
            EngineGone: the new engine died at once; all stays as it was.
        """
        async with self._changing:
            entry = await asyncio.to_thread(self._find, run, name, force)
            self._refuse_taken(entry, is_named=name is not None)
            entries = {**self._entries, entry.served.name: entry}
            await self._exchange(_group(entry), entries)
            self._entries = entries
            served = self._placed[entry.served.name].served
            logger.info(f"serve: {served.name} is served, version {served.version}")
            return served

    async def remove(self, name: str) -> None:
        """See ``asking.Models``.

        Raises:
            KeyError: no adapter of that name.
        """
        async with self._changing:
            del self._entries[name]
            old = self._placed[name].generation
            self._placed = {other: placed for other, placed in self._placed.items() if other != name}
            self._retire_unused([old])
            logger.info(f"serve: {name} is served no longer")

    async def close(self) -> None:
        """See ``asking.Models``."""
        self._placed = {}
        await asyncio.gather(*(generation.leases.end() for generation in self._living))

    def _refuse_taken(self, entry: Entry, is_named: bool) -> None:
        """Refuse a name that something else has.

        Raises:
            RunError: it is another run's, or a base's.
        """
        name, run = entry.served.name, entry.served.run
        other = self._entries.get(name)
        if name in {base.name for base in (*self._bases.values(), entry.base) if base is not None}:
            raise RunError(f"{run}: {name} is the name of the base", "give it another: NAME=RUN")
        if other is not None and not is_named and other.served.run != run:
            raise RunError(f"{name}: is the name of {other.served.run} and of {run}", "give one another: NAME=RUN")

    async def _exchange(self, group: str, entries: dict[str, Entry]) -> None:
        """Start the engine of a group as some entries have it, let the names lead to it, and retire the old one.

        Raises:
            ExportError: it does not start; nothing has changed.
            MissingPackage: the extra is not installed.
            EngineGone: it died at once; nothing has changed.
        """
        members = [entry for entry in entries.values() if _group(entry) == group]
        first = members[0]
        adapters = [entry.adapter for entry in members if entry.adapter is not None]
        room = Room(slots=self._slots, context=max(entry.served.context for entry in members))
        generation = self._living_with(await LlamaCppEngine.start(first.model, adapters, room, first.served.renderer))
        context = generation.engine.context
        placed: dict[str, _Placed] = {}
        if first.base is not None:
            base = self._bases.get(group) or self._as_named(first.base)
            self._bases[group] = replace(base, context=context)
            placed[base.name] = _Placed(self._bases[group], generation, None)
        for place, entry in enumerate(members):
            served = replace(entry.served, context=context)
            placed[served.name] = _Placed(served, generation, None if entry.adapter is None else place)
        old = [self._placed[name].generation for name in placed if name in self._placed]
        self._placed = {**self._placed, **placed}
        self._retire_unused(old)

    def _living_with(self, engine: LlamaCppEngine) -> _Generation:
        async def end() -> None:
            await engine.close()
            self._living.remove(generation)

        generation = _Generation(engine, Leases(end))
        self._living.append(generation)
        return generation

    def _as_named(self, base: Served) -> Served:
        """A base with a name that no other model has."""
        taken = {*self._entries, *(other.name for other in self._bases.values())}
        return replace(base, name=f"{base.name}@{base.version[:8]}") if base.name in taken else base

    def _retire_unused(self, generations: Iterable[_Generation]) -> None:
        used = {id(placed.generation) for placed in self._placed.values()}
        for generation in generations:
            if id(generation) not in used:
                generation.leases.retire()


def _group(entry: Entry) -> str:
    """What shares a process."""
    return f"file {entry.served.name}" if entry.adapter is None else f"base {entry.weights}"
