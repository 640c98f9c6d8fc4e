"""Several packs through a layer before any of them goes to the next: a streamed layer is fetched once for all of them.

A model whose layers are streamed (``memory/stream.py``) pays for every pass over its weights, whatever the pass computes. Pack
after pack, a step of eight short packs copies the model sixteen times; layer after layer, twice. The price is the inputs of all
layers of all packs, so as many packs go together as fit into a quarter of the memory that is free, and layers must be
recomputed (``train.recompute: layer``), or the insides would stay as well.

**The decoder's own loop stays the authority.** Stock decoders differ in what they hand to a layer: a mask by the layer's kind,
rotary tables by kind, positions. So the loop is not written anew. It runs once with layers that write down what they are given
and return what came in; then we drive the real layers with that; then the loop runs again with layers that let the results
pass, for what stands after them. Embeddings are gathered twice. A loop that does anything to the hidden states between two
layers is found out, since the tensor that arrives is not the one that left, and goes pack after pack; so do layers that read
keys and values of earlier ones, whose gradients cross from layer to layer. Whatever goes so is said, once a model.

**Same bytes.** A layer's graph begins at a leaf and ends at its output, and its adapters add up their gradients in the order of
the packs, as they do pack after pack; dropout follows from step, pack and layer. On a CPU the gradients are equal to the bit.

Refused: a thread a pack that hands on a baton at every layer (on a GPU all backward passes share one thread of the engine).

Shape suffixes: T tokens, D hidden size; here: X is N where the last layer is narrow, else T.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith import hardware
from tunesmith.models.device import usable_memory
from tunesmith.models.load import decoder
from tunesmith.models.new_tokens import trains_embedding
from tunesmith.models.recompute import Recomputed
from tunesmith.models.streaming import layers_of
from tunesmith.train.documents import Pack

logger = logging.getLogger(__name__)

SHARE = 4  # of the free memory, one part is for inputs of layers
NOT_PLAIN = "its decoder does something to the hidden states between two layers"
_SAID: WeakKeyDictionary[PreTrainedModel, set[str]] = WeakKeyDictionary()  # why packs went alone


class _NotPlain(Exception):
    """Something is done to the hidden states between two layers."""


@dataclass
class _Call:
    """What the decoder's loop hands to a layer beside the hidden states."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


class _Between(nn.Module):
    """In the place of a decoder layer, which answers everything else that it is asked."""

    def __init__(self, inner: nn.Module, answer: Callable[[Tensor, _Call], Tensor]):
        super().__init__()
        self.inner = inner
        self.training = inner.training
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__["_modules"]["inner"]
        return inner if name == "inner" else getattr(inner, name)

    def forward(self, hidden_states: Tensor, *positional: Any, **named: Any) -> Tensor:
        """What is to be returned in the layer's stead."""
        return self._answer(hidden_states, _Call(positional, named))


