"""The GPU path from loading to scoring, on a device that is not there: where it waits, what it moves, what it launches.

Models have the widths of the real ones and a few layers. The figures that it is held to are in ``budgets.py``. Half of the
cases are walked here; the slow suite walks them all.
"""

import pytest

from .budgets import (
    ON_THE_HOST,
    QUANTISE,
    STAGES,
    STEPS,
    StageBudget,
    StepBudget,
    early_waits,
    pageable,
    stage_figures,
    step_figures,
)
from .test_compiled import assert_fitting

SLACK, STALE = 1.02, 0.85  # of a budget: what rounding and another PyTorch may add, and where a lower number is due
# A step's host waits where its losses, its rescued rows and the norm of its gradient are read.
READS = ("item train/step.py", "item train/loop.py", "item kernels/fp16_scaled_mm.py")
# Loading, steps, decoding, scoring of each kind of base and each place of layers and tables; in the order of ``walk.CASES``.
SOME = ("llama-8b", "llama-8b layer", "llama-8b streamed", "llama-8b from disk", "llama-8b offload")
SOME += ("llama-8b lean", "llama-8b trained tables", "llama-8b r8", "llama-8b fp16", "gemma4-e2b", "qwen3-moe")
COMPILED = ("--chips", "90", "--of", "llama-8b r8")


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.slow)])
def seen(walk, request):
    return walk(*COMPILED, *(SOME if request.param == "some" else STEPS))


@pytest.fixture(scope="module")
def steps(seen):
    """Budgets of the cases that were walked."""
    return {name: budget for name, budget in STEPS.items() if name in seen["cases"]}


def misfits(figures: StepBudget | StageBudget, budget: StepBudget | StageBudget) -> list[str]:
    """What is above its budget, or so far below that the budget says nothing."""
    found = []
    for name, figure, allowed in zip(budget._fields, figures, budget, strict=True):
        if figure > allowed * SLACK:
            found.append(f"{name}: {figure:g}, and {allowed:g} are allowed")
        elif figure < allowed * STALE:
            found.append(f"{name}: {figure:g}, far below {allowed:g}; write the lower number in budgets.py")
    return found


def test_the_device_sees_what_must_not_be_done(seen):
    """Else nothing below could fail."""
    device = seen["device"]
    assert "same device" in device["mixed"] and device["grad"] == "cuda:0"
    assert [what.split()[0] for what, _ in device["waits"]] == ["item", "index"]
    assert [tuple(upload[:3]) for upload in device["uploads"]] == [(4000, False, False), (4000, True, True)]
    assert [nbytes for nbytes, _ in device["downloads"]] == [4000]
    assert 8_000_000 <= device["kept"] <= 8_050_000 and device["peak"] >= device["kept"]  # the weight and its gradient
    assert device["by_name"]["mv"] == 1 and device["bytes_by_name"]["mv"] == 4_008_000


def test_every_case_has_its_budget(seen, steps):
    stages = {(name, stage) for name, case in seen["cases"].items() for stage in stage_figures(case) if "score" in case}
    assert set(seen["all_cases"]) == set(STEPS) and set(seen["cases"]) == set(steps)
    assert stages == {key for key in STAGES if key[0] in steps}


def test_launches_of_a_step_compile_into_code_that_fits(seen):
    assert_fitting(seen["compiled"], "90", {}, {})


def test_a_model_is_loaded_whole_onto_the_device(seen):
    elsewhere = {name: case["load"]["elsewhere"] for name, case in seen["cases"].items() if case["load"]["elsewhere"]}
    assert elsewhere == {name: tensors for name, tensors in ON_THE_HOST.items() if name in seen["cases"]}


def test_everything_is_fused(seen):
    """What is measured below is our path, not the stock one."""
    assert not {name: case["fuse"] for name, case in seen["cases"].items() if "attention" not in case["fuse"]}


def test_a_step_waits_only_where_its_results_are_read(seen, steps):
    found = {
        name: others
        for name, case in seen["cases"].items()
        if (others := {what for what, _ in case["step"]["waits"] if not what.startswith(READS)})
    }
    assert set(found) == {name for name, budget in steps.items() if budget.waits}, found
    assert all(case["step"]["waits"] for case in seen["cases"].values())


