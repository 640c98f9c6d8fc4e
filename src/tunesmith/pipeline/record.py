"""Record what a model elsewhere answers while it still answers: ``tunesmith record``.

A fine-tuned model behind somebody's API ends with the API. Its answers to the rows are evidence that can be kept: the arm
``external:NAME`` with ``recorded: FILE`` is scored on them like any other, after the endpoint is gone.

Each row is asked as it stands: its conversation up to the answer, and its tools. An answer is on the disk before the next is
counted, so a kill loses none; what is there is not asked, or paid for, again. A file holds the answers of one model asked in
one way; another is refused. Rows that the endpoint refuses are named and the others go on, unless three in a row are refused
without an answer between them, which is a wrong key or name and no fault of a row.
"""

import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith.advise.price import by_tokens
from tunesmith.data.read import Reader, ReadOptions
from tunesmith.data.targets import refuse_target
from tunesmith.engines.engine import Answer
from tunesmith.engines.openai_endpoint import OpenAIEndpoint
from tunesmith.engines.recorded import question_of, read_recording
from tunesmith.errors import DataError, RunError, TunesmithError
from tunesmith.rundir import RunDir, fingerprint, read_rows
from tunesmith.rundir.atomic import cut_torn_line
from tunesmith.rundir.records.recording import RecordedAnswer, Recording
from tunesmith.rundir.rows import Row
from tunesmith.tracking import progress

logger = logging.getLogger(__name__)

CHARACTERS_A_TOKEN = 4  # of English text, about; the tokenizer of a hosted model is not here
REFUSED_IN_A_ROW = 3
BEGINS = b'{"key": '


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Where and how a model is asked.

    Attributes:
        endpoint: address, up to and with ``/v1``.
        model: the name there.
        api_key_env: environment variable that holds the key.
        max_new_tokens: of an answer.
        body: more keys of every request.
        concurrency: requests under way at a time.
        prices: of a million prompt tokens and of a million answer tokens; None where it is not known.
    """

    endpoint: str
    model: str
    api_key_env: str | None = None
    max_new_tokens: int = 1024
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    concurrency: int = 4
    prices: tuple[float, float] | None = None

    @property
    def way(self) -> str:
        """Fingerprint of what decides an answer."""
        return fingerprint(self.endpoint, self.model, self.max_new_tokens, self.body)

    def cost(self, prompt_tokens: int, new_tokens: int) -> float | None:
        """Of so many tokens."""
        if self.prices is None:
            return None
        return by_tokens(prompt_tokens, self.prices[0], new_tokens=new_tokens, output=self.prices[1])


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows to ask, and what is there of them.

    Attributes:
        rows: each question once.
        known: answers that are there, by their key.
    """

    rows: list[Row]
    known: dict[str, RecordedAnswer]

    @property
    def left(self) -> list[Row]:
        """Rows that have no answer yet."""
        return [row for row in self.rows if _key(row) not in self.known]


def _key(row: Row) -> str:
    return question_of(row.messages[:-1], row.tools)


def rows_to_ask(data: str, out: Path, asked: Asked, options: ReadOptions, limit: int | None = None) -> Rows:
    """Read the rows, and the recording that is there.

    Args:
        data: file, directory or hub id; or a run, whose test part is asked.
        limit: the first so many rows; None for all.

    Raises:
        DataError: nothing to read, no row that asks anything, or a file in the place of the recording that is none.
        RunError: a recording of another model, or one that was asked in another way.
    """
    rows: dict[str, Row] = {}
    for row in _read(data, options):
        if row.why_not_scored(calls=True) is None and len(row.messages) > 1:
            rows.setdefault(_key(row), row)
        if limit is not None and len(rows) == limit:
            break
    if not rows:
        raise DataError(f"{data}: no row asks anything that has an answer", "plain texts cannot be asked")
    refuse_target(out, [data], BEGINS)
    known = read_recording(out) if out.exists() else {}
    for answer in known.values():
        if answer.asked != asked.way:
            raise RunError(
                f"{out}: holds answers of {answer.model} at {answer.endpoint}, asked in another way",
                "name another file; address, model, --max-new-tokens and --body belong together",
            )
    return Rows(rows=list(rows.values()), known=known)


