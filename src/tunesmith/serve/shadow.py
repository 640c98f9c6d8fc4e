"""What base and tuned would both say: a log of real questions with the answers of both.

It is off unless a file is named, because it is the one place where texts of users are kept. The file is readable by its owner
alone, and lines older than the days that were named are dropped, when the server starts and once a day.

The other model is asked when the first has answered, and only while nobody waits for a slot: a shadow costs the users nothing.
Where more comes than can be asked so, the rest is left out, and counted. An adapter's other is its base; a base's is its only
adapter, and none where there are several.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TextIO

from pydantic import JsonValue

from tunesmith.errors import RunError
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.asking import EngineGone, Models, Served
from tunesmith.serve.background import at_work
from tunesmith.serve.fields import Fields
from tunesmith.serve.limits import House
from tunesmith.serve.request import Wanted, chat_request
from tunesmith.serve.telemetry import Visit

logger = logging.getLogger(__name__)
WAITING = 64  # questions whose other answer is to be asked
QUIET = 0.2  # seconds between two looks whether nobody waits
_DAY = 86_400.0


@dataclass(frozen=True)
class _Question:
    """One request that was answered."""

    body: Fields
    wanted: Wanted
    served: Served
    visit: Visit


class Shadow:
    """The log.

    Args:
        file: where it lies; made when it is not there.
        days: how long a line is kept.

    Raises:
        RunError: the file holds something else.
    """

    def __init__(self, file: Path, days: int):
        self.file, self.days = file, days
        self.left_out = 0
        self._questions: asyncio.Queue[_Question] = asyncio.Queue(WAITING)
        self._drop_old()

    def answered(self, body: Fields, wanted: Wanted, served: Served, visit: Visit) -> None:
        """A chat was answered; the other model is asked later."""
        try:
            self._questions.put_nowait(_Question(body, wanted, served, visit))
        except asyncio.QueueFull:
            self.left_out += 1
            if self.left_out == 1:
                logger.warning(f"shadow: more is asked than the other model can answer beside it; {self.file} has a part of it")

    @asynccontextmanager
    async def at_work(self, models: Models, house: House) -> AsyncIterator[None]:
        """Ask and write until the block ends."""
        async with at_work(f"the shadow log {self.file}", self._work(models, house)):
            try:
                yield
            finally:
                if self.left_out:
                    logger.warning(f"shadow: {self.left_out} questions were left out")

    async def _work(self, models: Models, house: House) -> None:
        began = asyncio.get_running_loop().time()
        while True:
            question = await self._questions.get()
            if asyncio.get_running_loop().time() - began > _DAY:
                began += _DAY
                self._drop_old()
            name = _other(models, question.served)
            if name is None:
                continue
            while house.waiting:
                await asyncio.sleep(QUIET)
            try:
                said = await _ask(models, house, name, question.body)
            except (ApiError, EngineGone, KeyError) as error:
                logger.warning(f"shadow: {name} did not answer: {error}")
                continue
            self._write(question, name, said)

    def _write(self, question: _Question, name: str, said: JsonValue) -> None:
        own = _message(question.wanted)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": question.visit.id,
            "asked": question.served.name,
            "messages": question.body.take("messages"),
            "answers": {question.served.name: own, name: said},
            "same": own == said,
        }
        with _opened(self.file) as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _drop_old(self) -> None:
        """Drop what is too old, and make the file nobody else's.

        Raises:
            RunError: it holds something else.
        """
        first = (datetime.now(UTC) - timedelta(days=self.days)).isoformat(timespec="seconds")
        with _opened(self.file):
            pass
        kept: list[str] = []
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            if not line.startswith('{"time": "'):
                raise RunError(f"{self.file}, line {number}: not a line of a shadow log", "name another file for --shadow")
            if line[10 : 10 + len(first)] >= first:
                kept.append(line)
        if len(kept) < len(lines):
            temporary = self.file.with_name(f".{self.file.name}.tmp")
            temporary.unlink(missing_ok=True)
            with _opened(temporary) as file:
                file.writelines(kept)
            temporary.replace(self.file)


def _opened(file: Path) -> TextIO:
    """To be written at its end, by its owner alone."""
    number = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    os.fchmod(number, 0o600)
    return os.fdopen(number, "w", encoding="utf-8", newline="\n")


def without_other(models: Models) -> list[str]:
    """Models of which nothing is written, since there is no other to ask."""
    return [served.name for served in models.served() if _other(models, served) is None]


def _other(models: Models, served: Served) -> str | None:
    """The model that the same is asked of."""
    if served.parent is not None:
        return served.parent
    adapters = [other.name for other in models.served() if other.parent == served.name]
    return adapters[0] if len(adapters) == 1 else None


async def _ask(models: Models, house: House, name: str, body: Fields) -> JsonValue:
    """What a model says to a request, its first answer."""
    async with models.borrow(name) as borrowed:
        wanted = chat_request(body, borrowed.served, house.limits.choices)
        async with house.slot(), asyncio.timeout(house.limits.whole_s), aclosing(borrowed.answer(wanted.asks[0])) as pieces:
            async for piece in pieces:
                for _ in wanted.reply.take(0, piece):
                    continue
        return _message(wanted)


def _message(wanted: Wanted) -> JsonValue:
    """The first answer, without what it did not say."""
    choices = wanted.reply.whole()["choices"]
    assert isinstance(choices, list) and isinstance(choices[0], dict) and isinstance(choices[0]["message"], dict)
    return {name: value for name, value in choices[0]["message"].items() if value is not None}
