"""Checkpoints that are whole or absent, proven before they are used, and that resume to the bit.

A checkpoint is a directory: ``adapter_model.safetensors``, ``optimizer.safetensors`` (its plain numbers, as JSON, in the
header), ``metrics.jsonl`` as it stood, and ``state.json``. It is written under a temporary name, flushed, and renamed. No
pickle anywhere (``torch.save`` was bypassed twice in 2025-26), and no random state, because none is carried
(``layers/context.py``).

**One proof for all.** The newest checkpoint is resumed from, and the best one becomes the adapter, so both are proven alike:
a ``state.json`` that can be read, the inputs of this run, the sha256 of every other file, tensors of the names and shapes that
the layers ask for. A checkpoint whose best one cannot be proven is not resumed from either, since its run could not end. What
is damaged is named and passed over; training goes on from an earlier one or from the start, and ends with the same bytes.

**Inputs.** A run directory may be trained with one recipe, then another, then the first again. Each checkpoint says what it
was trained with, and brings the metrics that belong to it. Those of other inputs stay until a training with new ones has ended
(whoever named the wrong recipe and stopped has lost nothing); then they are removed, aloud.

**Elsewhere.** The number of threads, or a GPU in place of a CPU, changes the order of additions and with it the last digits.
A run that goes on so is not refused, because the hours before are worth more than the last digits; it is said, and recorded in
``training.json``. Refused: the number of threads among the inputs, which would train a run anew that was moved.

The best one and the newest ``train.keep_checkpoints`` are kept: one adapter and two moments each.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tunesmith.errors import RunError, TrainingError
from tunesmith.layers.experts import Adapted
from tunesmith.models.adapter import WEIGHTS, adapter_shapes, adapter_state, load_adapter_state
from tunesmith.rundir import atomic_directory, sha256_file
from tunesmith.rundir.records.training import CheckpointState, DevLoss, Spike
from tunesmith.tracking import MetricsLog
from tunesmith.train.optim import load_optimizer_state, misfit_of_state, optimizer_state

logger = logging.getLogger(__name__)

OPTIMIZER = "optimizer.safetensors"
METRICS = "metrics.jsonl"
STATE = "state.json"
NUMBERS = "numbers"
PREFIX = "step-"
GONE = ".gone"


@dataclass(kw_only=True)
class Progress:
    """Where a run stands; what ``CheckpointState`` holds of it.

    Attributes:
        step: optimizer steps done.
        dev_losses: oldest first.
        tokens: trained on.
        seconds: that took.
        computed_on: devices, and numbers of threads and processes, that took part.
        spikes: from which the run went back.
    """

    step: int = 0
    dev_losses: list[DevLoss] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    computed_on: list[str] = field(default_factory=list)
    spikes: list[Spike] = field(default_factory=list)

    @property
    def best(self) -> DevLoss:
        """The lowest dev loss, the earliest among equals."""
        return _best(self.dev_losses)


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they lie; those of other inputs may lie there too.
        inputs: fingerprint of what this run trains on and with.
        keep: how many of the newest are kept, beside the best.
    """

    def __init__(self, folder: Path, inputs: str, keep: int):
        self.folder, self.inputs, self.keep = folder, inputs, keep

    def path(self, step: int) -> Path:
        """``checkpoints/step-000120``."""
        return self.folder / f"{PREFIX}{step:06d}"

    def bytes_there(self) -> int:
        """Bytes of the checkpoints of these inputs that lie there."""
        own = (directory for directory in self._directories() if _inputs_of(directory) == self.inputs)
        return sum(file.stat().st_size for directory in own for file in directory.iterdir())

    def save(self, layers: Mapping[str, Adapted], optimizer: torch.optim.Optimizer, progress: Progress, metrics: Path) -> None:
        """Write a checkpoint whole or not at all, and remove those of this run that are no longer needed.

        Args:
            metrics: the table as it stands now.
        """
        target, (moments, numbers) = self.path(progress.step), optimizer_state(optimizer)
        if target.exists() and _inputs_of(target) != self.inputs:
            logger.info(f"{target}: replaced, it was damaged or of other inputs than what is trained now")
        with atomic_directory(target) as directory:
            save_file(adapter_state(layers), directory / WEIGHTS, metadata={"format": "pt"})
            save_file(moments, directory / OPTIMIZER, metadata={NUMBERS: json.dumps(numbers)})
            shutil.copyfile(metrics, directory / METRICS)
            state = CheckpointState(
                inputs=self.inputs,
                step=progress.step,
                dev_losses=tuple(progress.dev_losses),
                tokens=progress.tokens,
                seconds=progress.seconds,
                computed_on=tuple(progress.computed_on),
                spikes=tuple(progress.spikes),
                sha256={name: sha256_file(directory / name) for name in (WEIGHTS, OPTIMIZER, METRICS)},
            )
            state.write(directory / STATE)
        needed = self._to_keep(progress)
        for directory in self._directories():
            if directory < target and directory not in needed and _inputs_of(directory) == self.inputs:
                _remove(directory)

    def resume(self, layers: Mapping[str, Adapted], optimizer: torch.optim.Optimizer) -> Progress | None:
        """Restore adapter and optimizer from the newest checkpoint that is proven, as is its best one.

        Returns:
            Where the run stood; None where it has to begin at the start.
        """
        for leftover in self.folder.glob(f".{PREFIX}*{GONE}"):
            shutil.rmtree(leftover)
        states = self._proven(layers, optimizer)
        for step in sorted(states, reverse=True):
            state, directory = states[step], self.path(step)
            best = _best(state.dev_losses).step
            if best not in states:
                logger.warning(f"{directory}: passed over, its best checkpoint {self.path(best).name} is not there or damaged")
                continue
            load_adapter_state(layers, load_file(directory / WEIGHTS))
            with safe_open(directory / OPTIMIZER, framework="pt") as opened:
                numbers = json.loads(opened.metadata()[NUMBERS])
            load_optimizer_state(optimizer, load_file(directory / OPTIMIZER), numbers)
            return Progress(
                step=step,
                dev_losses=list(state.dev_losses),
                tokens=state.tokens,
                seconds=state.seconds,
                computed_on=list(state.computed_on),
                spikes=list(state.spikes),
            )
        return None

    def go_back(
        self,
        layers: Mapping[str, Adapted],
        optimizer: torch.optim.Optimizer,
        done: Progress,
        spike: Spike,
        metrics: MetricsLog,
    ) -> Progress:
        """Adapter, metrics and progress as they were at the checkpoint that a spike names, which holds that spike from here on.

        Later ones go first, the newest before the others: a kill within leaves a run that comes to the same spike again.

        Args:
            optimizer: a new one; takes that checkpoint's state.
            done: where the run stood.

        Raises:
            TrainingError: the checkpoint is gone or damaged.
        """
        target = self.path(spike.back_to)
        for directory in reversed(self._directories()):
            if directory > target and _inputs_of(directory) == self.inputs:
                _remove(directory)
        progress = self.resume(layers, optimizer)
        if progress is None or progress.step != spike.back_to:
            raise TrainingError(
                f"{target}: gone or damaged while training ran", "run it again: it begins at the last whole one"
            )
        progress.spikes = [*done.spikes, spike]
        progress.computed_on = done.computed_on
        metrics.restore(target / METRICS)
        self.save(layers, optimizer, progress, metrics.path)
        return progress

    def remove_others(self, progress: Progress) -> None:
        """Remove what a finished run does not need: checkpoints of other inputs, damaged ones, and more than are kept."""
        needed = self._to_keep(progress)
        unneeded = [directory for directory in self._directories() if directory not in needed]
        others = [directory.name for directory in unneeded if _inputs_of(directory) != self.inputs]
        for directory in unneeded:
            _remove(directory)
        if others:
            logger.info(f"{self.folder}: removed {', '.join(others)}: damaged, or of other inputs than what is trained now")

    def _to_keep(self, progress: Progress) -> set[Path]:
        newest = [entry.step for entry in progress.dev_losses][-self.keep :]
        return {self.path(step) for step in (progress.best.step, *newest)}

    def _directories(self) -> list[Path]:
        return sorted(directory for directory in self.folder.glob(f"{PREFIX}*") if directory.is_dir())

    def _proven(self, layers: Mapping[str, Adapted], optimizer: torch.optim.Optimizer) -> dict[int, CheckpointState]:
        """The states of all checkpoints of this run that are what was written, by step; damaged ones are named."""
        states: dict[int, CheckpointState] = {}
        others = 0
        for directory in self._directories():
            try:
                state = CheckpointState.read(directory / STATE)
            except (RunError, OSError) as error:
                logger.warning(f"{directory}: damaged, passed over: {error.message if isinstance(error, RunError) else error}")
                continue
            if state.inputs != self.inputs:
                others += 1
            elif damage := _damage(directory, state) or _misfit(directory, layers, optimizer):
                logger.warning(f"{directory}: damaged, passed over: {damage}")
            else:
                states[state.step] = state
        if others:
            logger.info(f"{self.folder}: {others} checkpoints of other inputs, not resumed from")
        return states


