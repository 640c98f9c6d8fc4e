"""How a job ends: with a verdict, its results as files, and a model where the gate deploys; or with an error.

A verdict that is not to deploy is a result and no failure: the job has succeeded, and gives no model unless the settings say
so.
"""

import csv
import hashlib
from pathlib import Path

from tunesmith.rundir.records.base import Json
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.training import Training
from tunesmith.serve.jobs.files import Shelf
from tunesmith.serve.jobs.following import NAMES
from tunesmith.serve.jobs.objects import model_name
from tunesmith.serve.jobs.place import Place
from tunesmith.serve.jobs.queue import Ending
from tunesmith.serve.jobs.settings import JobsSettings
from tunesmith.serve.jobs.store import Job, Said, StoredFile
from tunesmith.tracking import read_metrics

# As evaluate/gate.py has them, which would bring SciPy into the worker: verdicts with a model, and exit codes of verdicts.
GIVEN = ("deploy", "as good and cheaper", "may replace it")
CODES_OF_VERDICTS = frozenset((0, *range(10, 18)))
REPORT, TABLE = "report.html", "step_metrics.csv"


def failed(code: str, message: str, param: str | None = None) -> Ending:
    """A job that failed."""
    error: Json = {"code": code, "message": message, "param": param}
    return Ending(status="failed", error=error, events=(Said(message=message, level="error"),))


class VerdictEnding:
    """A job whose run has a verdict."""

    def __init__(self, place: Place, shelf: Shelf, settings: JobsSettings, job: Job):
        self._place, self._shelf, self._settings, self._job = place, shelf, settings, job
        self._run = place.run(job.id)

    def ending(self) -> Ending:
        """With its results; the same each time it is asked for."""
        job, run = self._job, self._run
        verdict = Verdict.read(run.verdict_file)
        is_served = verdict.decision in GIVEN or self._settings.serve_anyway
        model = model_name(job) if is_served else None
        steps = read_metrics(run.metrics_file)
        training = Training.read(run.training_file)
        hyperparameters: Json = {**job.hyperparameters, "n_epochs": training.num_train_epochs}
        return Ending(
            status="succeeded" if model is None else "publishing",
            model=model,
            verdict=verdict.decision,
            trained_tokens=round(sum(step["tokens"] for step in steps)),
            hyperparameters=hyperparameters,
            files=(self._report(), self._table(steps)),
            events=(*self._said(verdict, model), *([] if model is not None else [DONE])),
        )

    def _said(self, verdict: Verdict, model: str | None) -> list[Said]:
        gain = verdict.comparison
        data: Json = {
            "verdict": verdict.decision,
            "exit_code": verdict.exit_code,
            "candidate": verdict.candidate,
            "best_prompt": verdict.best_prompt,
            "metric": verdict.metric,
            "score": verdict.score,
            "gain": gain.gain,
            "interval": [gain.low, gain.high],
            "level": gain.level,
            "rows": verdict.n,
            "reason": verdict.reason,
        }
        said = [Said(message=f"Verdict: {verdict.decision}. {verdict.reason}", data=data)]
        said += [Said(message=line) for line in verdict.advice]
        if model is None:
            why = (
                f"No fine_tuned_model is given, for the verdict is {verdict.decision}; {REPORT} among the result files says why"
            )
            said.append(Said(message=why, level="warn"))
        elif verdict.decision not in GIVEN:
            said.append(
                Said(message=f"The model is given though the verdict is {verdict.decision} (serve_anyway)", level="warn")
            )
        return said

    def _report(self) -> StoredFile:
        return self._add(self._run.report_file, REPORT)

    def _table(self, steps: list[dict[str, float]]) -> StoredFile:
        """The steps of the training, under OpenAI's names."""
        path = self._run.path / TABLE
        names = ["step", *NAMES.values()]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            for step in steps:
                writer.writerow([step.get("step", ""), *(step.get(name, "") for name in NAMES)])
        return self._add(path, TABLE)

    def _add(self, source: Path, name: str) -> StoredFile:
        file_id = f"file-{hashlib.sha256(f'{self._job.id} {name}'.encode()).hexdigest()[:32]}"
        return self._shelf.add_result(source, file_id, self._job.owner, f"{self._job.id}-{name}")


DONE = Said(message="The job has successfully completed")


def published(model: str, problem: str | None) -> Ending:
    """A job whose model is served, or cannot be."""
    said = [Said(message=f"New fine-tuned model created: {model}")]
    if problem is not None:
        said.append(Said(message=f"The model is not served here: {problem}", level="warn"))
    return Ending(status="succeeded", events=(*said, DONE))
