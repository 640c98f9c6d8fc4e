"""A run that is sent to a tracker, once or while it is made; what the store then holds: tests/tracking/test_trackers.py."""

import os
import shutil
import time
from pathlib import Path

import pytest

from tunesmith.errors import RunError
from tunesmith.pipeline import followers
from tunesmith.pipeline.followers import Followers
from tunesmith.pipeline.track import track
from tunesmith.rundir import RunDir
from tunesmith.rundir.events import EventLog
from tunesmith.rundir.records.events import Metric, StageStart
from tunesmith.rundir.records.tracked import Sent
from tunesmith.tracking import attached, emit, stage


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the whole tiny run."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    return RunDir(tmp_path / "run")


def test_a_run_is_sent_once_with_the_verdict_on_what_is_there(run, talk):
    pytest.importorskip("tensorboardX")
    steps = len(run.metrics_file.read_text().splitlines())
    first, again = track(run, "tensorboard"), track(run, "tensorboard", follow=True)
    assert (first.steps, first.earlier) == (steps, 0) and (again.steps, again.earlier) == (0, steps)
    assert first.verdict == again.verdict is not None and "nobody writes it" in talk()
    assert len(list((run.path / "tensorboard").iterdir())) == 1
    run.recipe_file.write_text(run.recipe_file.read_text().replace("min_gain: ", "min_gain: 0.2 # "))
    assert track(run, "tensorboard").verdict is None and "not of what is there now" in talk()
    run.events_file.unlink()  # the table says the same steps
    assert track(run, "tensorboard").earlier == steps


def test_what_cannot_be_sent_is_refused(run):
    with pytest.raises(RunError, match="keeps no files"):
        track(run, "tensorboard", report=True)
    run.report_file.unlink()
    with pytest.raises(RunError, match=r"report.html: not there\nhint: run: tunesmith report"):
        track(run, "mlflow", report=True)
    run.events_file.unlink()
    run.metrics_file.unlink()
    with pytest.raises(RunError, match="no step was trained yet"):
        track(run, "tensorboard")


def test_followers_send_a_run_while_it_is_made_and_one_that_fails_is_a_warning(tmp_path, make_recipe, monkeypatch, talk):
    pytest.importorskip("tensorboardX")
    broken = tmp_path / "broken" / "wandb"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ModuleNotFoundError(name='wandb')")
    source = Path(followers.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(broken.parent), str(source)]))
    run = RunDir.create(tmp_path / "run", make_recipe())
    sent = run.tracked / "tensorboard.json"
    log = EventLog(run.events_file)
    with Followers(run, ("tensorboard", "wandb")) as sink, run.writing(), attached(log, sink), stage("train"):
        emit(Metric.of({"step": 1, "loss": 5.0}))
        deadline = time.monotonic() + 120
        while not sent.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert Sent.read(sent).step == 1
        emit(Metric.of({"step": 2, "loss": 4.0}))
        while Sent.read(sent).step < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        emit(StageStart(stage="train"))  # and a training that ends before its first step
    assert Sent.read(sent).step == 2
    assert "report_to: wandb: wandb needs the package wandb, which is not installed; the run does without" in talk()


def test_a_follower_that_hangs_is_ended_with_the_run(tmp_path, make_recipe, monkeypatch):
    monkeypatch.setattr(followers, "PATIENCE", 0.0)
    run = RunDir.create(tmp_path / "run", make_recipe())
    with Followers(run, ("tensorboard",)) as sink, attached(sink), stage("train"):
        (follower,) = sink._followers
        assert follower.child.poll() is None
    assert follower.child.returncode == -9
