"""Packs are dealt out to processes, and no byte of a run depends on how many there are."""

import json
import os
import signal
from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shared import train_settings, write_recipe
from small_training import FIXED as SMALL
from small_training import bytes_of, drawn_documents
from tunesmith.data.pack import Plan
from tunesmith.errors import TrainingError
from tunesmith.models.attention import PACKED
from tunesmith.models.load import attention, load_model
from tunesmith.models.placement import Placement
from tunesmith.models.ranks import longest_first
from tunesmith.models.swap import add_lora
from tunesmith.processes import Team
from tunesmith.recipe import Lora, TrainSettings, load_recipe
from tunesmith.tracking import MetricsLog
from tunesmith.train import distributed, loop
from tunesmith.train.distributed import World, flop_of
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import pack_tokens

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 96}
FIXED = {**SMALL, "train.num_train_epochs": 2}
TRAIN, DEV = drawn_documents(0, 24), drawn_documents(1, 12)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fit_in(directory):
    """``fit_in(place, folder, changes)``: a training as the stage does it; all bytes that it leaves."""

    def run(place, folder, changes, metrics_of=MetricsLog):
        base, dtype = changes.get("base"), changes.pop("dtype", "fp32")
        (place / "recipe").mkdir(exist_ok=True)
        recipe = load_recipe(write_recipe(place / "recipe", place, {**FIXED, **changes}))
        model = load_model(directory, dtype, base, placement=Placement(resident_layers=recipe.train.resident_layers))
        layers = add_lora(model, recipe.lora, recipe.seed)
        t = TrainSettings(**recipe.train.model_dump())
        steps = Plan(TRAIN.lengths, t.num_train_epochs, t.tokens_per_step, t.max_length, recipe.seed)
        home = place / folder
        home.mkdir(exist_ok=True)
        metrics = metrics_of(home / "m.jsonl")
        fitted = loop.fit(model, layers, TRAIN, steps, DEV, t, recipe.seed, home / "checkpoints", metrics, "x")
        return fitted, bytes_of(home)

    return run


@pytest.fixture
def fit(fit_in, tmp_path):
    """``fit(folder, changes)``: the same in a folder of the test's own."""
    return partial(fit_in, tmp_path)


@pytest.fixture(scope="module")
def alone(fit_in, tmp_path_factory):
    """The bytes of the training in one process."""
    return fit_in(tmp_path_factory.mktemp("alone"), "one", {"train.ranks": 1})[1]


@pytest.fixture
def team_sizes(monkeypatch):
    """Of all teams that were made."""
    sizes = []

    class Counted(Team):
        def __init__(self, size, *others):
            sizes.append(size)
            super().__init__(size, *others)

    monkeypatch.setattr(distributed, "Team", Counted)
    return sizes


@pytest.mark.parametrize(
    "changes",
    [{}, {"base": "nf4"}, {"lora.use_dora": True, "train.recompute": "mlp", "train.deterministic": True}],
    ids=["fp32", "nf4", "dora"],
)
def test_the_number_of_processes_changes_no_byte(fit, changes, team_sizes):
    """Adapters and moments of all checkpoints, metrics, dev losses; with dropout."""
    fitted, expected = fit("one", {**changes, "train.ranks": 1})
    for ranks in (2, 3):
        again, files = fit(f"of-{ranks}", {**changes, "train.ranks": ranks})
        assert files.keys() == expected.keys()
        assert [name for name in files if files[name] != expected[name]] == []
        assert again.dev_losses == fitted.dev_losses and again.computed_on == fitted.computed_on
    assert team_sizes == [1, 2, 3] and len(fitted.dev_losses) == 3
    assert fitted.dev_losses[-1].dev_loss != fitted.dev_losses[0].dev_loss


def test_few_slots_are_gone_through_in_turns(fit, alone, monkeypatch):
    monkeypatch.setattr(distributed, "MOST_SLOTS", 2)
    assert fit("turns", {"train.ranks": 2})[1] == alone


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_run_goes_on_with_another_number_of_processes(fit, alone, ranks):
    class Dying(MetricsLog):
        def append(self, line):
            if line["step"] == 7:
                raise KeyboardInterrupt
            super().append(line)

    with pytest.raises(KeyboardInterrupt):
        fit("cut", {"train.ranks": 2}, Dying)
    assert fit("cut", {"train.ranks": ranks})[1] == alone


