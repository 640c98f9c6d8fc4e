"""Bytes that a training writes, from shapes alone: the base, the stored layers, the checkpoints, the adapter.

A disk that is full after a night is dearer than one that is refused, so every form has its size before its first byte. Weights
are counted; what a file holds beside them (names, places, a few numbers) is taken for as much a tensor (``ENTRY``).
What an export writes is known by ``export/sizes.py``.

Held by tests within 3 % of the files of a real run.

Left out: image and audio towers of a multimodal checkpoint, rendered rows, answers, and logs.
"""

from collections.abc import Iterable

from tunesmith.memory.dials import BYTES, Dials
from tunesmith.memory.estimate import estimate, groups, table_weights, trained_weights
from tunesmith.memory.shape import Layer, Shape
from tunesmith.rundir.records import Json

SECTOR = 4096  # a stored layer begins at a multiple of it, and is filled up to one
PART = 512  # a part of a weight begins at a multiple of it
CODED, NESTED = 64, 256  # weights with one absmax, and such with one absmax of their own
ENTRY, MOMENT_ENTRY = 140, 75  # bytes of a tensor's entry in a safetensors header: name, dtype, shape, place; of a moment's
STATE = 2048  # bytes of a checkpoint's other files, about
WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2}
BEST, WRITTEN = 1, 1  # checkpoints that are there beside the newest ones: the best one, and the one that is being written


def width_of(config: Json) -> int:
    """Bytes of a weight of a checkpoint by its ``config.json``; 4 where it does not say, as transformers takes it."""
    part = config.get("text_config")
    said = [facts.get(key) for facts in (config, part if isinstance(part, dict) else {}) for key in ("dtype", "torch_dtype")]
    return next((WIDTH[name] for name in said if isinstance(name, str) and name in WIDTH), 4)


def base_bytes(shape: Shape, config: Json) -> int:
    """Bytes of a checkpoint's weights, in the 4 bits that its configuration may speak of."""
    width = width_of(config)
    if not config.get("quantization_config"):
        return dense_bytes(shape, width)
    return dense_bytes(shape, width) - int(shape.linear * (width - BYTES["nf4"]))


def dense_bytes(shape: Shape, width: int) -> int:
    """Bytes of all weights of the text model, so many bytes each."""
    biases = sum(sum(layer.inputs) for layer in shape.layers if layer.biases) + (shape.vocab if shape.head_bias else 0)
    return (shape.parameters + shape.norms + biases) * width


def nf4_parts(count: int) -> tuple[int, int, int]:
    """Bytes of a weight of so many numbers in NF4: packed codes, codes of the absmax, and their absmax."""
    return -(-count // 2), -(-count // CODED), 4 * -(-count // (CODED * NESTED))


def stored_layer_bytes(counts: Iterable[int]) -> int:
    """Bytes of a layer in the store (``memory/store.py``), by the numbers of each of its weights."""
    parts = sum(-(-nbytes // PART) * PART for count in counts for nbytes in nf4_parts(count))
    return -(-parts // SECTOR) * SECTOR


def stored_bytes(shape: Shape) -> int:
    """Bytes of the store of a model's layers."""
    return sum(stored_layer_bytes(_weights(layer, shape.hidden)) for layer in shape.layers)


def _weights(layer: Layer, hidden: int) -> list[int]:
    """Numbers of each weight that ``base`` decides about."""
    found = [inputs * out for inputs, outs in groups(layer, hidden) for out in outs]
    return found + [share * layer.experts * layer.expert * hidden for share in (2, 1) if layer.experts]


def adapter_file_bytes(shape: Shape, dials: Dials) -> int:
    """Bytes of an adapter's file, as if every linear layer were adapted; in it a tied table lies twice."""
    twin = table_weights(shape, dials) if shape.tied else 0
    return _trained_bytes(shape, dials) + 4 * twin


def _trained_bytes(shape: Shape, dials: Dials) -> int:
    """Of all that is trained, each weight once."""
    return 4 * trained_weights(shape, dials) + 2 * ENTRY * adapted_layers(shape)


def checkpoint_bytes(shape: Shape, dials: Dials) -> int:
    """Bytes of a checkpoint: the adapter and the optimizer's state, of which each factor has three tensors."""
    moments = estimate(shape, dials).resident["optimizer"] + 2 * 3 * MOMENT_ENTRY * adapted_layers(shape)
    return _trained_bytes(shape, dials) + moments + STATE


def checkpoints_at_once(keep: int, saves: int | None = None) -> int:
    """The most checkpoints that lie there at a time.

    Args:
        keep: ``train.keep_checkpoints``.
        saves: of the whole training; None where it is not known.
    """
    most = keep + BEST + WRITTEN
    return most if saves is None else min(most, saves)


def adapted_layers(shape: Shape) -> int:
    """Layers that have an adapter."""
    return sum(sum(len(outs) for _, outs in groups(layer, shape.hidden)) + 2 * (layer.experts > 0) for layer in shape.layers)
