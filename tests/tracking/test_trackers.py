"""What a tracker holds after all that a training can do, read back from its own store: each step once, with its figures.

The trackers' libraries are extras; tensorboardX is in every environment of ours, the others are tested where they are
installed.
"""

import json
import sqlite3

import pytest

from tunesmith.errors import MissingPackage, RunError
from tunesmith.rundir.records.events import Metric, StageStart
from tunesmith.rundir.records.tracked import Sent
from tunesmith.tracking.trackers import tracker as tracker_module
from tunesmith.tracking.trackers.facts import Facts, flattened
from tunesmith.tracking.trackers.sender import Sender
from tunesmith.tracking.trackers.steps import Steps
from tunesmith.tracking.trackers.tensorboard import TensorBoard

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own

LIBRARIES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
FORGETS = ("tensorboard",)


def _metric(step, loss, stage="train", **more):
    return Metric(
        at=f"2026-11-01T10:00:{step:02}.000+00:00", stage=stage, step=step, figures={"loss": loss, "tokens": 10, **more}
    )


def _points(*losses, first=1):
    """A training from its first step on."""
    steps = Steps()
    steps.take([StageStart(stage="train"), *(_metric(step, loss) for step, loss in enumerate(losses, first))])
    return steps.points


def _facts(directory, id="0123456789abcdef", **changes):
    known = {
        "directory": directory,
        "name": "toy",
        "id": id,
        "project": "tunesmith",
        "recipe": "model: m\n",
        "config": {"lora.r": 16, "data.path": "/rows.jsonl", "task.labels": "x" * 600},
        "tags": {"data_sha256": "abc", "git_commit": "def"},
        "summary": {"arm/few_shot:2/score": 0.25, "verdict/gain": 0.0, "verdict": "not better"},
        "last_step": 7,
        "outcome": "finished",
    }
    return Facts(**{**known, **changes})


