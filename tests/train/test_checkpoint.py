"""Whatever happened in a run directory before, training ends with the bytes of an undisturbed run, or says what it cannot."""

import itertools
import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shared import write_recipe
from tunesmith.data.pack import Plan
from tunesmith.errors import TrainingError
from tunesmith.layers.lora import LoRALinear
from tunesmith.models.adapter import load_adapter_state, read_adapter
from tunesmith.models.swap import add_lora
from tunesmith.recipe import TrainSettings, load_recipe
from tunesmith.rundir.records.events import Metric
from tunesmith.rundir.records.training import CheckpointState, Step
from tunesmith.tracking import MetricsLog, attached, read_metrics
from tunesmith.train import distributed, loop
from tunesmith.train.documents import make_documents

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
SIZES |= {"initializer_range": 0.2}


def _documents(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return make_documents([(torch.randint(64, (12,), generator=generator).tolist(), [0] * 4 + [1] * 8) for _ in range(count)])


def make_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).requires_grad_(False).eval()


TRAIN, DEV = _documents(0, 20), _documents(1, 6)
SIX = {"train.num_train_epochs": 6, "train.learning_rate": 0.03}  # dev loss of random rows is lowest early
FIVE = {"train.num_train_epochs": 5, "train.learning_rate": 0.02}
ONE = {**SIX, "train.num_train_epochs": 1}
WIDE = {**SIX, "lora.r": 8}


class Recorder(list):
    """A sink that keeps the events of the last training."""

    write = list.append

    def table(self):
        """The lines of ``metrics.jsonl`` as the events give them."""
        metrics = [event for event in self if isinstance(event, Metric)]
        return [
            {"step": event.step} | {name: value for name, value in event.figures.items() if name != "seconds"}
            for event in metrics
        ]


def train_in(home, folder, changes, dying=None, dev=DEV, events=None):
    """A whole training in a folder, as the stage does it; its facts, and all bytes that count."""
    (home / "recipe").mkdir(exist_ok=True)
    fixed = {"train.tokens_per_step": 80, "train.max_length": 40, "train.schedule": "constant", "lora.dropout": 0.1}
    recipe = load_recipe(write_recipe(home / "recipe", home, {**fixed, "train.evals_per_epoch": 1, **changes}))
    model = make_model()
    layers = add_lora(model, recipe.lora, recipe.seed)
    t = recipe.train
    steps = Plan(TRAIN.lengths, t.num_train_epochs, t.tokens_per_step, t.max_length, recipe.seed)
    directory = home / folder
    directory.mkdir(exist_ok=True)
    metrics = MetricsLog(directory / "metrics.jsonl")
    if dying is not None:
        metrics.append = _dying(metrics.append, dying)
    inputs = json.dumps(changes, sort_keys=True)
    with attached(Recorder() if events is None else events):
        settings = TrainSettings(**t.model_dump())
        fitted = loop.fit(model, layers, TRAIN, steps, dev, settings, recipe.seed, directory / "checkpoints", metrics, inputs)
    load_adapter_state(layers, read_adapter(fitted.checkpoint))
    return fitted, bytes_of(fitted, directory)


@pytest.fixture
def train(tmp_path):
    """``train(folder, changes)``: a training in a folder of the test's; ``train.events`` are those of the last one."""

    def run(folder, changes, **options):
        run.events.clear()
        return train_in(tmp_path, folder, changes, events=run.events, **options)

    run.folder, run.events = tmp_path, Recorder()
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A training by ``SIX`` from its beginning to its end: its folder, its facts, and all bytes that count."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder / "run", *train_in(folder, "run", SIX)


@pytest.fixture
def whole(train, undisturbed):
    """The same in ``run`` of the test's own folder."""
    directory, fitted, expected = undisturbed
    shutil.copytree(directory, train.folder / "run")
    return replace(fitted, checkpoint=train.folder / "run" / "checkpoints" / fitted.checkpoint.name), expected


def _dying(append, step):
    def killed(record):
        if record["step"] == step:
            raise KeyboardInterrupt
        append(record)

    return killed


def bytes_of(fitted, directory):
    """Adapter, metrics and all facts of the training but the time that it took."""
    adapter, metrics = (
        (fitted.checkpoint / "adapter_model.safetensors").read_bytes(),
        (directory / "metrics.jsonl").read_bytes(),
    )
    return adapter, metrics, fitted.dev_losses, fitted.best, fitted.overfit, fitted.computed_on, fitted.spikes


