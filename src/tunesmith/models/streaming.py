"""The decoder layers of a model, stored once and streamed from there: what ``train.resident_layers`` asks for.

What is streamed are the NF4 weights of decoder layers, linear ones and experts: 95 % and more of a large model. Embeddings,
head, norms, biases, adapters and quantised weights outside of the layers stay where the model is. A layer's modules are those
of a resident model under the same names; only their weights know where their bytes are (``memory/stream.py``).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tunesmith import hardware
from tunesmith.checkpoints.facts import model_key
from tunesmith.errors import ModelError
from tunesmith.launch.group import group
from tunesmith.layers.nf4 import NF4Weight, dtype_of
from tunesmith.memory.disk import stored_layer_bytes
from tunesmith.memory.ring import SLOTS
from tunesmith.memory.store import FORMAT, Weights, stored
from tunesmith.memory.stream import Layers, open_layers
from tunesmith.memory.streamed_weight import StreamedWeight
from tunesmith.models.placement import Placement
from tunesmith.models.recompute import decoder_layers
from tunesmith.rundir import fingerprint

logger = logging.getLogger(__name__)


def refuse_streaming(storage: str, placement: Placement, is_mixed: bool) -> None:
    """Only NF4 is streamed.

    Args:
        storage: of the base.
        is_mixed: whether some layers of NF4 have more bits.

    Raises:
        ModelError: a base that is kept otherwise.
    """
    if not placement.streams or (storage == "nf4" and not is_mixed):
        return
    key, without = _key(placement)
    if is_mixed:
        why, hint = "base_budget gives some of them more bits", f"leave base_budget out, or {without}"
    else:
        why, hint = f"the base is kept in {storage}", f"base: nf4, or {without}"
    raise ModelError(f"{key}: only layers in NF4 are streamed, and {why}", hint)


def _key(placement: Placement) -> tuple[str, str]:
    """The key that asks for streaming, as it stands in the recipe and as it is without."""
    if placement.shard:
        return "train.shard: true", "train.shard: false"
    return f"train.resident_layers: {placement.resident_layers}", "train.resident_layers: all"


def streamed_weights(
    model: PreTrainedModel,
    shapes: Mapping[str, torch.Size],
    read: Callable[[str, torch.Size], NF4Weight],
    directory: Path,
    device: torch.device,
    placement: Placement,
) -> dict[str, NF4Weight]:
    """The quantised weights of decoder layers by name, streamed; none where all layers stay.

    Args:
        model: as it was built, its quantised modules not yet in place.
        shapes: of all weights that are held in NF4.
        read: reads one of them from the checkpoint, quantised.
        directory: of the checkpoint, which names the store.
        placement: how many of the first layers stay, and whether processes share the others out.

    Raises:
        ModelError: no decoder layers, a damaged store, no room for it on the disk.
        RunError: the disk is full.
    """
    layers = list(decoder_layers(model))
    names = [[name for name in shapes if name.startswith(f"{layer}.")] for layer in layers]
    if not any(names):
        key, without = _key(placement)
        raise ModelError(f"{key}: {type(model).__name__} has no decoder layers with weights in NF4 to stream", without)
    resident, connection = placement.resident, group() if placement.shard else None
    spare = SLOTS if device.type == "cuda" else 0
    if resident + spare >= len(layers):
        beside = f" and {spare} pass through" if spare else ""
        logger.info(f"streaming: none of {len(layers)} layers, since {resident} stay{beside}")
        return {}

    def quantised() -> Iterator[Weights]:
        for of_layer in names:
            weights = [(name, read(name, shapes[name])) for name in of_layer]
            yield [(name, weight.q, weight.dtype) for name, weight in weights]

    key = fingerprint(model_key(directory), FORMAT)[:16]
    expected = sum(stored_layer_bytes(shapes[name].numel() for name in of_layer) for of_layer in names)
    store = stored(hardware.cache_dir() / "streams" / key, expected, quantised())
    found = {place.name: torch.Size(place.shape) for layer in store.layers for place in layer.weights}
    if found != {name: shapes[name] for of_layer in names for name in of_layer}:
        raise ModelError(f"{store.directory}: holds another model's layers", f"remove {store.directory}; it is made again")
    opened = open_layers(store, device, resident, connection)
    return {
        place.name: NF4Weight(StreamedWeight(opened, number, place), dtype_of(place.name, place.dtype))
        for number, layer in enumerate(store.layers)
        for place in layer.weights
    }


def layers_of(model: torch.nn.Module) -> Layers | None:
    """Who hands out the layers of a streamed model; None for a resident one."""
    weights = (module for module in model.modules() if isinstance(module, NF4Weight))
    return next((weight.streamed.layers for weight in weights if weight.streamed is not None), None)
