"""Processes that were launched together make the training of one, end together, and go on with any number."""

import json
import math
import os
import signal
import sys
import time
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from launched import launched
from shared import write_recipe
from small_training import FIXED as SMALL
from small_training import bytes_of, drawn_documents
from tunesmith.data.pack import Plan
from tunesmith.errors import RunError
from tunesmith.launch import group as connections
from tunesmith.launch.group import Group, Order, group
from tunesmith.launch.variables import launch
from tunesmith.models.fuse import fuse
from tunesmith.models.load import load_model
from tunesmith.models.placement import Placement
from tunesmith.models.ranks import deal
from tunesmith.models.swap import add_lora
from tunesmith.pipeline.follow import run_together
from tunesmith.recipe import TrainSettings, load_recipe
from tunesmith.tracking import MetricsLog
from tunesmith.train import distributed, loop
from tunesmith.train.distributed import World
from tunesmith.train.loop import FirstStepFull
from tunesmith.train.together import END, Together

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}
FIXED = {**SMALL, "train.num_train_epochs": 3, "train.ranks": 1}
NF4 = {"base": "nf4"}
SLOW = {"train.learning_rate": 1e-3}  # so that a last digit stays one
SHORT = {"train.num_train_epochs": 1}
TRAIN, DEV = drawn_documents(0, 24), drawn_documents(1, 12)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """``training(folder, changes, metrics)``: what each process does; the first trains, the others follow."""
    home = tmp_path_factory.mktemp("training")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2)).save_pretrained(home / "model")

    def run(folder, changes=None, metrics_of=MetricsLog):
        own = folder / f"recipe-{os.getpid()}"  # nobody reads what another one is writing
        own.mkdir(parents=True)
        recipe = load_recipe(write_recipe(own, own, {**FIXED, **(changes or {})}))
        shard = recipe.train.shard and group() is not None
        placement = Placement(resident_layers=recipe.train.resident_layers, shard=shard)
        model = load_model(home / "model", "fp32", recipe.base, placement=placement)
        layers = add_lora(model, recipe.lora, recipe.seed)
        t = TrainSettings(**recipe.train.model_dump())
        fuse(model)
        steps = Plan(TRAIN.lengths, t.num_train_epochs, t.tokens_per_step, t.max_length, recipe.seed)
        connection = group()
        if connection is not None and not connection.leads:
            with World(model, layers, TRAIN, steps, DEV, t, recipe.seed, connection) as world:
                return world.follow()
        left = folder / "left"
        left.mkdir(exist_ok=True)
        metrics = metrics_of(left / "m.jsonl")
        loop.fit(model, layers, TRAIN, steps, DEV, t, recipe.seed, left / "checkpoints", metrics, "x", connection)
        if connection is not None:
            connection.order(Order(END, 0))

    return run


@pytest.fixture(scope="module")
def alone_with(training, tmp_path_factory):
    """``alone_with(changes)``: the folder of the training in one process, made once."""

    @cache
    def made(changes):
        folder = tmp_path_factory.mktemp("alone")
        training(folder, dict(changes))
        return folder

    return lambda changes: made(tuple(changes.items()))


@pytest.fixture(scope="module")
def alone(alone_with):
    """The files of the training in one process."""
    return _files(alone_with({}))


def _files(folder):
    return bytes_of(folder / "left")