def passes(model: PreTrainedModel, packs: Sequence[Pack]) -> list[list[int]]:
    """Numbers of packs that go through the layers together; one at a time where nothing is gained or it cannot be.

    Args:
        packs: of a step, or of a dev part.
    """
    alone = [[number] for number in range(len(packs))]
    if len(packs) < 2 or layers_of(model) is None:
        return alone
    is_training = torch.is_grad_enabled()
    if (reason := _reason_alone(model, is_training)) is not None:
        _say_once(model, reason)
        return alone
    device, width = model.device, int(model.config.hidden_size)
    room = (usable_memory(device) if device.type == "cuda" else hardware.available_memory() // _processes()) // SHARE
    inputs = len(_layers(model)) + 2 if is_training else 2
    token = inputs * width * (4 if model.dtype == torch.float16 else model.dtype.itemsize)
    together: list[list[int]] = []
    taken = room + 1
    for number, pack in enumerate(packs):
        nbytes = pack.ids_1T.shape[1] * token
        if taken + nbytes > room:
            together.append([])
            taken = 0
        together[-1].append(number)
        taken += nbytes
    return together


def _reason_alone(model: PreTrainedModel, is_training: bool) -> str | None:
    """Why no two packs of a model can go together; None where they can."""
    layers = _layers(model)
    if NOT_PLAIN in _SAID.get(model, ()):
        return NOT_PLAIN
    if not layers or model.config.to_dict().get("num_kv_shared_layers"):
        return "layers read keys and values of earlier ones"
    if is_training and trains_embedding(model):
        return "rows of the embedding are trained, whose gradients come out of the first layer"
    if is_training and not all(isinstance(layer, Recomputed) for layer in list(layers.values())[:-1]):
        return "a layer keeps what it computes for its gradients; train.recompute: layer fetches it once for all packs"
    return None


def _say_once(model: PreTrainedModel, reason: str) -> None:
    if reason not in (said := _SAID.setdefault(model, set())):
        said.add(reason)
        logger.warning(f"streaming: every pack of a step fetches the layers for itself: {reason}")


def _processes() -> int:
    """Of a training on a CPU, which share its memory and its cores."""
    return max(1, hardware.physical_cores() // torch.get_num_threads())


def gradients_together(
    model: PreTrainedModel,
    packs: Sequence[int],
    decode: Callable[[int], Tensor],
    backward: Callable[[int, Tensor], None],
    enter: Callable[[int], None],
) -> bool:
    """Add the gradients of some packs to ``.grad``, layer after layer; False, and nothing done, where the loop is not plain.

    Args:
        packs: their numbers.
        decode: runs the decoder over a pack and returns its last hidden states, shape (X, D).
        backward: takes the loss of a pack from its last hidden states and runs it backward.
        enter: to be called with a pack's number before anything of it is computed.
    """
    calls = _recorded(model, packs, decode)
    if calls is None:
        return False
    layers = list(_layers(model).values())
    hidden = {pack: first for pack, (first, _) in calls.items()}
    kept: list[dict[int, tuple[Tensor, Tensor]]] = []
    for number, layer in enumerate(layers):
        kept.append({})
        for pack in packs:
            enter(pack)
            into, call = _leaf(hidden[pack]), calls[pack][1][number]
            hidden[pack] = layer(into, *call.positional, **call.named)
            kept[-1][pack] = into, hidden[pack]
    grads: dict[int, Tensor | None] = {}
    for pack in packs:
        enter(pack)
        last = _leaf(hidden.pop(pack))
        with _answering(model, _Passing(last)):
            hidden_XD = decode(pack)
        backward(pack, hidden_XD)
        grads[pack] = last.grad
    for of_layer in reversed(kept):
        for pack in packs:
            into, out = of_layer.pop(pack)
            if out.requires_grad and grads[pack] is not None:
                enter(pack)
                torch.autograd.backward(out, grads[pack])
            grads[pack] = into.grad
    return True


def hidden_together(
    model: PreTrainedModel, packs: Sequence[int], decode: Callable[[int], Tensor]
) -> Iterator[tuple[int, Tensor]] | None:
    """Last hidden states (X, D) of some packs, layer after layer and without gradients; None where the loop is not plain.

    Args:
        packs: their numbers.
        decode: runs the decoder over a pack and returns its last hidden states.
    """
    calls = _recorded(model, packs, decode)
    if calls is None:
        return None
    hidden = {pack: first for pack, (first, _) in calls.items()}
    for number, layer in enumerate(_layers(model).values()):
        for pack in packs:
            call = calls[pack][1][number]
            hidden[pack] = layer(hidden[pack], *call.positional, **call.named)
    return _finished(model, hidden, decode)


def _finished(
    model: PreTrainedModel, hidden: dict[int, Tensor], decode: Callable[[int], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    for pack in list(hidden):
        with _answering(model, _Passing(hidden.pop(pack))):
            out = decode(pack)
        yield pack, out


class _Passing:
    """Lets through what came out of the last layer."""

    def __init__(self, last: Tensor):
        self._last = last

    def answer(self, number: int, count: int, hidden: Tensor, call: _Call) -> Tensor:
        """Whatever comes in is dropped at the last layer."""
        return self._last if number == count - 1 else hidden


class _Recording:
    """Writes down what every layer is given."""

    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.calls: list[_Call] = []

    def answer(self, number: int, count: int, hidden: Tensor, call: _Call) -> Tensor:
        """What came in, which has to come in again at the next layer."""
        if self.first is None:
            self.first = hidden
        if hidden is not self.first:
            raise _NotPlain
        self.calls.append(call)
        return hidden


def _recorded(
    model: PreTrainedModel, packs: Sequence[int], decode: Callable[[int], Tensor]
) -> dict[int, tuple[Tensor, list[_Call]]] | None:
    """The first hidden states of each pack, and what its layers are given; None where the loop is not plain."""
    found: dict[int, tuple[Tensor, list[_Call]]] = {}
    for pack in packs:
        recording = _Recording()
        try:
            with torch.no_grad(), _answering(model, recording):
                decode(pack)
        except _NotPlain:
            _say_once(model, NOT_PLAIN)
            return None
        assert recording.first is not None and len(recording.calls) == len(_layers(model))
        found[pack] = recording.first, recording.calls
    return found


@contextmanager
def _answering(model: PreTrainedModel, answerer: _Recording | _Passing) -> Iterator[None]:
    """Within the block something else answers for the layers."""
    parent, layers = decoder(model).get_submodule("layers"), _layers(model)
    for number, (name, layer) in enumerate(layers.items()):

        def answer(hidden: Tensor, call: _Call, number: int = number) -> Tensor:
            return answerer.answer(number, len(layers), hidden, call)

        parent.register_module(name, _Between(layer, answer))
    try:
        yield
    finally:
        for name, layer in layers.items():
            parent.register_module(name, layer)


def _leaf(hidden: Tensor) -> Tensor:
    """The same values, where a graph begins if one comes in."""
    return hidden.detach().requires_grad_(hidden.requires_grad)


def _layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder's layers by name, as they stand; none where they are kept elsewhere."""
    return dict(dict(decoder(model).named_children()).get("layers", nn.Module()).named_children())
