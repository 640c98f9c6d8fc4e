"""Who decides how many processes compute: the work, the machine and, for a training, the recipe."""

import pytest

from tunesmith import hardware
from tunesmith.errors import TrainingError
from tunesmith.models.ranks import Load, Shape, shape_of

LOAD = Load(items=6, flop=1e13, rank_bytes=10**9, base_bytes=2 * 10**9)


@pytest.mark.parametrize(
    ("asked", "changes", "machine", "expected"),
    [
        ("auto", {}, {}, (4, 1)),
        ("auto", {"items": 3}, {}, (3, 1)),
        ("auto", {}, {"available_memory": 2.5e9}, (2, 1)),
        ("auto", {}, {"available_memory": 0.5e9}, (1, 1)),
        ("auto", {"flop": 1e8}, {}, (1, 1)),
        (2, {}, {}, (2, 1)),
        (9, {}, {}, (6, 1)),
        (1, {}, {}, (1, 1)),
        (2, {"flop": 1e8}, {}, (2, 1)),
        # nothing to deal out, on this machine with this recipe: threads, whatever ``ranks`` says
        ("auto", {"items": 1}, {}, (1, 4)),
        (3, {"items": 1}, {}, (1, 4)),
        ("auto", {"rank_bytes": 8 * 10**9}, {}, (1, 4)),
        (2, {"rank_bytes": 8 * 10**9}, {}, (1, 4)),
    ],
)
def test_a_process_a_core_and_fewer_where_items_or_memory_say_so(asked, changes, machine, expected, monkeypatch):
    here = {"physical_cores": 4, "total_memory": 16 * 10**9, "available_memory": 12 * 10**9} | machine
    for name, value in here.items():
        monkeypatch.setattr(hardware, name, lambda value=value: int(value))
    load = Load(**{**vars(LOAD), **changes})
    assert shape_of(asked, load, None)[:2] == expected
    assert shape_of("auto", load, "no fork") == Shape(1, 4, "no fork")
    if asked != "auto" and asked > 1:
        with pytest.raises(TrainingError, match=f"train.ranks: {asked}, but no fork"):
            shape_of(asked, load, "no fork")
