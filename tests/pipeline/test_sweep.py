"""Which quantisation a sweep recommends, on numbers alone; the command itself is run with those of the guides."""

import pytest

from shared import write_recipe
from tunesmith.cli.export_text import sweep_lines
from tunesmith.errors import RunError
from tunesmith.parity.recommend import recommend
from tunesmith.pipeline import verbs as api
from tunesmith.report.figures import sweep_figure
from tunesmith.rundir.records.parity import Sweep, SweepType, TaskScore


def entry(kind, nbytes, state):
    task = TaskScore(score=0.2, gain=-0.01, low=-0.05, high=0.03, n=40)
    return SweepType(type=kind, bytes=nbytes, bits_per_weight=6.2, task=task, state=state, summary=state)


def test_the_smallest_file_that_is_non_inferior_is_recommended():
    entries = [entry("Q8_0", 900, "pass"), entry("Q4_K_M", 500, "pass"), entry("Q4_0", 400, "unknown")]
    assert recommend(entries)[0] == "Q4_K_M"  # size decides, and what cannot be told is not taken
    kind, reason = recommend([entry("Q8_0", 900, "unknown"), entry("Q3_K_M", 300, "fail")])
    assert kind is None and "surely worse: Q3_K_M" in reason
    result = Sweep(
        types=tuple(entries),
        tuned=0.21,
        n=40,
        margin=0.02,
        metric="json",
        imatrix=False,
        recommended="Q4_K_M",
        reason="the smallest",
    )
    assert sweep_lines(result)[-1] == "recommended: Q4_K_M: the smallest"
    picture = sweep_figure(result)
    assert all(f">{one.type}<" in picture for one in entries) and "points against tuned" in picture


def test_a_type_that_is_not_known_is_refused_before_anything_is_exported(tmp_path, tiny_dir):
    run = api.open_run(write_recipe(tmp_path, tiny_dir), tmp_path / "run")
    with pytest.raises(RunError, match=r"Q9_X: not a type that is written here\nhint: types: F16, BF16"):
        api.sweep(run, ("Q9_X",))
