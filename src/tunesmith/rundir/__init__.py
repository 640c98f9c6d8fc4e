"""The run directory: the contract between stages.

    recipe.yaml      resolved: every default written out
    manifest.json    base model, hashes, seeds, package versions, git, hardware
    stages.json      what is done: inputs by name, outputs with their hashes, seconds, peak memory
    data/            rows by part, split.json, report.json, rejected.jsonl and left_out.jsonl, the template as it was settled,
                     rendered.json, token ids (*.arrow), what each module of the base is kept in, the importance of its columns
    events.jsonl     everything that happened, in order; append-only
    metrics.jsonl    figures of the training steps; metrics.csv beside it
    training.json    what came out of the training: steps, losses, the best checkpoint, memory
    checkpoints/     step-000120/ and so on: the best and the newest; race.json
    adapter/         PEFT format, the best checkpoint, or the one that was brought
    brought.json     the tuned models that were brought in the place of training, and their files' hashes; brought/ holds the
                     template that each is asked with, and the adapters where there are several
    advice.json      whether to tune at all; advice/ holds the prompt to copy
    evaluation/      one folder per arm, finalists/ for prompts beside them; selection, choice, retrieval, judge, forgetting,
                     seeds, curve and verdict as JSON; *.sqlite
    readings/        what answered the test part, a line a reading; the same is in the user's data folder
    seeds/ curve/    runs inside the run: other seeds, shares of the train part
    race/            runs inside the run: other base models on a few rows, and race.json
    export/          merged/, merge.json, *.gguf, export.json, adapter-vllm/ where vLLM needs its own form, Modelfile,
                     commands.json; NAME.scores.safetensors, NAME.rounding.json and *.types.json of dynamic types;
                     .next/ while an export is made
    report.html      the page
    tracked/         what was sent to each tracker; tensorboard/ and wandb/ are those trackers' own
    .lock            who writes here at this moment; empty when nobody does

Every file appears whole or not at all: it is written under a temporary name, flushed to the disk, and renamed. A stage
is done while its inputs and its outputs are what ``stages.json`` says; else it is made again. One process writes at a time
(``lock.py``), any number read.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tunesmith.rundir.atomic import (
    atomic_directory,
    fingerprint,
    flush,
    free_bytes,
    read_json,
    recover_directory,
    sha256_file,
    write_json,
    write_lines,
    write_text,
    writing_lines,
)
from tunesmith.rundir.environment import git_state, package_versions
from tunesmith.rundir.rows import Row, read_rows, stream_rows, write_rows, writing_rows
from tunesmith.rundir.swap import NEXT, READY, finish_swap, forget_journal, swap_in

if TYPE_CHECKING:
    from tunesmith.rundir.paths import RunDir

__all__ = [
    "NEXT",
    "READY",
    "Row",
    "RunDir",
    "atomic_directory",
    "fingerprint",
    "finish_swap",
    "flush",
    "forget_journal",
    "free_bytes",
    "git_state",
    "package_versions",
    "read_json",
    "read_rows",
    "recover_directory",
    "sha256_file",
    "stream_rows",
    "swap_in",
    "write_json",
    "write_lines",
    "write_rows",
    "write_text",
    "writing_lines",
    "writing_rows",
]


def __getattr__(name: str) -> Any:
    """``RunDir``, which knows recipes, when it is first used (PEP 562): help and events need the rest alone.

    Raises:
        AttributeError: no such name.
    """
    if name != "RunDir":
        raise AttributeError(f"module 'tunesmith.rundir' has no attribute {name!r}")
    return importlib.import_module("tunesmith.rundir.paths").RunDir
