"""The peak of a real step on the GPU that is not there (``fake_cuda.py``), case by case.

    PYTHONPATH=src:tests python -m memory.gpu_trace OUT.json CASES.json

A case is a configuration's name in ``tiny_families.TINY`` or ``gpu_path.walk.CONFIGS`` (with layers) and dials. A process of
its own, since the device changes torch.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

import fake_cuda
from fake_cuda import WATCH
from gpu_path.walk import CONFIGS, _Steps, _stored
from tiny_families import TINY
from tunesmith.layers.dense_buffer import DENSE
from tunesmith.models.device import best_device
from tunesmith.models.fuse import fuse
from tunesmith.models.load import load_model
from tunesmith.models.swap import add_lora
from tunesmith.models.whole_tables import add_whole_tables
from tunesmith.recipe import Lora, TrainSettings
from tunesmith.train.documents import make_documents
from tunesmith.train.loop import train_steps

NAMES = {"embedding": "embed_tokens", "head": "lm_head"}


def configuration(case: dict[str, Any]) -> Any:
    """Of stock transformers."""
    return CONFIGS[case["model"]](case["layers"]) if "layers" in case else TINY[case["model"]].config


def trace(case: dict[str, Any]) -> dict[str, Any]:
    """Bytes alive at most in the second step, and between steps."""
    gc.collect()
    DENSE.runs.clear()
    with fake_cuda.cuda(), _stored(configuration(case)) as folder:
        base = "nf4" if case["base"] == "nf4" else None
        model = load_model(folder, case["compute"], base, best_device())
        layers = add_lora(model, Lora(r=case["r"], alpha=32, dropout=case["dropout"]), 0)
        layers |= add_whole_tables(model, [NAMES[table] for table in case.get("tables", ())])
        fuse(model)
        tokens, rows = case["tokens"], case["rows"]
        documents = make_documents([([7] * tokens, [0] * (tokens - rows) + [1] * rows)])
        settings = TrainSettings(
            learning_rate=2e-4,
            tokens_per_step=tokens,
            num_train_epochs=1,
            max_length=tokens,
            recompute=case["recompute"],
            offload=case.get("offload", "none"),
            mlp_tile=case.get("mlp_tile", 0),
        )
        steps = train_steps(model, layers, documents, _Steps(1), settings, 0)  # type: ignore[arg-type]
        next(steps)
        gc.collect()
        WATCH.reset()
        resident = WATCH.live()
        next(steps)
        return {"peak": WATCH.peak, "resident": resident, "config": json.loads((folder / "config.json").read_text())}


def main() -> None:
    """Trace the cases of a file."""
    torch.set_num_threads(1)
    out, cases = sys.argv[1:]
    Path(out).write_text(json.dumps([trace(case) for case in json.loads(Path(cases).read_text())]))


if __name__ == "__main__":
    main()