def test_the_host_runs_ahead_to_the_end_of_a_step(seen, steps):
    found = {name: waits for name, case in seen["cases"].items() if (waits := early_waits(case["step"]))}
    assert {name: len(waits) for name, waits in found.items()} == {n: b.waits for n, b in steps.items() if b.waits}, found


def test_a_pack_goes_to_the_device_pinned_and_while_the_device_computes(seen):
    assert not {name: places for name, case in seen["cases"].items() if (places := pageable(case["step"]))}
    assert all(case["step"]["uploads"] for case in seen["cases"].values())


def test_no_stream_touches_what_another_one_still_uses(seen):
    assert seen["races"] == [1, 0, 1, 1, 0, 1], "else this could not fail: copies, and what a kernel of ours writes and reads"
    found = {
        (name, part): races
        for name, case in seen["cases"].items()
        for part in ("step", "graph")
        if part in case and (races := case[part]["races"])
    }
    assert not found


def test_a_recording_copies_nothing_from_the_host_and_keeps_the_logits_alone(seen):
    found = {name: case["graph"] for name, case in seen["cases"].items() if "graph" in case}
    assert set(found) == {name for name, stage in STAGES if stage == "graph" and name in seen["cases"]} >= {"llama-8b fp16"}
    assert {name: (len(g["graphs"]), g["in_graphs"]) for name, g in found.items()} == dict.fromkeys(found, (1, []))
    kept = {name: [place.partition(":")[0] for place in g["graphs"][0]["kept"]] for name, g in found.items()}
    of_head = {"llama-8b fp16": ["kernels/fp16_scaled_mm.py"]}  # where the logits are made
    assert kept == {name: ["engines/token_step.py"] for name in found} | of_head


def test_a_graph_that_is_not_the_step_is_not_used_and_it_is_said(seen):
    """And the device sees what a recording must not do."""
    found = seen["recorded"]
    assert all(one["tokens"] == [40, 40] and not one["races"] for one in found.values())
    of_right = found["right"]
    assert of_right["replays"] == 2 + 39 and not of_right["told"] and len(of_right["graphs"]) == 1  # two are the proof
    said = {name: one["told"] for name, one in found.items() if one["told"]}
    assert set(said) == {"waits", "differs", "fails"} and all(len(lines) == 1 for lines in said.values())
    assert said["waits"][0].startswith("INFO the host has to wait for the device within a decoding step")
    assert said["differs"][0].startswith("WARNING a CUDA graph of a decoding step of 2 rows gave other logits")
    assert said["fails"][0].startswith("WARNING a decoding step cannot be recorded as a CUDA graph: CUDA error")
    assert all(line.endswith("goes on step by step, at the speed of the launches") for lines in said.values() for line in lines)
    assert [found[name]["replays"] for name in ("waits", "differs", "fails")] == [0, 2, 0]
    assert len(found["copies"]["in_graphs"]) == 1 and "12 bytes of the host" in found["copies"]["in_graphs"][0]
    assert len(found["keeps"]["graphs"][0]["kept"]) == 2


@pytest.mark.parametrize("case", ["llama-8b streamed", "llama-8b from disk"])
def test_streamed_layers_cross_the_bus_pinned_and_once_each_way(seen, case):
    """Forward and backward, less what the two slots hold at either end."""
    for step in (seen["cases"][case][name] for name in ("step", "deeper step")):
        from_ring = [upload for upload in step["uploads"] if upload[3].startswith(("memory/ring.py", "memory/reading.py"))]
        layers = [nbytes for nbytes, is_pinned, *_ in from_ring if is_pinned]
        assert sum(layers) == pytest.approx(2 * (step["layers"] - 2) * 112.5e6, rel=0.01)


def test_quantising_a_weight(seen):
    assert QUANTISE * STALE <= seen["quantise"]["launches"] <= QUANTISE


def test_steps_stay_within_their_budgets(seen, steps):
    found = {name: misfits(step_figures(seen["cases"][name]), budget) for name, budget in steps.items()}
    assert not {name: what for name, what in found.items() if what}


def test_stages_stay_within_their_budgets(seen, steps):
    figures = {name: stage_figures(seen["cases"][name]) for name in steps}
    found = {key: misfits(figures[key[0]][key[1]], budget) for key, budget in STAGES.items() if key[0] in steps}
    assert not {key: what for key, what in found.items() if what}
