"""The most bytes of tensors alive in a real step on a CPU, by a count of storages as they come and go.

What one operation of PyTorch takes and gives back within itself is not seen.
"""

import gc
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gguf import GGMLQuantizationType as Type
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunesmith.checkpoints.gguf_write.quantize import ggml
from tunesmith.kernels.blocks import Blocks
from tunesmith.layers.dense_buffer import DENSE
from tunesmith.layers.grid import GridBase
from tunesmith.models.fuse import fuse
from tunesmith.models.load import load_model
from tunesmith.models.swap import adaptable_names, add_lora, put_module
from tunesmith.recipe import Lora, TrainSettings
from tunesmith.train import distributed
from tunesmith.train.documents import make_documents
from tunesmith.train.loop import train_steps

CPU = torch.device("cpu")


class Storages(TorchDispatchMode):
    """Bytes of the storages that operations return.

    Attributes:
        peak: at most, beyond those that it was told of.
    """

    def __init__(self, known: list[torch.Tensor]):
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.total = self.peak = 0
        for tensor in known:
            self._count(tensor)
        self.peak = self.total

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self._count, (args, kwargs, out))
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            if not self._live[key][0].expired():
                return
            self.total -= self._live.pop(key)[1]
        self._live[key] = StorageWeakRef(storage), storage.nbytes()
        self.total += storage.nbytes()
        if self.total > self.peak:
            for old in [old for old, (ref, _) in self._live.items() if ref.expired()]:
                self.total -= self._live.pop(old)[1]
            self.peak = max(self.peak, self.total)


class _Steps:
    epoch_ends = (100,)

    def __init__(self, documents: int):
        self._documents = documents

    def __len__(self) -> int:
        return 100

    def __getitem__(self, step: int, /) -> tuple[int, list[tuple[int, ...]]]:
        return 0, [tuple(range(self._documents))]


def lay_made_up_grids(model: PreTrainedModel) -> None:
    """The blocks that a file would hold, without one; of the type with a scale and a minimum for every 32 weights."""
    for name in adaptable_names(model):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        raw = torch.from_numpy(ggml().quantize(linear.weight.float().numpy(), Type.Q4_1, None)).view(len(linear.weight), -1)
        put_module(model, name, GridBase(linear, Blocks(raw, "Q4_1", tuple(linear.weight.shape))))


def trace(config: Any, directory: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Bytes alive at most in the second step, and before it.

    Args:
        case: dials by name; ``documents`` for how many the tokens are cut into.
    """
    gc.collect()
    DENSE.runs.clear()
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    model = load_model(directory, case["compute"], "nf4" if case["base"] == "nf4" else None, CPU)
    if case.get("qat"):
        lay_made_up_grids(model)
    layers = add_lora(model, Lora(r=case["r"], alpha=32, dropout=case["dropout"]), 0)
    fuse(model)
    tokens, rows, count = case["tokens"], case["rows"], case["documents"]
    size, some = tokens // count, rows // count
    texts = [([7 + n] * size, [0] * (size - some) + [1] * some) for n in range(count)]
    dials = {"recompute": case["recompute"], "mlp_tile": case.get("mlp_tile", 0), "ranks": 1}
    settings = TrainSettings(learning_rate=2e-4, tokens_per_step=tokens, num_train_epochs=1, max_length=tokens, **dials)
    with mock.patch.object(distributed, "pack_tokens", lambda *_: tokens):
        steps = train_steps(model, layers, make_documents(texts), _Steps(count), settings, 0)  # type: ignore[arg-type]
        next(steps)
    gc.collect()
    known = [*model.parameters(), *model.buffers(), *DENSE.runs.values()]
    with Storages([tensor.detach() for tensor in known]) as seen:
        next(steps)
    steps.close()
    moments = sum(8 * p.numel() for p in model.parameters() if p.requires_grad)  # the optimizer meets them behind the peak
    return {"peak": seen.peak + moments, "config": json.loads((directory / "config.json").read_text())}
