"""Run an arm: ask every row, score every answer, keep all of it.

All outputs are kept, row by row, so that a verdict or a page can be made again without asking anybody. They are kept
with the fingerprint of what was asked of whom: when only the scoring changed, the answers on the disk are scored anew and no
model is asked. A row that could not be scored (a judge's answer that says nothing) has the score None; it is left out of
every mean and counted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from tunesmith.engines.engine import Allowed, Answer, Choices, Engine
from tunesmith.errors import RunError
from tunesmith.evaluate.choose import choose
from tunesmith.evaluate.compare import figure_with_interval
from tunesmith.evaluate.metrics import HEADLINE, Metric
from tunesmith.evaluate.twin import in_common
from tunesmith.messages import Message, Tools
from tunesmith.recipe import TokenPrice
from tunesmith.rundir import fingerprint
from tunesmith.rundir.names import from_disk
from tunesmith.rundir.records.answers import Output, Scores, Summary
from tunesmith.rundir.records.evaluation import Arm, Comparison, Totals
from tunesmith.rundir.rows import Row
from tunesmith.tracking import progress

Price = Callable[[Answer], float]


def ask(
    title: str,
    engine: Engine,
    rows: Sequence[Row],
    prompts: list[list[Message]],
    metric: Metric,
    max_new_tokens: int,
    allowed: Allowed | None = None,
    price: Price | None = None,
    known: Mapping[str, Output] = MappingProxyType({}),
) -> list[Output]:
    """Answers and scores of one way of asking, one a row.

    Args:
        rows: whose ids and references go with the answers.
        prompts: what is asked for each row.
        allowed: what the engine constrains every answer to (``task.constrained``), or labels to choose from.
        price: cost of an answer.
        known: answers by row, which need not be asked.
    """
    left = [(row, prompt) for row, prompt in zip(rows, prompts, strict=True) if row.id not in known]
    answers: list[Answer] = []
    with progress(title, len(rows)) as bar:
        bar.advance(len(rows) - len(left))
        if left:
            own_rows, own_prompts = [row for row, _ in left], [prompt for _, prompt in left]
            if isinstance(allowed, Choices):
                answers = choose(engine, own_prompts, allowed.labels, lambda done: bar.advance(done))
            else:
                tools = declared_tools(own_rows, metric)
                answers = engine.generate(own_prompts, max_new_tokens, lambda done: bar.advance(done), allowed, tools)
    if allowed is None:
        answers = [replace(answer, free=True) for answer in answers]
    new = {
        row.id: _scored(row.id, prompt, row.reference, answer, metric, price)
        for (row, prompt), answer in zip(left, answers, strict=True)
    }
    return [new[row.id] if row.id in new else _scored_again(known[row.id], metric, price) for row in rows]


def _scored(row_id: str, prompt: list[Message], reference: str, answer: Answer, metric: Metric, price: Price | None) -> Output:
    if metric.score_calls is None:
        figures = dict(metric.score(answer.text, reference))
    else:
        assert answer.calls is not None, "calls are scored, and no engine read them"
        figures = dict(metric.score_calls(answer.calls, reference))
    return Output(
        id=row_id,
        prompt=prompt,
        output=answer.text,
        reference=reference,
        score=figures.pop(HEADLINE),
        figures=figures,
        prompt_tokens=answer.prompt_tokens,
        new_tokens=answer.new_tokens,
        seconds=answer.seconds,
        finished=answer.finished,
        cost=None if price is None else price(answer),
        calls=answer.calls,
        free=answer.free,
    )


def declared_tools(rows: Sequence[Row], metric: Metric) -> list[Tools] | None:
    """What each row's prompt declares; None where none declares any and calls are not scored."""
    tools = [row.tools for row in rows]
    return tools if any(tools) or metric.score_calls is not None else None


def key_of_answers(
    weights: str, prompts: list[list[Message]], max_new_tokens: int, allowed: Allowed | None, tools: list[Tools] | None
) -> str:
    """Fingerprint of everything that decides what an engine answers."""
    return fingerprint(weights, prompts, max_new_tokens, allowed, *([tools] if tools else []))


def summary(name: str, outputs: Sequence[Output], metric: Metric) -> Summary:
    """Figures of an arm or a candidate: means over the rows that have them, and the metric's figures of all scored rows.

    Args:
        name: what the figures are of.
        outputs: one a row, at least one.
    """
    figures = {name: _mean(output.figures[name] for output in outputs) for name in outputs[0].figures}
    scored = [output for output in outputs if output.score is not None]
    figures |= {name: figure(scored) if scored else None for name, figure in metric.of_all.items()}
    return Summary(
        name=name,
        n=len(outputs),
        unscored=sum(output.score is None for output in outputs),
        score=metric.headline(outputs),
        figures=figures,
        prompt_tokens=float(np.mean([output.prompt_tokens for output in outputs])),
        new_tokens=float(np.mean([output.new_tokens for output in outputs])),
        finished=float(np.mean([output.finished for output in outputs])),
        ms=1000.0 * float(np.mean([output.seconds for output in outputs])),
        cost=_mean(output.cost for output in outputs),
    )


