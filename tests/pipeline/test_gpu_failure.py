"""What a user reads where a GPU cannot go on, in a stage of a run."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tunesmith.errors import ModelError, TrainingError
from tunesmith.pipeline import stage as stages
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.table import table_of
from tunesmith.rundir import RunDir

FULL = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 11.99 GiB of which 312.50 MiB is free. "
    "Including non-PyTorch memory, this process has 11.60 GiB memory in use. Of the allocated memory 10.21 GiB is allocated by "
    "PyTorch, and 1.12 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting ..."
)
NUMBERS = (
    "the GPU's memory is full: 1.96 GiB were asked for, 312.50 MiB of 11.99 GiB are free; tensors hold 10.21 GiB, "
    "and 1.12 GiB more are reserved"
)
FAULT = torch.AcceleratorError(
    "CUDA error: an illegal memory access was encountered\nSearch for it in ...\nFor debugging consider passing "
    "CUDA_LAUNCH_BLOCKING=1"
)


class OutOfResources(Exception):
    """Of Triton by its module, as its own is."""

    __module__ = "triton.runtime.errors"


TOO_LARGE = OutOfResources("out of resource: shared memory, Required: 123392, Hardware limit: 101376.")


@pytest.mark.parametrize(
    ("stage", "changes", "raised", "expected", "message", "hints"),
    [
        ("train", {}, FULL, TrainingError, NUMBERS, ["train.recompute: layer; base: nf4; train.max_length: 1024"]),
        ("train", {"base": "nf4", "train.recompute": "layer"}, FULL, TrainingError, NUMBERS, ["order: train.max_length: 1024"]),
        ("select", {"evaluate.batch_size": 8}, FULL, ModelError, NUMBERS, ["evaluate.batch_size: 4; base: nf4; a smaller"]),
        ("train", {}, FAULT, TrainingError, "the GPU failed: CUDA error: an illegal memory", ["CUDA_LAUNCH_BLOCKING=1"]),
        ("train", {}, torch.OutOfMemoryError("unforeseen words"), TrainingError, "full: unforeseen words", ["base: nf4"]),
        ("train", {}, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), TrainingError, "memory is full", ["base: nf4"]),
        ("train", {}, TOO_LARGE, TrainingError, "of a layer does not fit this GPU: out of resource: shared", ["pip install"]),
        ("train", {}, RuntimeError("a fault of ours"), RuntimeError, "a fault of ours", []),
    ],
)
def test_memory_and_launches_are_told_with_numbers_and_the_next_try(
    stage, changes, raised, expected, message, hints, make_recipe, tmp_path, monkeypatch
):
    recipe = make_recipe({"train.max_length": 2048, **changes})
    run = RunDir(tmp_path / "run")

    def fail(*_):
        raise raised

    (entry,) = [entry for entry in table_of(recipe).stages if entry.name == stage]
    monkeypatch.setattr(f"tunesmith.pipeline.{entry.module}.execute", fail)
    monkeypatch.setitem(
        sys.modules, "triton.errors", SimpleNamespace(TritonError=OutOfResources)
    )  # which may have been imported by now
    with pytest.raises(expected) as error:
        stages.execute(run, entry, recipe, {}, Session())
    assert type(error.value) is expected and message in str(error.value)
    assert all(hint in str(error.value) for hint in hints)
