"""The prediction of a step's time stands on what the walk sees: the same launches, and bytes by arithmetic close to it."""

import pytest

from tunesmith.memory.speed import LAUNCHES, LayerBytes, Sizes
from tunesmith.memory.techniques import sizes

from .budgets import STEPS

EIGHT = Sizes.of(next(size.shape for size in sizes() if size.name == "8B"))
WALKED = {("bf16", "none"): "llama-8b", ("bf16", "layer"): "llama-8b layer", ("fp16", "none"): "llama-8b fp16"}


def test_launches_are_the_budgets():
    """Where a budget was lowered: write it in ``memory/speed.py``, run ``docs/generate.py`` and see what it is worth."""
    assert {key: STEPS[case].launches for key, case in WALKED.items()} == LAUNCHES


@pytest.mark.parametrize(("compute", "recompute"), WALKED)
def test_bytes_by_arithmetic_are_those_that_were_walked(compute, recompute):
    assert LayerBytes.of(EIGHT, 2048, recompute, compute).total / 1e6 == pytest.approx(
        STEPS[WALKED[compute, recompute]].touched, rel=0.05
    )
