"""Every Triton kernel that the GPU path launches, compiled as its launches are, for chips that are not there.

A kernel that is right may still be slow or not start at all: registers that spill to memory, more shared memory than a chip
has, and loads of one number at a time where rows do not begin at multiples of 16 bytes. No interpreter sees these. All launches
for all chips are of the slow suite; ``test_walk.py`` compiles those of one case for one chip.
"""

from collections import Counter

import pytest

# Bytes of shared memory that one program may have (CUDA C++ Programming Guide, compute capabilities).
SHARED = {75: 64 << 10, 80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
REGISTERS = 65_536  # of a multiprocessor: registers of a thread times threads of a program
PRODUCTS = ("nf4:_matmul", "adapter:_project", "adapter:_add_update", "adapter:_gradients")
CHIPS = "75,80,89,90,100,120"
# What today's kernels do all the same, the worst of their launches on any chip. Bytes spilled: two registers of the projection
# on the two newest chips, six of the gradients of ranks 1 and 4 on the oldest with bf16. Loads of 16 bits: of the narrow
# factors of ranks 1 and 4 (tokens by rank), which begin anywhere.
SPILLED = {"adapter:_project": 8, "adapter:_gradients": 24}
NARROW = {"adapter:_gradients": 24}


def worst(compiled, figure):
    """The largest figure of each kernel, where it is not zero."""
    found: Counter[str] = Counter()
    for one in compiled:
        name = one["kernel"].rpartition(".")[2]
        found[name] = max(found[name], figure(one))
    return {name: number for name, number in found.items() if number}


def assert_fitting(compiled, chips, spilled, narrow):
    """Every launch compiles for every chip, fits in it, and spills and loads by halves no more than is allowed."""
    assert {one["chip"] for one in compiled} == set(map(int, chips.split(",")))
    assert not [(one["kernel"], one["chip"], one["from"], one["failed"]) for one in compiled if "failed" in one]
    greedy = [one for one in compiled if one["shared"] > SHARED[one["chip"]] or one["registers"] * one["threads"] > REGISTERS]
    assert not greedy
    products = [one for one in compiled if one["kernel"].endswith(PRODUCTS)]
    assert products
    for figures, allowed in (
        (worst(compiled, lambda one: one["spilled"]), spilled),
        (worst(products, lambda one: one["loads"].get("ld.global 16", 0)), narrow),
    ):
        above = {name: number for name, number in figures.items() if number > allowed.get(name, 0)}
        assert not above, [
            (one["chip"], one["from"], one["arguments"]) for one in compiled if one["kernel"].endswith(tuple(above))
        ]
        assert set(allowed) <= set(figures), "these are mended: take them out of the table"


@pytest.mark.slow
def test_every_launch_compiles_into_code_that_fits(walk):
    assert_fitting(walk("--chips", CHIPS)["compiled"], CHIPS, SPILLED, NARROW)