def _read(data: str, options: ReadOptions) -> Iterator[Row]:
    path = Path(data)
    if (path / "recipe.yaml").exists():
        part = RunDir(path).data / "test.jsonl"
        if not part.exists():
            raise RunError(f"{data}: its rows were not split yet", f"run: tunesmith data {data}")
        yield from read_rows(part)
        return
    for batch in Reader(data, options).batches():
        yield from batch


def estimate(to_ask: Rows, asked: Asked) -> str:
    """What asking will take, in words: before anything is asked."""
    left = to_ask.left
    characters = sum(len(json.dumps(row.messages[:-1])) + len(json.dumps(row.tools or "")) for row in left)
    prompt, new = characters // CHARACTERS_A_TOKEN, sum(len(row.reference) for row in left) // CHARACTERS_A_TOKEN
    there = f"{len(to_ask.rows) - len(left):,} of {len(to_ask.rows):,} answers are there; " if to_ask.known else ""
    cost = asked.cost(prompt, new)
    price = "what it costs is not known (--price)"
    if cost is not None:
        price = f"about {format(cost, ',.2f' if cost >= 1 else '.2g')} by the given prices"
    return f"{there}{len(left):,} rows to ask, about {prompt:,} prompt and {new:,} answer tokens: {price}"


def record(to_ask: Rows, out: Path, asked: Asked) -> Recording:
    """Ask what is left, and keep each answer as it comes.

    Raises:
        RecipeError: no such address, or the variable that should hold the key is not set.
        RunError: the endpoint refuses row after row; what was answered is kept.
    """
    left, known = to_ask.left, dict(to_ask.known)
    failed: dict[int, str] = {}
    engine = OpenAIEndpoint(asked.endpoint, asked.model, asked.api_key_env, body=asked.body, concurrency=1, timeout=300.0)
    with engine, out.open("a+", encoding="utf-8", newline="\n") as file, progress("recording", len(left)) as bar:
        cut_torn_line(file.fileno())

        def ask(row: Row) -> Answer:
            return engine.generate([row.messages[:-1]], asked.max_new_tokens, lambda _: None, tools=[row.tools])[0]

        with ThreadPoolExecutor(asked.concurrency) as pool:
            numbers = iter(range(len(left)))
            running: dict[Future[Answer], int] = {}
            in_a_row = 0
            while True:
                while len(running) < asked.concurrency and (number := next(numbers, None)) is not None:
                    running[pool.submit(ask, left[number])] = number
                if not running:
                    break
                for job in wait(running, return_when=FIRST_COMPLETED).done:
                    row = left[running[job]]
                    try:
                        line = _line(row, job.result(), asked)
                    except TunesmithError as error:
                        failed[running.pop(job)] = f"{row.place}: {error.message}"
                        in_a_row += 1
                        if in_a_row == REFUSED_IN_A_ROW:
                            pool.shutdown(cancel_futures=True)
                            raise RunError(f"{error.message} ({REFUSED_IN_A_ROW} rows in a row)", error.hint) from error
                        continue
                    in_a_row = 0
                    del running[job]
                    file.write(json.dumps(line.to_json(), ensure_ascii=False) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    known[line.key] = line
                    bar.advance(1)
    answers = [known[key] for row in to_ask.rows if (key := _key(row)) in known]
    tokens = sum(answer.prompt_tokens for answer in answers), sum(answer.new_tokens for answer in answers)
    return Recording(
        file=str(out),
        model=asked.model,
        rows=len(to_ask.rows),
        asked=len(left) - len(failed),
        failed=tuple(failed[number] for number in sorted(failed)),
        prompt_tokens=tokens[0],
        new_tokens=tokens[1],
        cost=asked.cost(*tokens),
    )


def _line(row: Row, answer: Answer, asked: Asked) -> RecordedAnswer:
    return RecordedAnswer(
        key=_key(row),
        asked=asked.way,
        endpoint=asked.endpoint,
        model=asked.model,
        prompt=row.messages[:-1],
        text=answer.text,
        calls=answer.calls if row.tools else None,
        prompt_tokens=answer.prompt_tokens,
        new_tokens=answer.new_tokens,
        seconds=answer.seconds,
        finished=answer.finished,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
