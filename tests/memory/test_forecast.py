"""What was foretold beside what was measured, and the line where they part."""

import pytest
import torch

from shared import write_recipe
from tunesmith import hardware
from tunesmith.memory.forecast import miss, words
from tunesmith.models.device import context_bytes
from tunesmith.pipeline import train_memory
from tunesmith.pipeline import verbs as api
from tunesmith.rundir.records.memory import MeasuredMemory, PredictedMemory
from tunesmith.rundir.records.training import GpuUse, Training

GB = 10**9
GPU = PredictedMemory(
    tokens=2048,
    supervised=280,
    allocated=7 * GB,
    where="backward",
    terms={"linear layers": 4 * GB, "head": 2 * GB, "in work": GB},
    reserved=8 * GB,
    context=GB // 2,
)
CPU = PredictedMemory(tokens=512, supervised=9, allocated=GB, where="forward", resident=2 * GB)


@pytest.mark.parametrize(
    ("predicted", "measured", "told"),
    [
        (GPU, MeasuredMemory(allocated=int(7.3 * GB)), False),
        (GPU, MeasuredMemory(allocated=int(7.4 * GB)), True),
        (GPU, MeasuredMemory(allocated=int(6.6 * GB)), True),
        (GPU, MeasuredMemory(), False),
        (CPU, MeasuredMemory(resident=int(1.7 * GB)), False),
        (CPU, MeasuredMemory(resident=int(1.5 * GB)), True),
        (CPU, MeasuredMemory(resident=3 * GB), True),
    ],
)
def test_a_miss_beyond_what_is_claimed_is_told(predicted, measured, told):
    assert (miss(predicted, measured) is not None) == told


def test_the_line_has_both_numbers_and_the_largest_terms():
    line = miss(GPU, MeasuredMemory(allocated=10 * GB))
    assert line is not None and "7.00 GB foretold, 10.00 measured (-30%)" in line
    assert "linear layers 4.00, head 2.00, in work 1.00 of 7.00" in line and "backward of 2,048 tokens" in line
    assert words(GPU, MeasuredMemory()) == "memory was not measured"


def test_a_part_has_a_peak_of_its_own_and_the_whole_keeps_its():
    hardware.reset_peak_memory()
    hardware.note_processes(3 * GB)
    hardware.begin_part()
    assert hardware.peak_of_part() < 3 * GB <= hardware.peak_memory()
    hardware.note_processes(5 * GB)
    assert 5 * GB < hardware.peak_of_part() == hardware.peak_memory()
    hardware.reset_peak_memory()
    assert hardware.peak_memory() < 3 * GB


def test_a_context_is_what_the_card_lacks_beside_the_allocator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 9 * GB)
    assert context_bytes(torch.device("cuda")) == GB


def test_on_a_gpu_steps_have_a_peak_of_their_own_and_the_record_that_of_the_stage(monkeypatch):
    def use(allocated):
        facts = {"name": "X", "driver": None, "capability": "9.0", "torch": "2.13.0", "cuda": "13.0", "total_bytes": 80 * GB}
        return GpuUse(**facts, peak_allocated=allocated, peak_reserved=allocated + GB)

    uses = iter([use(9 * GB), use(7 * GB)])
    monkeypatch.setattr(train_memory, "gpu_use", lambda _: next(uses))
    monkeypatch.setattr(train_memory, "context_bytes", lambda _: GB)
    monkeypatch.setattr(train_memory, "watch_gpu", lambda _: None)
    memory = train_memory.MemoryOfSteps(torch.device("cuda"))
    assert memory.measured() == MeasuredMemory(allocated=7 * GB, reserved=8 * GB, context=GB)
    assert memory.whole(use(7 * GB)) == use(9 * GB)


def test_a_run_writes_both(tmp_path, tiny_dir, talk):
    run = api.open_run(write_recipe(tmp_path, tiny_dir, {"train.num_train_epochs": 1}), tmp_path / "run")
    api.data(run)
    training = api.train(run)
    assert training == Training.read(run.training_file) and training.predicted and training.measured
    assert training.predicted.resident and training.measured.resident and training.predicted.reserved is None
    assert training.predicted.allocated == sum(training.predicted.terms.values()) and training.predicted.tokens > 0
    assert words(training.predicted, training.measured) in talk()