def arm_of(name: str, outputs: Sequence[Output], metric: Metric, groups: list[str] | None, against: Comparison | None) -> Arm:
    """Figures of an arm on the test part, with their intervals.

    Args:
        groups: the group of each row, where rows belong together.
        against: its comparison with the strongest rival; None for that prompt itself.
    """
    figure, interval = figure_with_interval(outputs, metric, groups)
    costs = [output.cost for output in outputs if output.cost is not None]
    totals = Totals(
        prompt_tokens=sum(output.prompt_tokens for output in outputs),
        new_tokens=sum(output.new_tokens for output in outputs),
        seconds=sum(output.seconds for output in outputs),
        cost=sum(costs) if costs else None,
    )
    figures = {**vars(summary(name, outputs, metric)), "score": figure}
    return Arm(**figures, low=interval.low, high=interval.high, totals=totals, against=against)


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def by_tokens(price: TokenPrice) -> Price:
    """Cost of an endpoint's answer, in the price's currency."""
    return lambda answer: (
        1e-6 * (answer.prompt_tokens * price.prompt_per_million + answer.new_tokens * price.output_per_million)
    )


def by_time(price_per_hour: float) -> Price:
    """Cost of an answer of this machine: the hours it took."""
    return lambda answer: answer.seconds / 3600.0 * price_per_hour


def run_arm(
    folder: Path,
    evaluation: Path,
    make_engine: Callable[[], Engine],
    answers_key: str,
    rows: Sequence[Row],
    prompts: list[list[Message]],
    metric: Metric,
    max_new_tokens: int,
    allowed: Allowed | None = None,
    price: Price | None = None,
    twin_key: str | None = None,
) -> Summary:
    """Ask an arm all test rows; writes ``outputs.jsonl`` and ``scores.json`` into ``folder`` (``evaluation/<arm>``).

    Args:
        evaluation: where answers of any arm lie.
        answers_key: fingerprint of everything the answers follow from. Answers that lie there under the same one are scored
            anew, be they another arm's: a search that ends with the few-shot prompt need not ask it twice.
        twin_key: the same of these prompts asked the other way, freely or constrained; what both ways have in common is not
            asked again (``twin.py``). None where the engine may answer otherwise.
    """
    source = _answers_of(evaluation, answers_key)
    if source is not None:
        outputs = [_scored_again(output, metric, price) for output in read_outputs(source)]
    else:
        known: dict[str, Output] = {}
        if twin_key is not None and not isinstance(allowed, Choices):
            twin = _answers_of(evaluation, twin_key)
            known = {} if twin is None else in_common(read_outputs(twin), allowed)
        engine = make_engine()
        try:
            outputs = ask(from_disk(folder.name), engine, rows, prompts, metric, max_new_tokens, allowed, price, known)
        finally:
            engine.close()
    return write_outputs(folder, answers_key, outputs, metric)


def _answers_of(evaluation: Path, key: str) -> Path | None:
    """The folder of an arm whose answers follow from the same inputs, None where all have to be asked."""
    for file in [*sorted(evaluation.glob("*/scores.json")), *sorted(evaluation.glob("finalists/*/scores.json"))]:
        try:
            same = Scores.read(file).key == key
        except RunError:
            continue  # damaged: its arm is asked again when its turn comes
        if same and (file.parent / "outputs.jsonl").exists():
            return file.parent
    return None


def _scored_again(output: Output, metric: Metric, price: Price | None) -> Output:
    answer = Answer(
        output.output, output.prompt_tokens, output.new_tokens, output.seconds, output.finished, output.calls, output.free
    )
    return _scored(output.id, output.prompt, output.reference, answer, metric, price)


def write_outputs(folder: Path, answers_key: str, outputs: Sequence[Output], metric: Metric) -> Summary:
    """Write the answers and their figures; returns the figures."""
    Output.write_lines(folder / "outputs.jsonl", outputs)
    figures = summary(folder.name, outputs, metric)
    Scores(key=answers_key, summary=figures).write(folder / "scores.json")
    return figures


def read_outputs(folder: Path) -> list[Output]:
    """The answers of an arm.

    Raises:
        RunError: no such file, or a line that is no output.
    """
    return Output.read_lines(folder / "outputs.jsonl")
