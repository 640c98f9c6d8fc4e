"""Records of answers for tests that need scores and nothing else of them."""

import dataclasses

from tunesmith.rundir import RunDir, read_rows
from tunesmith.rundir.ledger import Ledger, part_of
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evaluation import Selection

OUTPUT = Output(
    id="0",
    prompt=[],
    output="",
    reference="",
    score=None,
    figures={},
    prompt_tokens=9,
    new_tokens=1,
    seconds=0.5,
    finished=True,
)


def outputs(scores, **more):
    """An answer for each score (None: unscored), with ids 0, 1, 2 ..."""
    scores = [None if s is None else float(s) for s in scores]
    return [dataclasses.replace(OUTPUT, id=str(i), score=s, **more) for i, s in enumerate(scores)]


def answers(texts, references):
    """An unscored answer for each text."""
    pairs = enumerate(zip(texts, references, strict=True))
    return [dataclasses.replace(OUTPUT, id=str(i), output=text, reference=reference) for i, (text, reference) in pairs]


def selection(*finalists, rivals=()):
    """A selection that names the prompts to beat."""
    return Selection(finalists=finalists, rivals=(*finalists, *rivals), arms={}, candidates=(), search=None, dev_rows=0)


def arms_that_read(run: RunDir) -> list[str]:
    """The arms that answered the test part of a run, in order, as its own ledger has them."""
    readings = Ledger(run.readings).find(part_of(read_rows(run.data / "test.jsonl"))).readings
    return [reading.arm for reading in readings]
