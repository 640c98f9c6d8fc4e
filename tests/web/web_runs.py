"""Run directories as a run leaves them, written without one: a recipe, events, answers."""

import json
from pathlib import Path

from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.events import EventLog
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.events import ArmScore, Metric, Progress, StageEnd, StageStart, WarningLine

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e&amp;"


def make_run(folder: Path, name: str = "toy", **keys) -> RunDir:
    """A run that has a recipe and nothing else."""
    task = {"metric": "exact_match", "prompt": "Which colour?"}
    recipe = Recipe.model_validate({"name": "toy", "model": "owner/none", "data": {"path": "rows.jsonl"}, "task": task, **keys})
    return RunDir.create(folder / name, recipe)


def step(number: int, loss: float = 1.0, dev: float | None = None, norm: float | None = 0.5) -> Metric:
    """A step of the training."""
    figures = {"loss": loss, "grad_norm": norm, "learning_rate": 1e-4, "tokens": 100.0, "seconds": 0.5}
    return Metric(stage="train", step=number, figures=figures if dev is None else {**figures, "dev_loss": dev})


def write_events(run: RunDir, *events) -> None:
    """Append events, as a process that begins to write."""
    log = EventLog(run.events_file)
    for event in events:
        log.write(event)


def train(run: RunDir, steps: int = 3) -> None:
    """A training that is under way."""
    log = [StageStart(stage="train"), Progress(stage="train", title="training", done=0, total=10)]
    write_events(run, *log, *(step(number + 1, 2.0 - 0.1 * number) for number in range(steps)))


def answer(run: RunDir, arm: str, scores: list[float | None], text: str = "red", finished: bool = True) -> None:
    """The answers of an arm, and its event."""
    folder = run.answers(arm)
    folder.mkdir(parents=True)
    outputs = [
        Output(
            id=f"row{number}",
            prompt=[{"role": "user", "content": f"question {number} {HOSTILE}"}],
            output=f"{text} {number}",
            reference="red",
            score=score,
            figures={},
            prompt_tokens=5,
            new_tokens=2,
            seconds=0.1,
            finished=finished or number > 0,
        )
        for number, score in enumerate(scores)
    ]
    (folder / "outputs.jsonl").write_text("".join(json.dumps(output.to_json()) + "\n" for output in outputs))
    known = [score for score in scores if score is not None]
    event = ArmScore(stage=f"evaluate {arm}", arm=arm, rows=len(known), score=sum(known) / len(known))
    write_events(run, StageStart(stage=event.stage), event, StageEnd(stage=event.stage, outcome="done", seconds=1.0))


def warn(run: RunDir, message: str) -> None:
    """A warning of the run."""
    write_events(run, WarningLine(stage="train", logger="tunesmith", message=message))
