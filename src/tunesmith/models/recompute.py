"""Gradient checkpointing: compute a part of the model a second time in the backward pass instead of keeping its insides.

What a layer keeps for its gradients is many times the size of its input. A part that is recomputed keeps its input alone
and runs its forward pass again when its gradients are due (Chen et al. 2016, arXiv 1604.06174): a third more arithmetic
for a layer, for the memory of all its insides. The policy is the dial: every attention, every MLP, every layer, every n-th
layer, or the layers of a list.

A last layer that computes only the rows that are read (``layers/last.py``) is left alone: its insides are
small and would be wanted again at once. Gradients are the same to the bit, dropout included, because a mask follows from the
step, the pack and the layer (``layers/context.py``) and nothing else is random.

**What nobody reads is not recomputed.** A part is computed again for what its gradients need. Where it ends with an MLP of
ours, whose output is added to the residual and nothing else, that is all but the down projection: a quarter of its products.

The stock models' own switch was refused: it knows layers only, must be set on the class's terms (a swapped forward loses
it) and silently turns caches off. Here the parts are taken into wrapper modules on one instance and let go at the end.

A trap, held by tests: layers that read keys and values of earlier layers get them through a mapping that the
earlier layer fills; under reentrant checkpointing such gradients are silently wrong, so the non-reentrant form is used,
which keeps the one true graph: filling the mapping again with the recomputed tensors then changes no gradient, and a
reader is always recomputed before its writer. A cache of past keys would be filled twice; it is refused.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tunesmith.errors import ModelError
from tunesmith.kernels.known_attention import cannot_know
from tunesmith.layers.attention import FusedAttention
from tunesmith.layers.mlp import FusedMLP
from tunesmith.layers.offload import AttentionResult, HostRing, Kept
from tunesmith.models.swap import put_module

Policy = Literal["auto", "none", "attention", "mlp", "layer"] | int | tuple[int, ...]
Offload = Literal["none", "inputs", "attention"]

# What stock models call the two blocks of a decoder layer. Experts may stand beside an MLP instead of within it.
BLOCKS = {
    "attention": ("self_attn", "attention", "attn", "self_attention", "linear_attn"),
    "mlp": ("mlp", "feed_forward", "block_sparse_moe", "experts"),
}


class Recomputed(nn.Module):
    """A module whose insides are not kept for the backward pass. Everything else that is asked of it, the module answers.

    Args:
        inner: the module.
        ring: where its input waits for the backward pass (``layers/offload.py``); None for where it is.
        attention: of the module, whose result waits there too; None where it is computed again.
    """

    def __init__(self, inner: nn.Module, ring: HostRing | None = None, attention: FusedAttention | None = None):
        super().__init__()
        self.inner, self.ring = inner, ring
        self._knowing = () if attention is None else (attention,)  # no child of this module: it is one of the inner one
        self.training = inner.training

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__["_modules"]["inner"]
        return inner if name == "inner" else getattr(inner, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns; without gradients it is a plain call.

        Raises:
            ModelError: a key/value cache is among the arguments; it would be filled twice.
        """
        if not torch.is_grad_enabled():
            return self.inner(*args, **kwargs)
        if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
            raise ModelError("train.recompute cannot run with a key/value cache", "call the model with use_cache=False")
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        options["context_fn"] = lambda: (contextlib.nullcontext(), self._again())
        ring = self.ring
        if ring is None:
            return checkpoint(self.inner, *args, **options, **kwargs)
        hidden = args[0]
        away = _Away(ring, hidden)

        attention_result = AttentionResult(ring)

        def inner(*rest: Any, **named: Any) -> Any:
            with self._using(attention_result):
                return self.inner(away.tensor(), *rest, **named)

        result = checkpoint(inner, *args[1:], **options, **kwargs)
        away.leave()
        return result

    @contextlib.contextmanager
    def _using(self, result: AttentionResult) -> Iterator[None]:
        """Of this pass, and of the one that repeats it."""
        for attention in self._knowing:
            attention.result = result
        try:
            yield
        finally:
            for attention in self._knowing:
                attention.result = None

    @contextlib.contextmanager
    def _again(self) -> Iterator[None]:
        """The second time, the output that ends this part is not read."""
        mlps = [mlp for mlp in self.inner.modules() if isinstance(mlp, FusedMLP) and (mlp.ends_layer or mlp is self.inner)]
        for mlp in mlps:
            mlp.is_read = False
        try:
            yield
        finally:
            for mlp in mlps:
                mlp.is_read = True


