"""Booking what answers the sealed test part, and counting it for the verdict (``rundir/ledger.py`` says what is counted).

**What a tuned candidate is**: an adapter on a test part. Its forms (``tuned``, ``tuned_retrieval``, ``deployed``) are one
candidate: parity holds them to the same answers, and one of them is decided on. The same adapter once more on the same rows is
no new one; on a test part of another seed it is, for that is another chance to pass. The adapters of ``evaluate.seeds`` are
candidates, booked behind the run's own, which they cost nothing; whoever deploys one of them in a later run finds it counted.
The learning curve reads dev, and is none.

The user's folder may be read-only, deleted or on another machine. Then the run goes on, says so, and counts what it knows
itself; readings that the folder lacks are put back.
"""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from tunesmith import hardware
from tunesmith.models.adapter import WEIGHTS
from tunesmith.rundir import RunDir
from tunesmith.rundir.hashes import content_hash
from tunesmith.rundir.ledger import Found, Ledger, part_of
from tunesmith.rundir.records.readings import Kind, TestPart, TestReading, Tries
from tunesmith.rundir.rows import Row

logger = logging.getLogger(__name__)


def adapter_key(run: RunDir) -> str:
    """The tuned candidate of a run that trained it."""
    return content_hash(run.adapter / WEIGHTS)[:16]


def book(run: RunDir, rows: Sequence[Row], arm: str, kind: Kind, candidate: str) -> None:
    """Write down, before the first question, that a candidate answers the test part.

    In the user's folder first: killed between the two, the run knows of less than the folder, which is no sign of a deletion.
    """
    part = part_of(rows)
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    reading = TestReading(part=part.key, kind=kind, candidate=candidate[:16], arm=arm, run=str(run.path.resolve()), at=now)
    if trouble := _book_for_user(part, reading):
        logger.warning(f"warning: {trouble}; later runs will not count this reading of the test part")
    Ledger(run.readings).book(part, reading)


def is_booked(run: RunDir, rows: Sequence[Row], arm: str, candidate: str) -> bool:
    """Whether a run's own ledger knows that a candidate was asked as an arm."""
    part = part_of(rows)
    readings = Ledger(run.readings).find(part).readings
    return any((r.part, r.arm, r.candidate) == (part.key, arm, candidate[:16]) for r in readings)


def tries_of(run: RunDir, rows: Sequence[Row], keys: Sequence[str]) -> Tries:
    """What was scored on the test rows until now, in this run and in all others of this user.

    Several candidates at once share what the first of them may spend where this run was the first to ask each. Where another
    run asked one before, that one's part is spent, and they share what the latest of them may spend.

    Args:
        keys: of the run's tuned candidates.
    """
    part, candidates = part_of(rows), [key[:16] for key in keys]
    own, shared = Ledger(run.readings).find(part), _found_by_user(part)
    for candidate in candidates:
        if not any((r.kind, r.candidate, r.part) == ("tuned", candidate, part.key) for r in own.readings):
            book(run, rows, "tuned", "tuned", candidate)
            own = Ledger(run.readings).find(part)
    lacking = [f"{place} cannot be read" for place in own.unreadable]
    if isinstance(shared, str):
        lacking.append(shared)
        shared = Found([], [])
    else:
        lacking += [f"{place} cannot be read" for place in shared.unreadable]
        lacking += _put_back(part, own.readings, shared.readings)
    readings = sorted([*own.readings, *shared.readings], key=lambda reading: reading.at)
    first: dict[tuple[str, str], str] = {}  # who asked a candidate first
    for reading in readings:
        if reading.kind == "tuned":
            first.setdefault((reading.candidate, reading.part), reading.run)
    tuned = list(first)
    ours = [(candidate, part.key) for candidate in dict.fromkeys(candidates)]
    places = sorted(tuned.index(one) + 1 for one in ours)
    alone = {first[one] for one in ours} == {str(run.path.resolve())}
    return Tries(
        place=places[0] if alone else places[-1],
        at_once=len(ours),
        tuned=len(tuned),
        prompts=len({r.candidate for r in readings if r.kind == "prompt"}),
        runs=len({r.run for r in readings}),
        lacking="; ".join(lacking) or None,
    )


def _put_back(part: TestPart, own: list[TestReading], shared: list[TestReading]) -> list[str]:
    """Put what the run knows of this part, and the user's ledger does not, into it; the words that say so."""
    missing = [reading for reading in own if reading.part == part.key and reading not in shared]
    if not missing:
        return []
    where = hardware.data_dir() / "readings"
    if trouble := _book_for_user(part, *missing):
        return [trouble]
    return [f"{where} did not know {len(missing)} readings of this run: it was deleted, or the run comes from elsewhere"]


def _book_for_user(part: TestPart, *readings: TestReading) -> str | None:
    """Book in the user's ledger; the words that say why not."""
    where = hardware.data_dir() / "readings"
    try:
        Ledger(where).book(part, *readings)
    except OSError as error:
        return f"{where}: cannot be written: {error.strerror}"
    return None


def _found_by_user(part: TestPart) -> Found | str:
    """What the user's ledger knows; the words that say why nothing."""
    where = hardware.data_dir() / "readings"
    try:
        return Ledger(where).find(part)
    except OSError as error:
        return f"{where}: cannot be read: {error.strerror}"