def _same_but_for_the_order_of_sums(folder, alone):
    """Losses and gradients of a training and of one in a process alone, step by step."""
    lines, expected = ([*map(json.loads, _files(place)["m.jsonl"].splitlines())] for place in (folder, alone))
    assert len(lines) == len(expected) >= 10
    for line, one in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert line["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


class Dying(MetricsLog):
    """Interrupts the process that writes it."""

    def append(self, record):
        if record["step"] == 4:
            raise KeyboardInterrupt("at step 4")
        super().append(record)


@pytest.mark.parametrize(("size", "changes"), [(2, {}), (4, {}), (2, NF4)], ids=["2", "4", "2-nf4"])
def test_the_number_of_processes_changes_no_byte(training, alone_with, tmp_path, size, changes):
    """Adapters and moments of all checkpoints, metrics, dev losses; with dropout."""
    ended = launched(size, lambda _: training(tmp_path / "run", changes), tmp_path)
    assert [end.code for end in ended] == [0] * size, ended
    assert _files(tmp_path / "run") == _files(alone_with(changes))


@pytest.mark.parametrize("size", [2, 4])
def test_sums_of_each_process_are_those_of_one(training, alone_with, tmp_path, monkeypatch, size):
    """As between GPUs: losses and gradients are equal but for the order of additions, over ten steps and more."""
    alone = alone_with(SLOW)
    monkeypatch.setattr(distributed, "EXACT_ON_CPU", False)
    ended = launched(size, lambda _: training(tmp_path / "run", SLOW), tmp_path)
    assert [end.code for end in ended] == [0] * size, ended
    _same_but_for_the_order_of_sums(tmp_path / "run", alone)
    states = [state for name, state in _files(tmp_path / "run").items() if name.endswith("state.json")]
    assert {*states[-1]["computed_on"]} == {f"cpu with 1 thread, sums of {size} processes"}


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "sums"])
@pytest.mark.parametrize(("size", "resident"), [(2, "all"), (3, 1)])
def test_layers_that_are_shared_out_change_no_byte(training, alone_with, tmp_path, monkeypatch, exact, size, resident):
    """Each process holds a share of every layer but the first ``resident``, and all go through as many packs."""
    alone = alone_with(NF4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(distributed, "EXACT_ON_CPU", exact)
    changes = {**NF4, "train.shard": True, "train.resident_layers": resident}
    ended = launched(size, lambda _: training(tmp_path / "run", changes), tmp_path)
    assert [end.code for end in ended] == [0] * size, ended
    lines, expected = ([*map(json.loads, _files(place)["m.jsonl"].splitlines())] for place in (tmp_path / "run", alone))
    assert [line["loss"] for line in lines] == pytest.approx([one["loss"] for one in expected], rel=0.0 if exact else 1e-6)
    assert not exact or _files(tmp_path / "run") == _files(alone)


@pytest.mark.parametrize(("size", "part"), [(2, 2), (4, 4), (4, 2)])
def test_rows_over_several_processes_have_the_gradients_of_one(training, alone_with, tmp_path, size, part):
    """Each has a run of the tokens, and in attention some heads; with one key/value head for two of them, and for four."""
    changes = {"lora.dropout": 0.0, **SLOW}
    alone = alone_with(changes)
    changes |= {"train.sequence_parallel": part}
    ended = launched(size, lambda _: training(tmp_path / "run", changes), tmp_path)
    assert [end.code for end in ended] == [0] * size, ended
    _same_but_for_the_order_of_sums(tmp_path / "run", alone)


def test_a_training_goes_on_with_other_numbers_of_processes(training, alone, tmp_path):
    """Four, then two, then three."""

    class DyingLater(MetricsLog):
        def append(self, record):
            if record["step"] == 9:
                raise KeyboardInterrupt("at step 9")
            super().append(record)

    for size, metrics_of in ((4, Dying), (2, DyingLater), (3, MetricsLog)):
        ended = launched(size, lambda _: _ending(lambda: training(tmp_path / "run", {}, metrics_of)), tmp_path)  # noqa: B023
        assert (ended[0].code == 0) == (metrics_of is MetricsLog), ended
    assert _files(tmp_path / "run") == alone


def test_all_fail_with_one_that_is_killed_and_the_next_start_ends_with_the_same_bytes(training, alone, tmp_path, monkeypatch):
    whole = Together._step

    def killed(self, number):
        if number == 6 and self._group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, number)

    monkeypatch.setattr(Together, "_step", killed)
    ended = launched(3, lambda _: _ending(lambda: training(tmp_path / "run")), tmp_path)
    assert ended[1].code == -signal.SIGKILL, ended
    for end in (ended[0], ended[2]):
        assert end.code == 1 and "goes on" in end.said and "rank 1 of 3" in end.said and "is gone" in end.said, ended
    monkeypatch.undo()
    assert [end.code for end in launched(2, lambda _: training(tmp_path / "run"), tmp_path)] == [0, 0]
    assert _files(tmp_path / "run") == alone


def test_all_fail_with_the_reason_of_one_that_fails(tmp_path):
    def work(rank):
        def lead():
            connection = group()
            assert connection is not None
            connection.send({"kind": "train", "run": str(tmp_path / "nowhere")})
            connection.order(Order(END, 0))

        run_together(lead)

    ended = launched(2, work, tmp_path)
    assert [end.code for end in ended] == [1, 1]
    assert "no run here" in ended[1].said
    assert "rank 1 of 2" in ended[0].said and "no run here" in ended[0].said


def test_all_name_the_first_that_fails(tmp_path):
    """And not one that fails because of it."""

    def work(rank):
        connection = group()
        assert connection is not None

        def own():
            if rank == 2:
                raise RunError("the disk is full")
            connection.wait_for_all()

        _ending(own)

    ended = launched(3, work, tmp_path)
    assert [end.code for end in ended] == [1, 1, 1]
    for end in ended[:2]:
        said = end.said.splitlines()[0]
        assert said.startswith("rank 2 of 3 (") and said.endswith("failed, so all end: the disk is full"), ended


