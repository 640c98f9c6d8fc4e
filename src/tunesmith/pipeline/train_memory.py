"""Memory of the steps of a training: what was foretold, what was measured, and a line where they differ.

Loading and the health check are left out of the measurement, as they are of the formula: they compute stock modules for a
moment, and a card that holds the steps has room for them.
"""

import logging
from dataclasses import replace

import torch

from tunesmith import hardware
from tunesmith.engines.base import BaseModel
from tunesmith.memory.forecast import miss, predict, words
from tunesmith.memory.shape import Shape, read_shape
from tunesmith.models.device import context_bytes, gpu_use, watch_gpu
from tunesmith.pipeline.dials import dials_of_run
from tunesmith.recipe import Recipe, TrainSettings
from tunesmith.rundir.records.base import Json
from tunesmith.rundir.records.memory import MeasuredMemory, PredictedMemory
from tunesmith.rundir.records.training import GpuUse
from tunesmith.train.distributed import Largest

logger = logging.getLogger(__name__)


class MemoryOfSteps:
    """The peak from here on, beside that of the whole stage.

    Attributes:
        before: the GPU and its peak until now; None for a CPU.
    """

    def __init__(self, device: torch.device):
        self._device, self.before = device, gpu_use(device)
        self._context = None if self.before is None else context_bytes(device)
        watch_gpu(device)
        hardware.begin_part()

    def measured(self) -> MeasuredMemory:
        """What the steps took until now."""
        if self._device.type == "cpu":
            return MeasuredMemory(resident=hardware.peak_of_part())
        now = gpu_use(self._device)
        assert now is not None
        return MeasuredMemory(allocated=now.peak_allocated, reserved=now.peak_reserved, context=self._context)

    def whole(self, now: GpuUse | None) -> GpuUse | None:
        """The GPU with the peak of the whole stage."""
        if now is None or self.before is None:
            return now
        allocated = max(now.peak_allocated, self.before.peak_allocated)
        return replace(now, peak_allocated=allocated, peak_reserved=max(now.peak_reserved, self.before.peak_reserved))


def told(
    base: BaseModel, recipe: Recipe, settings: TrainSettings, device: torch.device, largest: Largest, found: MeasuredMemory
) -> PredictedMemory | None:
    """The prediction for the run as it was, and a warning where it was wrong; None where sizes are not known.

    Args:
        largest: pack that was trained on.
        found: by measurement.
    """
    shape = read_shape(base.directory)
    if not isinstance(shape, Shape):
        return None
    dials = dials_of_run(base, recipe.lora, settings, "cpu" if device.type == "cpu" else "gpu")
    dials = replace(dials, tokens=largest.tokens, rows=largest.rows, packs=largest.packs, longest=largest.longest)
    predicted = predict(shape, dials, largest.ranks)
    line = miss(predicted, found)
    logger.log(logging.INFO if line is None else logging.WARNING, f"train: {line or words(predicted, found)}")
    return predicted


def memory_figures(predicted: PredictedMemory, measured: MeasuredMemory) -> Json:
    """Both, for the manifest."""
    return {"predicted_memory": predicted.to_json(), "measured_memory": measured.to_json()}
