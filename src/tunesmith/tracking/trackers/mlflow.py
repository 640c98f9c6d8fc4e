"""MLflow, by its client: a run of an experiment, at the server or in the file that ``MLFLOW_TRACKING_URI`` names.

Without that variable it is MLflow's own default, ``mlflow.db`` where the command is given. The run is found by a tag that
holds the training's id, so a second call goes on in it; its steps are asked from the store.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.tracking.trackers.facts import Facts
from tunesmith.tracking.trackers.steps import LOSS, Point
from tunesmith.tracking.trackers.tracker import ErrorTypes, library

TAG = "tunesmith.id"
NAME = "mlflow.runName"
METRICS, PARAMETERS = 1000, 100  # that the server takes at once
LONGEST = 500  # characters of a parameter
STATUS = {"running": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


class MLflow:
    """One run of an experiment."""

    forgets = False

    def __init__(self, facts: Facts):
        module = library("mlflow", "mlflow")
        self._entities = library("mlflow.entities", "mlflow")
        self.errors: ErrorTypes = (module.exceptions.MlflowException,)
        uri = module.get_tracking_uri()
        if uri.startswith("sqlite"):
            library("sqlalchemy", "mlflow")  # which mlflow-skinny does not bring
            library("alembic", "mlflow")
        self._client = module.MlflowClient()
        self.place = uri
        self.look = uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
        self._run = self._find(facts)

    def held(self) -> Mapping[int, float]:
        """The loss of every step in the store."""
        return {metric.step: metric.value for metric in self._client.get_metric_history(self._run, LOSS)}

    def log(self, points: Sequence[Point]) -> None:
        """Append steps."""
        kind = self._entities.Metric
        metrics = [
            kind(name, value, round(1000 * point.at), point.step) for point in points for name, value in point.values.items()
        ]
        for part in _parts(metrics, METRICS):
            self._client.log_batch(self._run, metrics=part)

    def forget_from(self, step: int) -> None:
        """Not to be called: MLflow keeps what it was told."""
        raise AssertionError(step)

    def summarise(self, facts: Facts, page: Path | None) -> None:
        """Write figures as metrics, texts and tags as tags, where they are not there; the page as an artifact."""
        data = self._client.get_run(self._run).data
        for name, value in facts.numbers.items():
            if data.metrics.get(name) != value:
                self._client.log_metric(self._run, name, value, step=facts.last_step)
        for name, text in {**facts.words, **facts.tags}.items():
            self._client.set_tag(self._run, name, text)
        if page is not None:
            self._client.log_artifact(self._run, str(page))

    def close(self, facts: Facts) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run, STATUS[facts.outcome])

    def _find(self, facts: Facts) -> str:
        """The run of this training, begun where there is none."""
        client = self._client
        known = client.get_experiment_by_name(facts.project)
        experiment = client.create_experiment(facts.project) if known is None else known.experiment_id
        runs = client.search_runs([experiment], f"tags.`{TAG}` = '{facts.id}'", max_results=1)
        if runs:
            client.update_run(runs[0].info.run_id, status="RUNNING")
            return runs[0].info.run_id
        run = client.create_run(experiment, tags={TAG: facts.id, NAME: facts.name}).info.run_id
        kind = self._entities.Param
        parameters = [kind(name, str(value)[:LONGEST]) for name, value in facts.config.items()]
        for part in _parts(parameters, PARAMETERS):
            client.log_batch(run, params=part)
        return run


def _parts(entries: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]
