"""The turns of all rows as numbers, and which rows stand whole inside others.

A conversation written as growing prefixes, an agent's trace cut after every step, windows that lost their oldest turns:
such rows say the same turns again and differ in where they begin and end. So a turn is 8 bytes (role, text and calls, up to
case and white space), a row is its turns without those of system and developer, and any run of turns has one number, by
which runs of any two rows are compared: a polynomial over 64 bits, whose sums from the beginning give every run in one
subtraction. What stands around the turns, system turns and tools, is one number a row.

Refused: texts of whole prefixes, whose length grows with the square of the turns. Cost: 9 bytes a turn and 16 a row; three
times that while runs are compared.
"""

import hashlib
import json
from array import array

import numpy as np

from tunesmith.data.normalize import normalized
from tunesmith.messages import Message
from tunesmith.rundir.rows import Row

ASKING, UNTAUGHT, TAUGHT = range(3)  # who speaks in a turn: not the assistant; it, at weight 0; it, supervised
MOST = 16  # ways to go on, or settings, of what still holds rows together
_ODD = np.uint64(0xD6E8FEB86659FD93)
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
_INVERSE = pow(_BASE, -1, 1 << 64)


def few(values: np.ndarray, beside: np.ndarray, most: int = MOST) -> np.ndarray:
    """Whether each value has at most so many different ones beside it; 0 is none. Both are uint64."""
    present = beside != 0
    pairs = values[present] * _ODD + beside[present]
    _, first = np.unique(pairs, return_index=True)
    crowded, counts = np.unique(values[present][first], return_counts=True)
    return ~np.isin(values, crowded[counts > most])


def is_asked(row: Row) -> bool:
    """Whether anybody asks in a row: not in a plain text, nor in an answer after a system turn alone."""
    return any(message["role"] in ("user", "tool") for message in row.messages[:-1])


class Turns:
    """Takes rows one by one. Rows in which nobody asks have no turns here."""

    def __init__(self) -> None:
        self._turns = array("Q")
        self._speakers = bytearray()
        self._lengths = array("L")
        self._settings = array("Q")
        self._sums: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, row: Row) -> None:
        """Take in the next row."""
        length = 0
        around: list[bytes] = [json.dumps(row.tools, sort_keys=True).encode()] if row.tools else []
        for message in row.messages if is_asked(row) else ():
            digest = _turn(message)
            if message["role"] in ("system", "developer"):
                around.append(digest)
                continue
            self._turns.frombytes(digest)
            assistant = message["role"] == "assistant"
            self._speakers.append((TAUGHT if message.get("weight", 1) else UNTAUGHT) if assistant else ASKING)
            length += 1
        self._lengths.append(length)
        self._settings.frombytes(hashlib.blake2b(b"\0".join(around), digest_size=8).digest())
        self._sums = None

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Number of turns of each row, int64."""
        return np.array(self._lengths, np.int64)

    @property
    def starts(self) -> np.ndarray:
        """Where each row's turns begin among all turns, int64."""
        lengths = self.lengths
        return np.cumsum(lengths) - lengths

    @property
    def settings(self) -> np.ndarray:
        """One number a row for what stands around its turns, uint64."""
        return np.array(self._settings, np.uint64)

    @property
    def speakers(self) -> np.ndarray:
        """Who speaks in each turn: ``ASKING``, ``UNTAUGHT`` or ``TAUGHT``, uint8."""
        return np.frombuffer(bytes(self._speakers), np.uint8)

    def runs(self, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        """One number for each run of turns, equal for equal runs.

        Args:
            begin, end: of each run among all turns, the end excluded.
        """
        if self._sums is None:
            turns = np.array(self._turns, np.uint64)
            powers, inverses = _powers(_BASE, len(turns)), _powers(_INVERSE, len(turns) + 1)
            sums = np.zeros(len(turns) + 1, np.uint64)
            np.cumsum(turns * powers, out=sums[1:])
            self._sums = (sums, inverses)
        sums, inverses = self._sums
        return (sums[end] - sums[begin]) * inverses[begin]

    def standing(self, inner: np.ndarray, outer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which rows stand whole, their last answer supervised, inside which others.

        System turns and tools may differ, unless the question stands under more than ``MOST`` of them: then they are what is
        asked about.

        Args:
            inner, outer: bool, one a row: what is looked for, and where.

        Returns:
            For each row the first ``outer`` row in which it stands, -1 where there is none; and for each row whether one of the
            ``inner`` ones stands in it.
        """
        lengths, starts = self.lengths, self.starts
        holder = np.full(len(lengths), -1)
        holds = np.zeros(len(lengths), bool)
        row_of_turn = np.repeat(np.arange(len(lengths)), lengths)
        answers = np.flatnonzero((self.speakers == TAUGHT) & outer[row_of_turn])
        turns_before = answers - starts[row_of_turn[answers]] + 1
        inner = inner & (lengths > 0)
        about = np.zeros(len(lengths), np.uint64)  # the setting, where it is what is asked about
        asked = np.flatnonzero(lengths > 0)
        questions = self.runs(starts[asked], starts[asked] + lengths[asked] - 1)
        varied = asked[~few(questions, self.settings[asked])]
        about[varied] = self.settings[varied] | np.uint64(1)
        for length, in_setting in np.unique(np.stack([lengths[inner], about[inner] > 0], axis=1), axis=0).tolist():
            rows = np.flatnonzero(inner & (lengths == length) & ((about > 0) == in_setting))
            wholes, of_row = np.unique(self.runs(starts[rows], starts[rows] + length) + about[rows], return_inverse=True)
            ends = answers[turns_before >= length] + 1
            outer_rows = row_of_turn[ends - 1]
            found = self.runs(ends - length, ends)
            if in_setting:
                found = found + (self.settings[outer_rows] | np.uint64(1))
            place = np.minimum(np.searchsorted(wholes, found), len(wholes) - 1)
            equal = wholes[place] == found
            holds[outer_rows[equal]] = True
            first = np.full(len(wholes), len(lengths))
            np.minimum.at(first, place[equal], outer_rows[equal])
            holder[rows] = np.where(first[of_row] < len(lengths), first[of_row], -1)
        return holder, holds


def _turn(message: Message) -> bytes:
    hashed = hashlib.blake2b(message["role"].encode() + b"\1" + normalized(message["content"]), digest_size=8)
    if "tool_calls" in message:
        hashed.update(b"\2" + json.dumps(message["tool_calls"], sort_keys=True).encode())
    return hashed.digest()


def _powers(base: int, count: int) -> np.ndarray:
    """1, base, base squared and so on modulo 2**64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)
