"""Dropout follows from seed, step, pack and layer, and from nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tunesmith.layers.context import Counters, PackContext, StepContext, at_step
from tunesmith.layers.dropout import draw_mask
from tunesmith.layers.lora import LoRALinear

NUMBERS = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**40), st.integers(0, 2**20), st.integers(0, 2**20))


def _seed(seed, step, pack, index):
    return PackContext(seed=seed, step=step, pack=pack, counters=Counters()).dropout_seed(index)


@given(NUMBERS, NUMBERS)
def test_each_place_of_each_pack_has_a_seed_of_its_own_that_a_generator_takes(first, second):
    assert (_seed(*first) == _seed(*second)) == (first == second)
    torch.Generator().manual_seed(_seed(*first))


def test_masks_of_neighbouring_packs_steps_and_layers_do_not_resemble_each_other():
    shape = torch.empty(400, 250)
    neighbours = ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    masks = [draw_mask(shape, 0.5, _seed(*where)) == 0 for where in neighbours]
    for number, mask in enumerate(masks):
        for other in masks[:number]:  # 100,000 fair draws: five standard deviations are 0.008
            assert abs((mask == other).float().mean().item() - 0.5) < 0.008


@pytest.mark.parametrize("training", [True, False])
def test_layers_are_as_they_were_after_a_step_that_failed(training):
    model = nn.Sequential(LoRALinear(nn.Linear(3, 3), 2, 1.0, 0.5), nn.Dropout(0.5), LoRALinear(nn.Linear(3, 3), 2, 1.0, 0.5))
    model.train(training)
    with pytest.raises(KeyboardInterrupt), at_step(model, StepContext(seed=0, step=0)) as enter:
        enter(4)
        assert model[0].training and model[1].training == training
        assert model[0].dropout_seed() != model[2].dropout_seed()
        raise KeyboardInterrupt
    assert all(module.training == training for module in model) and model[0].context is model[2].context is None
