"""The prediction of a step's time stands on what the walk sees: the same launches, and bytes by arithmetic close to it."""

import dataclasses

import pytest

from tunesmith.memory.speed import LAUNCHES, MIXTURE_LAUNCHES, LayerBytes, Sizes
from tunesmith.memory.techniques import sizes

from .budgets import STEPS

EIGHT = Sizes.of(next(size.shape for size in sizes() if size.name == "8B"))
OF_EXPERTS = Sizes(hidden=2048, intermediate=0, layers=48, query=4096, key_value=512, vocab=151936, tied=False)
SIXTEEN = dataclasses.replace(OF_EXPERTS, experts=16, chosen=8, expert=768)
WALKED = {("bf16", "none"): "llama-8b", ("bf16", "layer"): "llama-8b layer", ("fp16", "none"): "llama-8b fp16"}


def test_launches_are_the_budgets():
    """Where a budget was lowered: write it in ``memory/speed.py``, run ``docs/generate.py`` and see what it is worth."""
    assert {key: STEPS[case].launches for key, case in WALKED.items()} == LAUNCHES
    assert STEPS["qwen3-moe"].launches == MIXTURE_LAUNCHES


@pytest.mark.parametrize(("compute", "recompute"), WALKED)
def test_bytes_by_arithmetic_are_those_that_were_walked(compute, recompute):
    assert LayerBytes.of(EIGHT, 2048, recompute, compute).total / 1e6 == pytest.approx(
        STEPS[WALKED[compute, recompute]].touched, rel=0.05
    )


def test_bytes_of_a_mixture_are_those_that_were_walked():
    found = LayerBytes.of(SIXTEEN, 2048, "none", "bf16").total / 1e6
    assert found == pytest.approx(STEPS["qwen3-moe"].touched, rel=0.05)
