"""Checkpoints that are whole or absent, and that resume to the bit.

A checkpoint is a directory: ``adapter_model.safetensors``, ``optimizer.safetensors`` (its plain numbers, as JSON, in the
header) and ``state.json``. It is written
under a temporary name, flushed, and renamed; ``state.json`` holds the sha256 of the two others, and a directory whose
hashes do not match is passed over, aloud. No pickle anywhere (``torch.save`` was bypassed twice in 2025-26).

No random state is stored, because none is carried: the order of documents follows from (seed, epoch), and the dropout
of a step from (seed, step).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tunesmith.layers.experts import Adapted
from tunesmith.models.adapter import WEIGHTS, adapter_state, load_adapter_state
from tunesmith.rundir import atomic_directory, read_json, sha256_file, write_json
from tunesmith.train.optim import load_optimizer_state, optimizer_state

logger = logging.getLogger(__name__)

OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
NUMBERS = "numbers"


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        dev_losses: (step, dev loss, mean train loss since the last one), oldest first.
        inputs: fingerprint of what the run trains on and with.
    """

    inputs: str
    step: int = 0
    dev_losses: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def best_step(self) -> int:
        """Step of the lowest dev loss, the earliest among equals."""
        return min(self.dev_losses, key=lambda entry: entry[1])[0]


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    """``checkpoints/step-000120``."""
    return checkpoints / f"step-{step:06d}"


def save_checkpoint(
    checkpoints: Path, layers: Mapping[str, Adapted], optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write a checkpoint whole or not at all."""
    moments, numbers = optimizer_state(optimizer)
    with atomic_directory(checkpoint_path(checkpoints, progress.step)) as directory:
        save_file(adapter_state(layers), directory / WEIGHTS, metadata={"format": "pt"})
        save_file(moments, directory / OPTIMIZER, metadata={NUMBERS: json.dumps(numbers)})
        hashes = {name: sha256_file(directory / name) for name in (WEIGHTS, OPTIMIZER)}
        write_json(directory / STATE, {**asdict(progress), "sha256": hashes})


def load_checkpoint(directory: Path, layers: Mapping[str, Adapted], optimizer: torch.optim.Optimizer) -> Progress:
    """Restore adapter, optimizer and progress."""
    state = read_json(directory / STATE)
    load_adapter_state(layers, load_file(directory / WEIGHTS))
    with safe_open(directory / OPTIMIZER, framework="pt") as opened:
        numbers = json.loads(opened.metadata()[NUMBERS])
    load_optimizer_state(optimizer, load_file(directory / OPTIMIZER), numbers)
    return Progress(state["inputs"], state["step"], [tuple(entry) for entry in state["dev_losses"]])


def newest_checkpoint(checkpoints: Path, inputs: str) -> Path | None:
    """The newest whole checkpoint of a run with these inputs, or None. Damaged ones are named and passed over."""
    for directory in sorted(checkpoints.glob("step-*"), reverse=True):
        if not (directory / STATE).exists():
            logger.warning(f"{directory}: no {STATE}, passed over")
            continue
        state = read_json(directory / STATE)
        if state["inputs"] != inputs:
            continue
        if all(sha256_file(directory / name) == digest for name, digest in state["sha256"].items()):
            return directory
        logger.warning(f"{directory}: damaged (hash differs), passed over")
    return None