def _best(dev_losses: list[DevLoss] | tuple[DevLoss, ...]) -> DevLoss:
    return min(dev_losses, key=lambda entry: entry.dev_loss)


def _inputs_of(directory: Path) -> str | None:
    """Inputs of a checkpoint; None where they cannot be told."""
    try:
        return CheckpointState.read(directory / STATE).inputs
    except (RunError, OSError):
        return None


def _damage(directory: Path, state: CheckpointState) -> str:
    """What is wrong with the files of a checkpoint; nothing if they are what was written."""
    if directory.name != f"{PREFIX}{state.step:06d}":
        return f"{STATE} is of step {state.step}"
    if not state.dev_losses or set(state.sha256) != {WEIGHTS, OPTIMIZER, METRICS}:
        return f"{STATE} has no dev loss or not the hash of each file"
    for name, expected in state.sha256.items():
        if not (directory / name).is_file():
            return f"{name} is missing"
        if sha256_file(directory / name) != expected:
            return f"{name} is not what was written (hash differs)"
    return ""


def _misfit(directory: Path, layers: Mapping[str, Adapted], optimizer: torch.optim.Optimizer) -> str:
    """Why the tensors of a checkpoint do not go into these layers; nothing if they do."""
    try:
        weights, moments = (_shapes(directory / name) for name in (WEIGHTS, OPTIMIZER))
    except (SafetensorError, OSError) as error:
        return str(error)
    expected = adapter_shapes(layers)
    if weights.keys() != expected.keys():
        return f"{sorted(weights.keys() ^ expected.keys())[0]} is in the adapter or in the model, not in both"
    for name, shape in weights.items():
        if shape != expected[name]:
            return f"{name} has shape {shape}, expected {expected[name]}"
    return misfit_of_state(optimizer, moments)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - no mapping


def _remove(directory: Path) -> None:
    """Remove a checkpoint; a kill within leaves a name that nobody takes for one."""
    aside = directory.with_name(f".{directory.name}{GONE}")
    shutil.rmtree(aside, ignore_errors=True)
    directory.replace(aside)
    shutil.rmtree(aside)
