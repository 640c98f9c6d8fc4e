"""A spike is undone at half the rate, twice at most, and a run that was killed around one ends with the same bytes."""

from functools import partial

import pytest
import test_checkpoint
import torch

from tunesmith.models.swap import add_lora
from tunesmith.processes import Team
from tunesmith.recipe import Lora, TrainSettings
from tunesmith.rundir.records.training import DevLoss, Spike
from tunesmith.tracking import MetricsLog, read_metrics
from tunesmith.train import checkpoint, distributed, loop
from tunesmith.train.checkpoint import Checkpoints, Progress
from tunesmith.train.documents import make_documents
from tunesmith.train.optim import make_optimizer
from tunesmith.train.spike import find_spike

RATE = 0.03
LONG = {"train.num_train_epochs": 10, "train.learning_rate": RATE}
AT = 33  # step that jumps, when something is learned


def _training(patch, folder):
    """Trainings on one text, which the tiny model learns: on random ones its loss cannot double."""
    ids = torch.randint(64, (11,), generator=torch.Generator().manual_seed(0)).tolist()
    documents = make_documents([([first, *ids], [0] * 4 + [1] * 8) for first in range(20)])
    patch.setattr(test_checkpoint, "TRAIN", documents)
    return partial(test_checkpoint.train_in, folder, dev=documents)


@pytest.fixture
def train(tmp_path, monkeypatch):
    return _training(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training with one spike: its facts, and all bytes that count."""
    with pytest.MonkeyPatch.context() as patch:
        _jumping(patch, 0.6 * RATE)
        return _training(patch, tmp_path_factory.mktemp("whole"))("run", LONG)


def _jumping(monkeypatch, above):
    """One step at ten thousand times the rate, while the rate is above a bound."""

    def rate(settings, step, total):
        return settings.learning_rate * (10_000 if step == AT and settings.learning_rate > above else 1)

    monkeypatch.setattr(loop, "learning_rate", rate)


@pytest.mark.parametrize(("above", "count"), [(0.6 * RATE, 1), (0.3 * RATE, 2), (0.0, 2)])
def test_a_spike_is_undone_at_half_the_rate_twice_at_most(train, tmp_path, monkeypatch, caplog, above, count):
    _jumping(monkeypatch, above)
    events = test_checkpoint.Recorder()
    fitted, _ = train("run", LONG, events=events)
    assert [spike.learning_rate for spike in fitted.spikes] == [RATE * 0.5 ** (n + 1) for n in range(count)]
    messages = [record.getMessage() for record in caplog.records if "spike: loss" in record.getMessage()]
    told = [message.partition("; ")[2][:12] for message in messages]
    assert told == ["back to step"] * count + ["training wen"] * (above == 0.0)
    back = fitted.spikes[0].back_to
    table = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in table] == list(range(1, len(table) + 1))
    rates = {line["learning_rate"] for line in table[back:] if line["step"] != AT + 1}
    assert rates == {RATE * 0.5**count} and {line["learning_rate"] for line in table[2:back]} == {RATE}
    shown = []
    for line in events.table():
        shown = [*shown[: line["step"] - 1], line]
    assert shown == table and len(events.table()) > len(table)


@pytest.mark.parametrize("dying", [AT + 1, AT + 2, AT + 4])
def test_killed_around_a_spike_a_run_ends_with_the_same_bytes(train, whole, monkeypatch, dying):
    _jumping(monkeypatch, 0.6 * RATE)
    fitted, expected = whole
    with pytest.raises(KeyboardInterrupt):
        train("cut", LONG, dying=dying)
    resumed, found = train("cut", LONG)
    assert found == expected and resumed.spikes == fitted.spikes and len(fitted.spikes) == 1


def test_the_newest_goes_first_so_a_kill_on_the_way_back_leaves_what_leads_there_again(tmp_path, monkeypatch):
    layers = add_lora(test_checkpoint.make_model(), Lora(r=2), seed=0)
    optimizer = make_optimizer(layers, TrainSettings(learning_rate=0.1, tokens_per_step=80, num_train_epochs=1))
    store, metrics, done = Checkpoints(tmp_path, "x", keep=3), MetricsLog(tmp_path / "metrics.jsonl"), Progress()
    for step, loss in ((4, 1.0), (8, 1.05), (12, 1.02)):
        metrics.append({"step": step})
        done.step = step
        done.dev_losses.append(DevLoss(step=step, dev_loss=loss))
        store.save(layers, optimizer, done, metrics.path)
    spike = Spike(step=14, loss=5.0, dev_loss=2.0, back_to=4, learning_rate=0.05)
    honest, removed = checkpoint._remove, []

    def dying(directory):
        if removed:
            raise KeyboardInterrupt
        removed.append(directory)
        honest(directory)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "_remove", dying)
        store.go_back(layers, optimizer, done, spike, metrics)
    resumed = store.resume(layers, optimizer)
    assert (resumed.step, resumed.spikes) == (8, [])
    store.go_back(layers, optimizer, done, spike, metrics)
    resumed = store.resume(layers, optimizer)
    assert (resumed.step, resumed.spikes) == (4, [spike]) and read_metrics(metrics.path) == [{"step": 4}]
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000004"]


def test_other_processes_go_back_too(train, whole, monkeypatch):
    _jumping(monkeypatch, 0.6 * RATE)
    sizes = []
    monkeypatch.setattr(distributed, "Team", lambda size, *others: sizes.append(size) or Team(size, *others))
    assert train("two", {**LONG, "train.ranks": 2})[1] == whole[1] and sizes == [2]


def test_a_machine_that_a_run_went_on_at_stays_named_when_it_goes_back(train, monkeypatch):
    _jumping(monkeypatch, 0.6 * RATE)
    with pytest.raises(KeyboardInterrupt):
        train("run", LONG, dying=AT - 2)
    monkeypatch.setattr(loop, "_computing_on", lambda *_: "another machine")
    fitted, _ = train("run", LONG)
    assert fitted.computed_on[1:] == ("another machine",) and len(fitted.spikes) == 1


def test_a_hard_step_or_a_worse_dev_loss_alone_is_no_spike():
    best, flat = DevLoss(step=4, dev_loss=1.0), [1.0] * 12
    jump = [*flat[:9], 3.0, 2.0, 2.5]
    spike = find_spike(jump, 8, 1.2, best, 0.1)
    assert spike is not None and (spike.step, spike.back_to, spike.learning_rate) == (10, 4, 0.05)
    assert find_spike(jump[:10], 8, 1.2, best, 0.1) == spike  # in the last step before the dev loss
    assert find_spike(jump, 8, 1.05, best, 0.1) is None  # the dev loss did not suffer
    assert find_spike(flat, 8, 1.2, best, 0.1) is None  # no step jumped
    assert find_spike([*jump[:10], *flat[10:]], 8, 1.2, best, 0.1) is None  # it did not last
    assert find_spike([0.1 * loss for loss in jump], 8, 1.2, best, 0.1) is None  # over-fitting: far below the dev loss
    assert find_spike(jump, 12, 1.2, best, 0.1) is None  # it was before the last dev loss