@pytest.mark.parametrize("other", [FIVE, ONE, WIDE], ids=["five", "one", "wide"])
def test_a_directory_trained_otherwise_in_between_ends_with_the_first_recipes_bytes(train, whole, other, caplog):
    caplog.set_level(logging.INFO, "tunesmith")
    fitted, expected = whole
    assert 0 < fitted.best.step < fitted.dev_losses[-1].step  # the best is not the newest, as in the accident
    train("run", other)
    assert "checkpoints of other inputs, not resumed from" in caplog.text
    assert "of other inputs than what is trained now" in caplog.text  # replaced or removed
    assert train("run", SIX)[1] == expected
    steps = [Step.parse(line) for line in (train.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step.step for step in steps] == list(range(1, fitted.dev_losses[-1].step + 1))


@pytest.mark.parametrize(("step", "resumed"), [(1, 16), (7, 16), (14, None)])
def test_a_training_that_was_begun_with_the_wrong_recipe_costs_what_it_wrote_over(train, undisturbed, step, resumed, caplog):
    caplog.set_level(logging.INFO, "tunesmith")
    *_, expected = undisturbed
    with pytest.raises(KeyboardInterrupt):
        train("run", SIX, dying=20)
    with pytest.raises(KeyboardInterrupt):
        train("run", FIVE, dying=step)
    caplog.clear()
    assert train("run", SIX)[1] == expected
    assert train.events.table() == read_metrics(train.folder / "run" / "metrics.jsonl")  # whatever was said before
    assert (f"resuming after step {resumed} " in caplog.text) == (resumed is not None)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _edit(directory, **changes):
    """A checkpoint of other shapes or another step that is consistent in itself."""
    state = json.loads((directory / "state.json").read_text())
    (directory / "state.json").write_text(json.dumps({**state, **changes}))


def _of_other_rank(directory, train):
    """Another recipe's files under this one's inputs and hashes."""
    fitted, _ = train("other", WIDE)
    inputs = CheckpointState.read(directory / "state.json").inputs
    step = directory.name
    shutil.rmtree(directory)
    shutil.copytree(fitted.checkpoint, directory)
    _edit(directory, inputs=inputs, step=int(step.removeprefix("step-")))


DAMAGE = {
    "adapter": (lambda d, _: _flip(d / "adapter_model.safetensors"), "adapter_model.safetensors is not what was written"),
    "optimizer": (lambda d, _: _flip(d / "optimizer.safetensors"), "optimizer.safetensors is not what was written"),
    "metrics": (lambda d, _: _flip(d / "metrics.jsonl"), "metrics.jsonl is not what was written"),
    "torn state": (lambda d, _: (d / "state.json").write_text('{"inputs": "'), "damaged, passed over"),
    "state of another version": (lambda d, _: _edit(d, version=7), "version 7, expected 1"),
    "no state": (lambda d, _: (d / "state.json").unlink(), "not there"),
    "no optimizer": (lambda d, _: (d / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
    "no adapter": (lambda d, _: (d / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
    "empty": (lambda d, _: [file.unlink() for file in d.iterdir()], "not there"),
    "another step": (lambda d, _: _edit(d, step=1), "state.json is of step 1"),
    "another rank": (_of_other_rank, "has shape"),
    "gone": (lambda d, _: shutil.rmtree(d), ""),
}


@pytest.mark.parametrize(
    ("which", "kind"),
    [*itertools.product(["newest", "best"], DAMAGE), *itertools.product(["both"], ["adapter", "torn state", "gone"])],
)
def test_damage_of_any_kind_is_named_and_the_run_ends_as_undisturbed(train, whole, kind, which, caplog):
    fitted, expected = whole
    damage, message = DAMAGE[kind]
    directories = sorted((train.folder / "run" / "checkpoints").iterdir())
    assert directories[0] == fitted.checkpoint and len(directories) == 2
    for directory in {"newest": directories[1:], "best": directories[:1], "both": directories}[which]:
        damage(directory, train)
    caplog.clear()
    assert train("run", SIX)[1] == expected
    assert message in caplog.text
    if which == "best":
        assert "its best checkpoint" in caplog.text
    assert sorted(path.name for path in (train.folder / "run" / "checkpoints").iterdir()) == [d.name for d in directories]


@pytest.mark.parametrize("keep", [1, 3, 100])
def test_the_best_and_the_newest_are_kept(train, keep):
    fitted, expected = train("run", {**SIX, "train.keep_checkpoints": keep})
    steps = [entry.step for entry in fitted.dev_losses]
    expected = {fitted.best.step, *steps[-keep:]}
    assert {path.name for path in (train.folder / "run" / "checkpoints").iterdir()} == {f"step-{n:06d}" for n in expected}


def test_a_finished_training_is_only_read_again(train, whole, monkeypatch):
    first, expected = whole
    monkeypatch.setattr(loop, "_optimizer_step", None)
    again, found = train("run", SIX)
    assert found == expected and again.tokens_per_second == first.tokens_per_second > 0


def test_a_resume_with_other_threads_is_said_and_recorded(train, undisturbed, caplog, monkeypatch):
    _, reference, expected = undisturbed
    with pytest.raises(KeyboardInterrupt):
        train("run", SIX, dying=20)
    monkeypatch.setattr(distributed, "shape_of", lambda *_: distributed.Shape(1, 2, "another machine"))
    elsewhere, _ = train("run", SIX)
    begun, went_on = elsewhere.computed_on
    assert begun in caplog.text and f"resuming on {went_on}" in caplog.text and begun != went_on
    assert elsewhere.best.dev_loss == pytest.approx(expected[3].dev_loss, rel=1e-4)
    caplog.clear()
    assert train("run", SIX)[0].computed_on == (begun, went_on) and "resuming on" not in caplog.text
    assert reference.computed_on == (begun,)


def test_a_run_that_only_got_worse_keeps_the_untouched_adapter(train, caplog):
    """Dev rows that the base itself would write, and train rows of noise."""
    model, rows = make_model(), []
    for first in range(6):
        ids = [first]
        while len(ids) < 12:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        rows.append((ids, [0] * 4 + [1] * 8))
    fitted, _ = train("run", SIX, dev=make_documents(rows))
    assert fitted.only_worse and fitted.best.step == 0 and "the untouched adapter is kept" in caplog.text
    assert all(not tensor.any() for name, tensor in read_adapter(fitted.checkpoint).items() if "lora_B" in name)
    assert fitted.best.dev_loss == fitted.dev_losses[0].dev_loss < min(entry.dev_loss for entry in fitted.dev_losses[1:])


@pytest.mark.parametrize("rate", [1e20, 1e38])
def test_what_is_not_finite_after_the_very_last_step_is_an_error(train, rate, monkeypatch):
    last = Plan(TRAIN.lengths, 1, 80, 40, 0).epoch_ends[-1]
    monkeypatch.setattr(loop, "learning_rate", lambda _, step, total: rate if step == total - 1 else 1e-3)
    with pytest.raises(TrainingError, match=rf"step {last}\b.*(NaN|nan|inf)") as caught:
        train("run", ONE)
    assert caught.value.exit_code == 8 and "learning_rate" in caught.value.hint
    assert [path.name for path in (train.folder / "run" / "checkpoints").iterdir()] == ["step-000000"]


def test_a_dev_loss_that_is_not_finite_names_its_rows(train, monkeypatch):
    honest = distributed.mean_loss

    def broken(model, packs):
        dead = [DEV.ids(4)[0] in pack.ids_1T[0] and len(pack.spans) == 1 for pack in packs]
        return float("nan") if len(packs) > 1 or any(dead) else honest(model, packs)

    monkeypatch.setattr(distributed, "mean_loss", broken)
    monkeypatch.setattr(loop, "mean_loss", broken)
    with pytest.raises(TrainingError, match=r"dev loss after step 0 is nan on dev rows .*4"):
        train("run", ONE)


def test_steps_one_by_one_are_those_of_a_whole_training(train, tmp_path):
    """The loop that people drive themselves, with answers asked for in between."""
    fitted, _ = train("run", ONE)
    recipe = load_recipe(tmp_path / "recipe" / "toy.yaml")
    model = make_model()
    layers = add_lora(model, recipe.lora, recipe.seed)
    steps = Plan(TRAIN.lengths, 1, recipe.train.tokens_per_step, recipe.train.max_length, recipe.seed)
    records = []
    for record in loop.train_steps(model, layers, TRAIN, steps, recipe.train, recipe.seed, dev=DEV):
        torch.rand(3)
        model(torch.tensor([[1, 2, 3]]))  # stock attention, evaluation mode
        records.append(record)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record.line() for record in records] == lines
    assert records[-1].dev_loss == fitted.dev_losses[-1].dev_loss and all(record.seconds > 0 for record in records)
    assert not any(module.training for module in model.modules() if isinstance(module, LoRALinear))