@pytest.mark.parametrize("has_launcher", [False, True], ids=["by hand", "a launcher keeps the store"])
def test_a_process_may_make_two_runs(tmp_path, has_launcher):
    """What was said at the first meeting is nothing that the second one hears."""
    led = []

    def work(rank):
        for number in range(2):
            run_together(lambda: led.append(number))  # noqa: B023
        assert led == ([] if rank else [0, 1])

    ended = launched(3, work, tmp_path, has_launcher=has_launcher)
    assert [end.code for end in ended] == [0, 0, 0], ended


@pytest.mark.parametrize("rank", [0, 1])
def test_where_memory_ends_in_one_the_first_process_says_what_is_next(training, tmp_path, monkeypatch, rank):
    """As between GPUs: nobody waits for an exchange that will not be."""
    whole = Together._backward

    def full(self, step, number, pack, total):
        if self._group.rank == rank:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, step, number, pack, total)

    def work(_):
        try:
            training(tmp_path / "run", SHORT)
        except FirstStepFull as error:
            connection = group()
            assert connection is not None and str(error).endswith(f"rank {rank} is full; its log says more" if rank else "GiB")
            connection.order(Order(END, 0))

    monkeypatch.setattr(distributed, "EXACT_ON_CPU", False)
    monkeypatch.setattr(Together, "_backward", full)
    ended = launched(2, work, tmp_path)
    assert [end.code for end in ended] == [0, 0], ended


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "sums"])
def test_whoever_computes_for_long_is_not_taken_for_dead(training, tmp_path, monkeypatch, exact):
    whole = Together._backward

    def slow(self, step, number, pack, total):
        if self._group.rank == 1 and step == number == 0:
            time.sleep(3)
        return whole(self, step, number, pack, total)

    monkeypatch.setattr(distributed, "EXACT_ON_CPU", exact)
    monkeypatch.setattr(connections, "ANSWER", timedelta(seconds=2))
    monkeypatch.setattr(Together, "_dealt", lambda self, packs: [list(range(1, len(packs))), [0]])
    monkeypatch.setattr(Together, "_backward", slow)
    ended = launched(2, lambda _: training(tmp_path / "run", SHORT), tmp_path)
    assert [end.code for end in ended] == [0, 0], ended


@pytest.mark.parametrize(
    "changes",
    [{"train.sequence_parallel": 2, "lora.dropout": 0.0}, {"base": "nf4", "train.shard": True}],
    ids=["parts", "shard"],
)
def test_a_dev_loss_that_is_not_finite_is_told_where_none_may_compute_alone(training, tmp_path, monkeypatch, changes):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(World, "dev_loss", lambda self: math.nan)
    ended = launched(2, lambda _: _ending(lambda: training(tmp_path / "run", SHORT | changes)), tmp_path)
    assert [end.code for end in ended] == [1, 1], ended
    assert all("dev loss after step 0 is nan on the dev rows" in end.said for end in ended), ended


def test_a_model_that_mixes_tokens_beside_attention_is_refused(training, tmp_path, monkeypatch):
    """A state that runs on over the row: a process would begin it anew in the middle."""

    whole = fuse

    def with_a_state(model):
        whole(model)
        model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, out: out + out.cumsum(1))

    monkeypatch.setattr(sys.modules[__name__], "fuse", with_a_state)
    changes = SHORT | {"train.sequence_parallel": 2, "lora.dropout": 0.0}
    ended = launched(2, lambda _: _ending(lambda: training(tmp_path / "run", changes)), tmp_path)
    assert [end.code for end in ended] == [1, 1], ended
    assert all("this model mixes tokens outside of attention" in end.said for end in ended), ended


def test_one_that_never_comes_is_named(tmp_path):
    def work(rank):
        as_one = launch()
        assert as_one is not None
        Group(as_one, timedelta(seconds=1))

    ended = launched(3, work, tmp_path, missing=(2,))
    assert [end.code for end in ended] == [1, 1]
    assert all("rank 2 never came, in 1 seconds" in end.said for end in ended), ended


def test_items_are_dealt_evenly_and_alike():
    """The longest first to whoever has least; the most loaded has at most 3 % more than the mean of 64 documents' packs."""
    generator = torch.Generator().manual_seed(0)
    costs = (torch.rand(64, generator=generator) * 400 + 100).tolist()
    for size in (2, 4, 8):
        dealt = deal(costs, size)
        assert sorted(item for items in dealt for item in items) == list(range(64))
        loads = [sum(costs[item] for item in items) for items in dealt]
        assert max(loads) <= 1.03 * sum(loads) / size
    assert deal([5.0, 4.0, 3.0, 3.0, 3.0], 2) == [[0, 3], [1, 2, 4]]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2"}, "without RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "numbered from 0"),
        ({"WORLD_SIZE": "two", "RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "found 'two'"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=words):
        launch()


def _ending(work):
    """As a run does: a process that fails tells the others."""
    connection = group()
    assert connection is not None
    try:
        work()
    except BaseException as error:
        connection.fail(str(error))
        raise
