"""A race of three rates chooses one, and the training after it is to the byte the one at which that rate was given by hand."""

import math

import pytest
import test_checkpoint
from test_checkpoint import DEV, TRAIN

from shared import write_recipe
from tunesmith.data.pack import Plan
from tunesmith.errors import TrainingError
from tunesmith.models.adapter import adapter_state
from tunesmith.models.swap import add_lora
from tunesmith.processes import Team
from tunesmith.recipe import TrainSettings, load_recipe
from tunesmith.rundir.records.training import RaceState
from tunesmith.tracking import MetricsLog, attached
from tunesmith.train import distributed, loop
from tunesmith.train.race import FACTORS, race, steps_of_race
from tunesmith.train.schedule import learning_rate

RATE = 0.02
FIXED = {
    "train.tokens_per_step": 80,
    "train.max_length": 40,
    "train.num_train_epochs": 3,
    "train.evals_per_epoch": 1,
    "train.learning_rate": RATE,
    "lora.dropout": 0.1,
}


@pytest.fixture
def run(tmp_path):
    """``run(folder, changes)``: race, then train, as the stage does it; race, training, and all bytes that count."""

    def race_and_fit(folder, changes, inputs="x"):
        (tmp_path / "recipe").mkdir(exist_ok=True)
        recipe = load_recipe(write_recipe(tmp_path / "recipe", tmp_path, {**FIXED, "train.race": True, **changes}))
        model = test_checkpoint.make_model()
        layers = add_lora(model, recipe.lora, recipe.seed)
        t = TrainSettings(**recipe.train.model_dump())
        steps = Plan(TRAIN.lengths, t.num_train_epochs, t.tokens_per_step, t.max_length, recipe.seed)
        home = tmp_path / folder
        home.mkdir(exist_ok=True)
        before = {name: tensor.clone() for name, tensor in adapter_state(layers).items()}
        run.events.clear()
        with attached(run.events):
            outcome = race(model, layers, TRAIN, steps, DEV, t, recipe.seed, home / "checkpoints", inputs)
            assert all(bool((tensor == before[name]).all()) for name, tensor in adapter_state(layers).items())
            assert not run.events.table()  # the table is that of the training
            if outcome is not None:
                t = t.model_copy(update={"learning_rate": outcome.learning_rate})
            metrics = MetricsLog(home / "metrics.jsonl")
            fitted = loop.fit(
                model, layers, TRAIN, steps, DEV, t, recipe.seed, home / "checkpoints", metrics, f"{t.learning_rate}"
            )
        return outcome, fitted, test_checkpoint.bytes_of(fitted, home)

    run = race_and_fit
    run.events, run.folder = test_checkpoint.Recorder(), tmp_path
    return run


def _by_hand(run, rate):
    outcome, fitted, expected = run(f"by hand {rate}", {"train.race": False, "train.learning_rate": rate})
    assert outcome is None
    return fitted, expected


@pytest.mark.parametrize("ranks", [1, 2])
def test_it_trains_what_the_rate_given_by_hand_trains(run, ranks, monkeypatch, talk):
    sizes = []
    monkeypatch.setattr(distributed, "Team", lambda size, *others: sizes.append(size) or Team(size, *others))
    outcome, _, found = run("raced", {"train.ranks": ranks})
    assert sizes == [ranks, ranks]
    _, expected = _by_hand(run, outcome.learning_rate)
    assert found == expected
    assert [entry.learning_rate for entry in outcome.entries] == [RATE * factor for factor in FACTORS]
    losses = {entry.dev_loss: entry.learning_rate for entry in outcome.entries}
    assert len(losses) == 3 and outcome.learning_rate == losses[min(losses)]
    said = talk()
    assert all(f"rate {rate:g}: dev loss {loss:.4f} after 5 of {3 * 4} steps" in said for loss, rate in losses.items())


def test_a_rate_is_tried_as_the_whole_training_would_begin(run, monkeypatch):
    """Its dev loss is the one of a training at that rate, of all steps, at the end of the race."""
    monkeypatch.setattr(loop, "_eval_steps", lambda *_: {steps_of_race(12), 12})
    outcome, _, _ = run("raced", {})
    for entry in outcome.entries:
        fitted, _ = _by_hand(run, entry.learning_rate)
        assert {loss.step: loss.dev_loss for loss in fitted.dev_losses}[outcome.steps] == entry.dev_loss


@pytest.mark.parametrize("step", [2, 7, 13])
def test_killed_in_a_race_it_ends_with_the_same_bytes(run, monkeypatch, step):
    expected = run("whole", {})
    honest, calls = loop._optimizer_step, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return honest(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "_optimizer_step", counted)
        run("cut", {})
    through = (step - 1) // 5
    state = run.folder / "cut" / "checkpoints" / "race.json"
    assert (len(RaceState.read(state).entries) if through else state.exists()) == through
    calls.clear()
    step = math.inf
    monkeypatch.setattr(loop, "_optimizer_step", counted)
    outcome, _, found = run("cut", {})
    assert (outcome, found) == (expected[0], expected[2]) and len(calls) == 5 * (3 - through) + 12
    calls.clear()
    assert run("cut", {})[0] == outcome and not calls  # what is over is only read


def test_another_race_or_a_damaged_file_begins_anew(run, talk):
    outcome, _, _ = run("run", {})
    other, _, _ = run("run", {"train.learning_rate": 2 * RATE}, inputs="other")
    assert [entry.learning_rate for entry in other.entries] == [2 * RATE * factor for factor in FACTORS]
    state = run.folder / "run" / "checkpoints" / "race.json"
    state.write_text(state.read_text()[:40])
    talk()
    assert run("run", {})[0] == outcome and "race.json: damaged, so the race begins anew" in talk()


@pytest.mark.parametrize("where", ["loss", "last update"])
def test_a_rate_that_is_not_finite_has_lost_and_leaves_no_trace(run, monkeypatch, where, talk):
    """In a step, whose gradients must not reach the next rate's; or in the weights that the last step of the race left."""

    def rate(settings, step, total):
        broken = settings.learning_rate == RATE / 2 and (step == 1 if where == "loss" else step == 4)
        return 1e38 if broken else learning_rate(settings, step, total)

    monkeypatch.setattr(loop, "learning_rate", rate)
    outcome, _, found = run("raced", {})
    first, *others = outcome.entries
    assert first.dev_loss is None and outcome.learning_rate in [entry.learning_rate for entry in others]
    assert "rate 0.01 is out: " in talk() and "0.01: not finite" in outcome.words
    assert found == _by_hand(run, outcome.learning_rate)[1]


def test_a_race_without_a_winner_is_an_error_and_is_run_again(run, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(TrainingError, match=r"no rate of 0\.01, 0\.02, 0\.04 kept") as caught:
        patch.setattr(loop, "learning_rate", lambda *_: 1e38)
        run("run", {})
    assert "train.learning_rate" in caught.value.hint
    assert run("run", {})[0].learning_rate in (0.01, 0.02, 0.04)


def test_a_race_takes_a_tenth_of_the_steps_five_at_least_and_no_more_than_there_are():
    assert [steps_of_race(total) for total in (3, 5, 12, 50, 51, 150)] == [3, 5, 5, 5, 6, 15]
