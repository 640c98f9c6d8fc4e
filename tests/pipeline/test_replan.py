"""A first step that the GPU has no room for: planned again once with what was measured, or the known error.

The model computes on the CPU, and only the planner is told of a card; the step fails as long as the policy is not one that
fits, so that nothing but another plan lets it pass.
"""

import pytest
import torch

from shared import write_recipe
from tunesmith.errors import TrainingError
from tunesmith.memory.room import CONTEXT
from tunesmith.pipeline import dials, replan
from tunesmith.pipeline import verbs as api
from tunesmith.rundir import sha256_file
from tunesmith.rundir.records.training import Training
from tunesmith.train.distributed import World

FULL = "CUDA out of memory. Tried to allocate 96.00 MiB. GPU 0 has a total capacity of 2.00 GiB of which 1.00 MiB is free."
FREE, HELD, BESIDE = 2 * 10**9, 10**9, 900 * 10**6


@pytest.fixture
def tried():
    """Policies of the steps that were tried, in order."""
    return []


@pytest.fixture
def train(tmp_path, tiny_dir, monkeypatch, tried):
    """``train(name, passes, **keys)``: a run whose planner sees a card.

    Args:
        passes: policies whose steps fit.
        fails_at: number of a step that never fits.
    """

    def make(name, passes=("none", "attention", "mlp", "layer"), card=True, fails_at=None, **keys):
        # Rows so long that a policy makes a difference.
        changes = {
            "train.ranks": 1,
            "train.max_length": 1024,
            "train.tokens_per_step": 1024,
            **{f"train.{key}": value for key, value in keys.items()},
        }
        (tmp_path / name).mkdir()
        run = api.open_run(write_recipe(tmp_path / name, tiny_dir, changes), tmp_path / name / "run")
        api.data(run)
        api.render(run)
        tried.clear()
        plain = World.gradients

        def gradients(self, number):
            policy = self._settings.recompute
            policy = policy if isinstance(policy, str) else "some layers"
            if policy not in tried:
                tried.append(policy)
            if policy not in passes or number == fails_at:
                raise torch.OutOfMemoryError(FULL)
            return plain(self, number)

        with monkeypatch.context() as patch:
            patch.setattr(World, "gradients", gradients)
            if card:
                for module in (dials, replan):
                    patch.setattr(module, "best_device", lambda: torch.device("cuda"))
                    patch.setattr(module, "usable_memory", lambda _: FREE)
                patch.setattr(dials, "device_name", lambda _: "Tesla T4")
                patch.setattr(replan, "reserved_bytes", lambda _: HELD)
                patch.setattr(replan, "context_bytes", lambda _: BESIDE)
            api.train(run)
        return run

    return make


def test_the_next_plan_trains_the_same_adapter_and_both_figures_are_said(train, tried, talk):
    plain = train("plain", card=False)
    run = train("replanned", passes=("layer", "mlp", "attention"))
    assert tried[0] == "none" and len(tried) == 2
    assert Training.read(run.training_file).recompute == tried[1]
    first, second = (sha256_file(one.adapter / "adapter_model.safetensors") for one in (plain, run))
    assert first == second, "dials change no number"
    (line,) = [line for line in talk().splitlines() if "planned again" in line]
    assert "2.00 GB or more where" in line and "foretold" in line and "0.90 GB are taken beside the allocator" in line
    assert f"where {CONTEXT / 1e9:.2f} GB were assumed" in line and f"train.recompute {tried[1]}" in line


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"recompute": "none"}, 1),
        ({"memory": "off"}, 1),
        ({}, 2),
    ],
)
def test_a_second_failure_and_dials_that_are_set_are_the_known_error(train, tried, keys, count):
    with pytest.raises(TrainingError, match=r"the GPU's memory is full: 96\.00 MiB were asked for") as caught:
        train("fails", passes=(), **keys)
    assert "train.max_length: 512" in caught.value.hint and len(tried) == count


def test_a_later_step_is_not_planned_again(train, tried, talk):
    with pytest.raises(TrainingError, match="the GPU's memory is full"):
        train("late", fails_at=1)
    assert tried == ["none"] and "planned again" not in talk()


def test_what_was_measured_takes_the_place_of_what_was_assumed():
    shortage = dials.Shortage(needed=12, foretold=10, context=3)
    assert shortage.factor == 1.2 and dials.Shortage(needed=8, foretold=10, context=3).factor == 1.0
