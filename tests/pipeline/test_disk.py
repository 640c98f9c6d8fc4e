"""A disk with too little room: said before the first byte, with the numbers and what would take less."""

import pytest

from shared import write_recipe
from tunesmith.errors import RunError
from tunesmith.memory.shape import Shape, read_shape
from tunesmith.pipeline import disk
from tunesmith.pipeline import verbs as api


@pytest.fixture
def a_disk(monkeypatch):
    """``a_disk(bytes)``: as many are free."""
    return lambda free: monkeypatch.setattr(disk, "free_bytes", lambda _: int(free))


def test_a_run_is_refused_before_its_first_stage(tmp_path, tiny_dir, a_disk):
    a_disk(4e6)
    run = api.open_run(write_recipe(tmp_path, tiny_dir, {"train.keep_checkpoints": 3}), tmp_path / "run")
    with pytest.raises(RunError) as caught:
        api.run(run)
    assert "are free; nothing was written" in caught.value.message
    for part in ("5 checkpoints", "adapter", "merged", "toy-Q8_0.gguf", "toy-Q4_K_M.gguf"):
        assert part in caught.value.message, part
    assert "--out" in caught.value.hint and "train.keep_checkpoints: 1 saves" in caught.value.hint
    assert "export.gguf without Q8_0 saves" in caught.value.hint
    assert not run.data.exists() and not run.checkpoints.exists()


def test_what_lies_there_counts_as_room(tmp_path, tiny_dir, a_disk, make_recipe):
    recipe, shape = make_recipe(), read_shape(tiny_dir)
    assert isinstance(shape, Shape)
    run = api.open_run(write_recipe(tmp_path, tiny_dir), tmp_path / "run")
    a_disk(1e9)
    disk.refuse_training(run, recipe, shape, {}, ())
    a_disk(0)
    with pytest.raises(RunError, match="3 checkpoints"):
        disk.refuse_training(run, recipe, shape, {}, ())
    (run.checkpoints / "step-000004").mkdir(parents=True)
    (run.checkpoints / "step-000004" / "optimizer.safetensors").write_bytes(bytes(2_000_000))
    disk.refuse_training(run, recipe, shape, {}, ())


def test_a_training_of_few_layers_needs_as_much_as_it_trains(tmp_path, tiny_dir, a_disk):
    """The first look knows no such adapter; the training does, and is refused before its first checkpoint."""
    changes = {"lora.target_modules": ["q_proj"], "train.keep_checkpoints": 2}
    run = api.open_run(write_recipe(tmp_path, tiny_dir, changes), tmp_path / "run")
    a_disk(1000)
    with pytest.raises(RunError, match=r"checkpoints .*1\.00 kB are free") as caught:
        api.run(run, until="train")
    assert "train.keep_checkpoints: 1 saves" in caught.value.hint and not list(run.checkpoints.glob("step-*"))
