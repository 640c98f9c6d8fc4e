"""Every Triton kernel that the GPU path launches, compiled as its launches are, for chips that are not there.

A kernel that is right may still be slow or not start at all: registers that spill to memory, more shared memory than a chip
has, and loads of one number at a time where rows do not begin at multiples of 16 bytes. No interpreter sees these.
"""

from collections import Counter

import pytest

# Bytes of shared memory that one program may have (CUDA C++ Programming Guide, compute capabilities).
SHARED = {75: 64 << 10, 80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
REGISTERS = 65_536  # of a multiprocessor: registers of a thread times threads of a program
PRODUCTS = ("nf4:_matmul", "adapter:_project", "adapter:_add_update", "adapter:_gradients")
FAST = ("80,90", "llama-8b", "llama-8b r8")  # chips, and cases of walk.py
SLOW = ("75,80,89,90,100,120",)
# What today's kernels do all the same, the worst of their launches on any chip. Bytes spilled: two registers of the projection
# on the two newest chips, six of the gradients of ranks 1 and 4 on the oldest with bf16. Loads of 16 bits: of the narrow
# factors of ranks 1 and 4 (tokens by rank), which begin anywhere.
Allowed = dict[tuple[str, ...], dict[str, int]]
SPILLED: Allowed = {FAST: {}, SLOW: {"adapter:_project": 8, "adapter:_gradients": 24}}
NARROW: Allowed = {FAST: {}, SLOW: {"adapter:_gradients": 24}}


def worst(compiled, figure):
    """The largest figure of each kernel, where it is not zero."""
    found: Counter[str] = Counter()
    for one in compiled:
        name = one["kernel"].rpartition(".")[2]
        found[name] = max(found[name], figure(one))
    return {name: number for name, number in found.items() if number}


@pytest.mark.parametrize("given", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_launch_compiles_into_code_that_fits(walk, given):
    seen = walk("--chips", *given)
    compiled = seen["compiled"]
    assert {one["chip"] for one in compiled} == set(map(int, given[0].split(",")))
    assert not [(one["kernel"], one["chip"], one["from"], one["failed"]) for one in compiled if "failed" in one]
    greedy = [one for one in compiled if one["shared"] > SHARED[one["chip"]] or one["registers"] * one["threads"] > REGISTERS]
    assert not greedy
    products = [one for one in compiled if one["kernel"].endswith(PRODUCTS)]
    assert products
    for figures, allowed in (
        (worst(compiled, lambda one: one["spilled"]), SPILLED[given]),
        (worst(products, lambda one: one["loads"].get("ld.global 16", 0)), NARROW[given]),
    ):
        above = {name: number for name, number in figures.items() if number > allowed.get(name, 0)}
        assert not above, [
            (one["chip"], one["from"], one["arguments"]) for one in compiled if one["kernel"].endswith(tuple(above))
        ]
        assert set(allowed) <= set(figures), "these are mended: take them out of the table"
