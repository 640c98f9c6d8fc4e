"""How processes that were launched together find each other: the first one calls, and the others answer.

They meet at a store of PyTorch, which the first of them keeps, or the launcher. A launcher's outlives its processes: torchrun
keeps one over all restarts of a run, with the words of those that have died. Its count of restarts does not tell them apart,
since each machine counts its own: one that was well and only joins anew does not count ("membership changes do not count as
retries", torch/distributed/elastic/agent/server/api.py). So the first process calls by a word that it draws anew; the others
answer under that word, and again where it changes; when all have answered, the first one writes down who they are. An old call
is known by its list, on which nobody finds itself. All that follows lies below that word.

Refused: the count of restarts as a prefix (after a fault on one machine nobody met again); deleting what lies there (whoever is
late would delete what is new).
"""

import json
import os
import socket
import time
import uuid
from datetime import timedelta
from typing import NamedTuple

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from tunesmith import hardware
from tunesmith.errors import RunError
from tunesmith.launch.variables import Launch

JOIN = timedelta(seconds=60)
GRACE = 1.0  # seconds that whoever keeps the store leaves the others to read it
PAUSE = 0.05  # seconds between two looks
CALL, ALL = "call", "all"
NEVER = "is it started on every machine, with the same MASTER_ADDR and MASTER_PORT, and can they reach each other?"

_kept: list[Store] = []  # until the process ends: the others may come to the next meeting before this one has left the last


class Meeting(NamedTuple):
    """Processes that have found each other.

    Attributes:
        store: of this meeting alone.
        names: of the processes, for people, by rank.
        is_kept_here: whether the store ends with this process.
    """

    store: Store
    names: dict[int, str]
    is_kept_here: bool


class _Person(NamedTuple):
    """A process as it answers: by a word of its own, and its name for people."""

    word: str
    name: str


def meet(launched: Launch, join: timedelta, is_first: bool) -> Meeting:
    """Wait until all processes have come.

    Args:
        launched: as which this one was launched.
        join: how long all of them have to come.
        is_first: whether nobody has made a process group before, and so the store is to be kept by rank 0 or the launcher.

    Raises:
        RunError: not all came, with the ranks that are missing; or nobody keeps the store.
    """
    stated = hardware.launch_variables()
    host, port = stated["MASTER_ADDR"], int(stated["MASTER_PORT"])
    is_kept_here = launched.rank == 0 and is_first and stated.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        whole = TCPStore(host, port, launched.size, is_kept_here, timeout=join, wait_for_workers=False, multi_tenant=True)
    except (RuntimeError, ValueError) as error:
        kept = "the port cannot be had" if is_kept_here else "nobody answers"
        raise RunError(f"{launched}: {kept} at {host}:{port} ({error!s:.200})", NEVER) from error
    if is_kept_here:
        _kept.append(whole)
    store, own = PrefixStore("tunesmith", whole), _Person(uuid.uuid4().hex, f"{socket.gethostname()}, process {os.getpid()}")
    end = time.monotonic() + join.total_seconds() + (GRACE if is_kept_here else 0)  # the others are to say it too
    try:
        if launched.rank == 0:
            store.set(CALL, own.word)
        while (found := (_called if launched.rank == 0 else _answered)(store, launched, own)) is None:
            if time.monotonic() > end:
                missing = _missing(store, launched)
                ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
                raise RunError(f"{launched}: {ranks} never came, in {join.total_seconds():.0f} seconds", NEVER)
            time.sleep(PAUSE)
    except RuntimeError as error:
        raise RunError(f"{launched}: {host}:{port} is gone while the others were waited for", NEVER) from error
    word, people = found
    return Meeting(PrefixStore(word, store), {rank: person.name for rank, person in enumerate(people)}, is_kept_here)


def _called(store: Store, launched: Launch, own: _Person) -> tuple[str, list[_Person]] | None:
    """The word of the first process, and all that have answered it; None as long as somebody has not."""
    keys = [f"{own.word}/{rank}" for rank in range(1, launched.size)]
    if not store.check(keys):
        return None
    people = [own, *(_Person(*json.loads(store.get(key))) for key in keys)]
    store.set(f"{own.word}/{ALL}", json.dumps(people))
    return own.word, people


def _answered(store: Store, launched: Launch, own: _Person) -> tuple[str, list[_Person]] | None:
    """The same for another process, which answers; None as long as it is not on the list."""
    if not store.check([CALL]):
        return None
    word = store.get(CALL).decode()
    store.set(f"{word}/{launched.rank}", json.dumps(own))
    if not store.check([f"{word}/{ALL}"]):
        return None
    people = [_Person(*each) for each in json.loads(store.get(f"{word}/{ALL}"))]
    return (word, people) if own in people else None


def _missing(store: Store, launched: Launch) -> list[int]:
    """Ranks of those that have not come; the first where there is no call but an old one."""
    if not store.check([CALL]):
        return [0]
    word = store.get(CALL).decode()
    return [rank for rank in range(1, launched.size) if not store.check([f"{word}/{rank}"])] or [0]
