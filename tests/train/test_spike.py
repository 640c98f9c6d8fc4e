"""A spike is undone at half the rate, twice at most, and a run that was killed around one ends with the same bytes."""

from functools import partial

import pytest
import test_checkpoint
import torch

from tunesmith.processes import Team
from tunesmith.rundir.records.training import DevLoss
from tunesmith.tracking import read_metrics
from tunesmith.train import distributed, loop
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.documents import make_documents
from tunesmith.train.spike import find_spike

RATE = 0.03
LONG = {"train.num_train_epochs": 12, "train.learning_rate": RATE}
AT = 33  # step that jumps, when something is learned


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trainings on one text, which the tiny model learns: on random ones its loss cannot double."""
    ids = torch.randint(64, (11,), generator=torch.Generator().manual_seed(0)).tolist()
    documents = make_documents([([first, *ids], [0] * 4 + [1] * 8) for first in range(20)])
    monkeypatch.setattr(test_checkpoint, "TRAIN", documents)
    return partial(test_checkpoint.train_in, tmp_path, dev=documents)


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
    assert caplog.text.count("spike: loss") == caplog.text.count("back to step") + (above == 0.0)
    assert caplog.text.count("back to step") == count and caplog.text.count("before, and goes on") == (above == 0.0)
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
def test_killed_around_a_spike_a_run_ends_with_the_same_bytes(train, monkeypatch, dying):
    _jumping(monkeypatch, 0.6 * RATE)
    whole, expected = train("whole", LONG)
    with pytest.raises(KeyboardInterrupt):
        train("cut", LONG, dying=dying)
    resumed, found = train("cut", LONG)
    assert found == expected and len(resumed.spikes) == len(whole.spikes) == 1


def test_killed_on_the_way_back_a_run_ends_with_the_same_bytes(train, monkeypatch):
    _jumping(monkeypatch, 0.6 * RATE)
    kept = {**LONG, "train.keep_checkpoints": 3}
    _, expected = train("whole", kept)

    def killed(self, layers, optimizer, done, spike, metrics):
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", _interrupt)
            return honest(self, layers, optimizer, done, spike, metrics)

    honest = Checkpoints.go_back
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "go_back", killed)
        train("cut", kept)
    assert train("cut", kept)[1] == expected


def _interrupt(*_):
    raise KeyboardInterrupt


def test_other_processes_go_back_too(train, monkeypatch):
    _jumping(monkeypatch, 0.6 * RATE)
    _, expected = train("one", LONG)
    sizes = []
    monkeypatch.setattr(distributed, "Team", lambda size, *others: sizes.append(size) or Team(size, *others))
    assert train("two", {**LONG, "train.ranks": 2})[1] == expected and sizes == [2]


def test_a_machine_that_a_run_went_on_at_stays_named_when_it_goes_back(train, monkeypatch):
    _jumping(monkeypatch, 0.6 * RATE)
    with pytest.raises(KeyboardInterrupt):
        train("run", LONG, dying=AT - 2)
    monkeypatch.setattr(distributed, "shape_of", lambda *_: distributed.Shape(1, 2, "another machine"))
    fitted, _ = train("run", LONG)
    assert len(fitted.computed_on) == 2 and len(fitted.spikes) == 1


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