def test_a_run_goes_on_with_layers_that_are_streamed(fit, tmp_path, monkeypatch):
    class Dying(MetricsLog):
        def append(self, line):
            if line["step"] == 3:
                raise KeyboardInterrupt
            super().append(line)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = fit("whole", {"base": "nf4", "train.ranks": 1})[1]
    with pytest.raises(KeyboardInterrupt):
        fit("cut", {"base": "nf4", "train.ranks": 1, "train.resident_layers": 1, "train.recompute": "layer"}, Dying)
    assert fit("cut", {"base": "nf4", "train.ranks": 2, "train.resident_layers": 0})[1] == expected


def test_rows_beyond_fp16_are_counted_in_all_processes(fit, monkeypatch):
    monkeypatch.setattr("tunesmith.kernels.fp16_scaled_mm.LARGEST", 0.5)
    one, two = (fit(f"of-{ranks}", {"train.ranks": ranks, "dtype": "fp16"})[1]["m.jsonl"] for ranks in (1, 2))
    assert one == two
    assert all(json.loads(line)["fp16_rescued_rows"] > 0 for line in one.splitlines())


def test_a_killed_process_ends_the_run_with_its_name(fit, monkeypatch):
    honest = distributed.World.gradients

    def dying(world, number):
        if number == 2:
            os.kill(world._team.pids[0], signal.SIGKILL)
        return honest(world, number)

    monkeypatch.setattr(distributed.World, "gradients", dying)
    with pytest.raises(TrainingError, match=r"training process 2 of 2 .* signal 9 \(SIGKILL\).*memory") as caught:
        fit("killed", {"train.ranks": 2})
    assert "train.ranks: 1" in caught.value.hint


def test_the_longest_pack_is_first_by_arithmetic_and_not_by_tokens():
    documents = make_documents([([1] * length, [0] + [1] * (length - 1)) for length in (4000, 2000, 2000, 2000, 900)])
    packs = [make_pack(documents, chosen) for chosen in ((1, 2), (0,), (1, 3, 4), (4,))]
    order = {width: longest_first([flop_of(pack, width) for pack in packs]) for width in (64, 4096)}
    assert order[64] == [1, 2, 0, 3]  # 4,000 tokens that all see each other, before 4,900 in three documents
    assert order[4096] == [2, 1, 0, 3]
    assert flop_of(packs[1], 64) == 36 * 64 * 4000 + 7 * 4000 * 4001 / 2


@pytest.mark.parametrize(
    ("step", "longest", "most", "expected"),
    [
        (8192, 90, 2048, 512),
        (1024, 90, 2048, 256),
        (1600, 90, 2048, 400),
        (8192, 900, 2048, 900),
        (200, 90, 2048, 200),
        (230, 90, 2048, 115),
        (440, 90, 2048, 220),
        (200, 300, 2048, 300),
        (8192, 90, 128, 128),
    ],
)
def test_a_step_on_a_cpu_has_several_packs(step, longest, most, expected):
    assert pack_tokens(step, longest, most) == expected


def test_a_gpu_has_the_packs_of_the_next_step_before_its_loss_is_read(directory, monkeypatch):
    model = load_model(directory, "fp32")
    layers = add_lora(model, Lora(r=2, alpha=4, dropout=0.0), seed=0)
    steps = Plan(TRAIN.lengths, 1, 60, 64, 0)
    order, packs_of = [], distributed.step_packs
    with World(model, layers, TRAIN, steps, None, train_settings(ranks=1), 0) as world, attention(model, PACKED):
        world._device = torch.device("meta")  # any but the CPU
        monkeypatch.setattr(distributed, "step_packs", lambda *given: order.append("packs") or packs_of(*given))
        monkeypatch.setattr(torch.Tensor, "__float__", lambda x, read=torch.Tensor.__float__: order.append("read") or read(x))
        packs = world.packs(0)
        order.clear()
        world.gradients(0)
        assert order[:2] == ["packs", "read"] and world.packs(0) is packs
        order.clear()
        world.packs(1)
        assert not order
        world.packs(2)
        world.packs(0)
        assert order == ["packs", "packs"]  # no more than two steps are kept
