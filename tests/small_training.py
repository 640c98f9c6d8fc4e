"""Documents to train on, and what a training leaves, for tests that compare trainings byte by byte."""

import json
from pathlib import Path
from typing import Any

import torch

from tunesmith.train.documents import Documents, make_documents

FIXED: dict[str, Any] = {
    "train.tokens_per_step": 120,
    "train.max_length": 40,
    "train.evals_per_epoch": 1,
    "train.learning_rate": 0.02,
    "train.keep_checkpoints": 100,
    "lora.dropout": 0.1,
}


def drawn_documents(seed: int, count: int) -> Documents:
    """Documents of 6 to 29 of 96 tokens, all but the first four supervised."""
    generator = torch.Generator().manual_seed(seed)
    return make_documents(
        [
            (torch.randint(96, (length,), generator=generator).tolist(), [0] * 4 + [1] * (length - 4))
            for length in torch.randint(6, 30, (count,), generator=generator).tolist()
        ]
    )


def bytes_of(home: Path) -> dict[str, Any]:
    """Every file of a training; of a checkpoint's state all but what is measured."""
    files: dict[str, Any] = {
        str(path.relative_to(home)): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()
    }
    for name in [name for name in files if name.endswith("state.json")]:
        files[name] = {key: value for key, value in json.loads(files[name]).items() if key != "seconds"}
    return files
