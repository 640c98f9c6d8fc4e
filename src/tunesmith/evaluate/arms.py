"""Run an arm: ask every row, score every answer, keep all of it.

All outputs are kept, row by row, so that a verdict or a page can be made again without asking anybody.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.evaluate.metrics import Scorer
from tunesmith.infer.engine import Engine, Message
from tunesmith.rundir import write_json, write_rows
from tunesmith.track import progress

Outputs = list[dict[str, Any]]


def ask(
    title: str,
    engine: Engine,
    ids: list[str],
    prompts: list[list[Message]],
    references: list[str],
    scorer: Scorer,
    max_new_tokens: int,
) -> Outputs:
    """Answers and scores of one way of asking, a record a row."""
    with progress(title, len(prompts)) as bar:
        answers = engine.generate(prompts, max_new_tokens, lambda done: bar.advance(done))
    return [
        {
            "id": row_id,
            "prompt": prompt,
            "output": answer.text,
            "reference": reference,
            **scorer(answer.text, reference),
            "prompt_tokens": answer.prompt_tokens,
            "new_tokens": answer.new_tokens,
            "seconds": answer.seconds,
            "finished": answer.finished,
        }
        for row_id, prompt, answer, reference in zip(ids, prompts, answers, references, strict=True)
    ]


def summary(outputs: Outputs) -> dict[str, float]:
    """Means over rows of every figure of an arm; ``n`` rows; milliseconds an example."""
    not_figures = {"id", "prompt", "output", "reference", "seconds"}
    names = [name for name in outputs[0] if name not in not_figures]
    means = {name: float(np.mean([row[name] for row in outputs])) for name in names}
    return {"n": len(outputs), **means, "ms": 1000.0 * float(np.mean([row["seconds"] for row in outputs]))}


def run_arm(
    folder: Path,
    make_engine: Callable[[], Engine],
    key: str,
    rows: list[dict[str, Any]],
    prompts: list[list[Message]],
    scorer: Scorer,
    max_new_tokens: int,
) -> dict[str, float]:
    """Ask an arm all test rows; writes ``outputs.jsonl`` and ``scores.json`` into ``folder`` (``evaluation/<arm>``).

    Args:
        key: fingerprint of everything the outputs follow from.

    Returns:
        The arm's ``summary``.
    """
    references = [row["messages"][-1]["content"] for row in rows]
    ids = [row["id"] for row in rows]
    engine = make_engine()
    try:
        outputs = ask(folder.name, engine, ids, prompts, references, scorer, max_new_tokens)
    finally:
        engine.close()
    write_rows(folder / "outputs.jsonl", outputs)
    figures = summary(outputs)
    write_json(folder / "scores.json", {"key": key, **figures})
    return figures