def _stored_tensorboard(directory, facts):
    """As a viewer reads it: a session mark takes back what stands at and above its step."""
    from tensorboardX.proto.event_pb2 import Event

    values, texts = [], {}
    for file in sorted((directory / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
            if event.HasField("session_log"):
                values = [entry for entry in values if entry[1] < event.step]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    values.append((value.tag, event.step, value.simple_value))
                else:
                    texts.setdefault(value.tag.removesuffix("/text_summary"), []).append(value.tensor.string_val[0].decode())
    figures = {tag: [(step, value) for name, step, value in values if name == tag] for tag, _, _ in values}
    assert all(len(written) == 1 for name, written in texts.items() if name != "verdict")
    summary = {name: entries[0][1] for name, entries in figures.items() if name.startswith(("arm/", "verdict/")) and entries}
    assert all(len(figures[name]) == 1 for name in summary)
    return figures, {**summary, "verdict": texts["verdict"][-1]}


def _stored_mlflow(directory, facts):
    import mlflow

    client = mlflow.MlflowClient()
    (run,) = client.search_runs(
        [client.get_experiment_by_name("tunesmith").experiment_id], f"tags.`tunesmith.id` = '{facts.id}'"
    )
    assert run.info.run_name == "toy" and run.info.status == "FINISHED"
    assert run.data.params["lora.r"] == "16" and run.data.tags["git_commit"] == "def"
    names = ["train/loss", "train/num_tokens"]
    figures = {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names}
    assert len(client.get_metric_history(run.info.run_id, "verdict/gain")) == 1
    return figures, {**run.data.metrics, "verdict": run.data.tags["verdict"]}


def _stored_trackio(directory, facts):
    (file,) = (directory / "store").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select step, metrics from metrics where run_name = ? order by id", (facts.label,)).fetchall()
    figures, summary = {}, {}
    for step, text in rows:
        for name, value in json.loads(text).items():
            if name.startswith("train/"):
                figures.setdefault(name, []).append((step, value))
            else:
                assert name not in summary
                summary[name] = value
    return figures, summary


def _records_of_wandb(file):
    """The records of a log in LevelDB's form: blocks of 32 kB; a record is whole in one, or a first, middle ones and a last."""
    content, place, parts = file.read_bytes(), 7, []
    while place < len(content):
        if 32768 - place % 32768 < 7:  # no room for a head: zeros to the end of the block
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def _stored_wandb(directory, facts):
    from wandb.proto import wandb_internal_pb2

    figures, summary = {}, {}
    for file in sorted((directory / "wandb").glob(f"offline-run-*-{facts.id}/*.wandb")):
        for content in _records_of_wandb(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            line = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in line.items():
                figures.setdefault(name, []).append((int(line["train/global_step"]), value))
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return figures, summary


STORED = {
    "tensorboard": _stored_tensorboard,
    "wandb": _stored_wandb,
    "mlflow": _stored_mlflow,
    "trackio": _stored_trackio,
}


@pytest.mark.parametrize("to", list(LIBRARIES))
def test_every_step_is_in_the_store_once_whatever_the_training_did(to, tmp_path, monkeypatch):
    pytest.importorskip(LIBRARIES[to])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    if to == "trackio":
        for module in (pytest.importorskip("trackio.utils"), pytest.importorskip("trackio.sqlite_storage")):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "store")
    note, facts = tmp_path / "tracked.json", _facts(tmp_path)

    def send(*batches, facts=facts, is_whole=True):
        sender = Sender(to, facts, note)
        for batch in batches:
            sender.send(batch)
        if is_whole:
            sender.summarise(facts, None)
        else:
            sender.close()
        return sender

    send(_points(5.0, 4.0), is_whole=False)  # a follower that was ended
    later = send(_points(5.0, 4.0, 3.0, 9.0), _points(5.0, 4.0, 3.0, 2.5, 2.0))  # and one that sees the training go back
    again = send(_points(5.0, 4.0, 3.0, 2.5, 2.0))
    expected = [(1, 5.0), (2, 4.0), (3, 3.0), (4, 2.5 if to in FORGETS else 9.0), (5, 2.0)]
    figures, summary = STORED[to](tmp_path, facts)
    assert figures["train/loss"] == expected
    assert figures["train/num_tokens"] == [(step, 10.0 * step) for step in range(1, 6)]
    assert (summary["verdict"], summary["verdict/gain"]) == ("not better", 0.0)
    arm = "arm/few_shot_2/score" if to == "tensorboard" else "arm/few_shot:2/score"
    assert summary[arm] == 0.25
    assert (later.earlier, later.steps) == (2, 4 if to in FORGETS else 3) or to in FORGETS
    assert (again.earlier, again.steps) == (5, 0)

    anew = _facts(
        tmp_path, id="fedcba9876543210", summary={"verdict": "deploy", "verdict/gain": 0.5, "arm/few_shot:2/score": 0.5}
    )
    send(_points(6.0, 5.5), facts=anew)
    figures, summary = STORED[to](tmp_path, anew)
    assert figures["train/loss"] == [(1, 6.0), (2, 5.5)] and summary["verdict"] == "deploy"
    if to not in FORGETS:
        assert STORED[to](tmp_path, facts)[0]["train/loss"] == expected


def test_a_viewer_of_tensorboard_sees_what_the_event_files_are_read_as(tmp_path):
    pytest.importorskip("tensorboardX")
    viewer = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for points in (_points(5.0, 4.0, 9.0), _points(5.0, 4.0, 3.0)):
        sender = Sender("tensorboard", _facts(tmp_path), tmp_path / "note.json")
        sender.send(points)
        sender.close()
    seen = viewer.EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    losses = {entry.step: entry.value for entry in seen.Scalars("train/loss")}
    assert losses == {1: 5.0, 2: 4.0, 3: 3.0} == dict(TensorBoard(_facts(tmp_path)).held())


def test_an_event_file_that_a_kill_cut_short_gives_its_whole_points_and_the_rest_is_sent_again(tmp_path):
    pytest.importorskip("tensorboardX")
    sender = Sender("tensorboard", _facts(tmp_path), tmp_path / "note.json")
    sender.send(_points(5.0, 4.0, 3.0))
    sender.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    for cut in range(len(content) - 120, len(content), 17):
        file.write_bytes(content[:cut])
        assert set(TensorBoard(_facts(tmp_path)).held()) <= {1, 2, 3}
    sender = Sender("tensorboard", _facts(tmp_path), tmp_path / "note.json")
    sender.send(_points(5.0, 4.0, 3.0))
    sender.close()
    assert dict(TensorBoard(_facts(tmp_path)).held()) == {1: 5.0, 2: 4.0, 3: 3.0}


class _Stub:
    """A store that cannot be asked, and counts how often it is opened."""

    place, look, errors, forgets = "there", "look there", (ConnectionError,), False
    opened, lines = 0, None

    def __init__(self, facts):
        type(self).opened += 1
        self.is_down = False

    def held(self):
        return None

    def log(self, points):
        if self.is_down:
            raise ConnectionError("no route to host\nmore")
        type(self).lines = (self.lines or []) + [point.step for point in points]

    def summarise(self, facts, page):
        self.pages = page

    def close(self, facts):
        return None


@pytest.fixture
def stub(monkeypatch):
    _Stub.opened, _Stub.lines = 0, None
    monkeypatch.setitem(Sender.__init__.__globals__["TRACKERS"], "wandb", _Stub)
    return _Stub


def test_a_store_that_cannot_be_asked_is_opened_for_what_is_new_alone(stub, tmp_path, talk):
    def send(points, **changes):
        sender = Sender("wandb", _facts(tmp_path, **changes), tmp_path / "wandb.json")
        sender.send(points)
        sender.summarise(_facts(tmp_path, **changes), None)

    send(_points(5.0, 4.0))
    send(_points(5.0, 4.0))
    assert (stub.opened, stub.lines) == (1, [1, 2])
    send(_points(5.0, 4.0, 3.0))
    send(_points(5.0, 4.0, 3.0), summary={"verdict": "deploy"})
    assert (stub.opened, stub.lines) == (3, [1, 2, 3])
    assert Sent.read(tmp_path / "wandb.json").step == 3


def test_a_store_that_fails_is_an_error_with_the_command_that_sends_it_again(stub, tmp_path):
    sender = Sender("wandb", _facts(tmp_path), tmp_path / "wandb.json")
    sender.send(_points(5.0))
    sender._tracker.is_down = True
    with pytest.raises(RunError, match=r"wandb: no route to host\nhint: .*tunesmith track .* --to wandb"):
        sender.send(_points(5.0, 4.0))
    assert Sent.read(tmp_path / "wandb.json").step == 1


def test_a_missing_library_names_its_extra(monkeypatch):
    with pytest.raises(MissingPackage, match=r"(?s)mlflow needs the package nosuchlib.*tunesmith\[mlflow\]"):
        tracker_module.library("nosuchlib", "mlflow")


def test_the_table_is_that_of_the_last_training_and_its_names_are_those_of_transformers():
    steps = Steps()
    steps.take([StageStart(stage="train"), _metric(1, 5.0), _metric(2, 4.0), _metric(2, 9.9, stage="seeds/train")])
    assert [point.step for point in steps.news()] == [1, 2] and steps.news() == []
    steps.take([StageStart(stage="train")])  # a resume says the checkpoint's steps again
    more = {"dev_loss": 2.0, "accuracy": 0.5, "learning_rate": 1e-4, "grad_norm": None, "seconds": 2.0}
    steps.take([_metric(1, 5.0), _metric(2, 4.0, **more)])
    (_, point) = steps.news()
    assert point.values == {
        "train/loss": 4.0,
        "eval/loss": 2.0,
        "train/mean_token_accuracy": 0.5,
        "train/learning_rate": 1e-4,
        "train/global_step": 2.0,
        "train/num_tokens": 20.0,
        "train/tokens_per_second": 5.0,
    }
    steps.take([_metric(2, 3.5)])
    assert [(point.step, point.values["train/loss"]) for point in steps.points] == [(1, 5.0), (2, 3.5)]


def test_keys_become_dotted_names():
    assert flattened({"lora": {"r": 8, "none": None}, "arms": ["a", "b"]}) == {"lora.r": 8, "arms": '["a", "b"]'}