class _Away:
    """A layer's input: at hand in the forward pass, in host memory after it. ``checkpoint`` keeps the tensors it is given."""

    def __init__(self, ring: HostRing, x: torch.Tensor):
        self._ring, self._x, self._requires_grad = ring, x, x.requires_grad
        self._kept: Kept | None = None

    def tensor(self) -> torch.Tensor:
        """It; once it has left, as a tensor of its own."""
        if self._kept is None:
            return self._x
        return self._ring.take(self._kept)[0].requires_grad_(self._requires_grad)

    def leave(self) -> None:
        """Begin to copy it out."""
        self._kept = self._ring.put(self._x)
        del self._x


@contextlib.contextmanager
def recompute(model: PreTrainedModel, policy: Policy, *, offload: Offload = "none") -> Iterator[None]:
    """Within the block the parts that the policy names are recomputed; afterwards the model is as it was.

    Args:
        policy: ``none``, ``attention``, ``mlp``, ``layer``, n for the first of every n layers, or the numbers of
            layers; ``auto`` that nobody has replaced by one of them (``pipeline/dials.py``) is ``none``.
        offload: ``inputs`` of recomputed layers wait in host memory, or these and what ``attention`` gave; with ``layer``, n
            or a list alone.

    Raises:
        ModelError: the model has no such parts, or attention whose result cannot be kept.
    """
    names = recomputed_names(model, policy)
    inner = {name: model.get_submodule(name) for name in names}
    knows = offload == "attention"
    attentions = {name: _attention_of(name, module, model) if knows else None for name, module in inner.items()}
    ring = None if offload == "none" else HostRing(model.device, ahead=2 if knows else 1)
    for name, module in inner.items():
        put_module(model, name, Recomputed(module, ring, attentions[name]))
    try:
        yield
    finally:
        for name, module in inner.items():
            module.train(model.get_submodule(name).training)
            put_module(model, name, module)


def _attention_of(name: str, layer: nn.Module, model: PreTrainedModel) -> FusedAttention:
    """The attention of a layer, whose result can be kept."""
    attention = next((module for module in layer.modules() if isinstance(module, FusedAttention)), None)
    if attention is None:
        raise ModelError(
            f"train.offload: attention: {name} has stock attention, whose result is not ours", "use offload: inputs"
        )
    reason = cannot_know(model.device, model.dtype, attention.heads.head_dim, attention.scoring)
    if reason is not None:
        raise ModelError(f"train.offload: attention: {name}: {reason}", "use train.offload: inputs")
    return attention


def recomputed_names(model: PreTrainedModel, policy: Policy) -> list[str]:
    """Full names of the modules that a policy recomputes, in the model's order.

    Raises:
        ModelError: no decoder layers are found, one has no block of the kind, or a number is none of a layer.
    """
    if policy in ("auto", "none"):
        return []
    layers = decoder_layers(model)
    if not layers:
        raise ModelError(f"train.recompute: {type(model).__name__} has no decoder layers that could be recomputed", "use none")
    if policy == "layer" or isinstance(policy, int):
        return list(layers)[:: policy if isinstance(policy, int) else 1]
    if isinstance(policy, tuple):
        missing = [number for number in policy if number >= len(layers)]
        if missing:
            raise ModelError(f"train.recompute: no layer {missing[0]}", f"the model has layers 0 to {len(layers) - 1}")
        return [name for number, name in enumerate(layers) if number in policy]
    names = []
    for layer, module in layers.items():
        children = [name for name, _ in module.named_children()]
        blocks = [name for name in children if name in BLOCKS[policy]]
        if not blocks:
            raise ModelError(f"train.recompute: {layer} has no {policy} among {', '.join(children)}", "use layer")
        names += [f"{layer}.{name}" for name in blocks]
    return names


def decoder_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The layers of the text decoder by their full names, in order; an encoder of images or sound is left alone."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    layers: dict[str, nn.Module] = {}
    for name, module in decoder.named_modules(prefix=prefix):
        within = any(name.startswith(f"{layer}.") for layer in layers)
        if isinstance(module, GradientCheckpointingLayer) and not within:
            layers[name] = module
    return layers
