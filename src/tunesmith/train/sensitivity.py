"""One pass over packs that scores every linear layer: mean squares of its input and of the gradient of its output.

The targets are drawn from the model's own distribution, with a fixed seed, and not taken from the rows. Then the expected
square of the gradient is the Fisher information, whose half is the curvature of ``KL(model || rounded model)`` where nothing is
rounded yet (Martens 2014, section 9): what is measured afterwards, a KL, is what was predicted. With the rows' own targets the
gradient has a mean, and products of the losses of different tokens do not vanish. Whether a row is right or wrong, the score is
about what the model says.

It costs a forward and a backward pass a pack on the stock modules, without gradients of weights, and two vectors a layer. The
model may be dense, in NF4 or in blocks, with an adapter or without, but not yet fused (``models/fuse.py``), whose groups make
the products of several layers at once. The head and the embedding are scored too, tied or not; the experts of a mixture, which
are no linear layers, are not.

Shape suffixes: T tokens, N rows (positions that predict), C rows of one chunk, D hidden size, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.bits.sensitivity import Sensitivity
from tunesmith.kernels.cross_entropy import CHUNK
from tunesmith.layers.embedding import FrozenEmbedding, known_ids
from tunesmith.layers.lora import LoRALinear
from tunesmith.layers.quantized import QuantizedLinear
from tunesmith.models.attention import PACKED
from tunesmith.models.load import attention, decoder, head_of, head_weight
from tunesmith.models.recompute import recompute
from tunesmith.train.documents import Pack


def measure_sensitivity(
    model: PreTrainedModel, packs: Sequence[Pack], seed: int = 0, advance: Callable[[int], None] = lambda _: None
) -> dict[str, Sensitivity]:
    """What the loss says of every linear layer, by its full name, in the model's order; the embedding first, the head last.

    Args:
        model: frozen or not, in evaluation mode, not fused. Nothing of it changes, and no parameter gets a gradient.
        packs: at least one with a position that predicts.
        seed: of the targets that are drawn.
        advance: called with the number of packs done.

    Raises:
        ModelError: the model has no linear head, or no decoder layers.
    """
    assert not model.training, "sensitivities of a model in training mode: dropout would be part of them"
    generator = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    policy = "none" if model.device.type == "cpu" else "layer"
    watch = _Watch(model)
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.enable_grad(), attention(model, PACKED), recompute(model, policy), watch.on():
            for number, pack in enumerate(packs, start=1):
                _pass(model, pack, watch, generator)
                advance(number)
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    return watch.means()


def _pass(model: PreTrainedModel, pack: Pack, watch: "_Watch", generator: torch.Generator) -> None:
    """Add what one pack says."""
    there = pack.to(head_weight(model).device)
    watch.begin(there.ids_1T)
    with contextlib.nullcontext() if there is pack else known_ids(model, pack.ids_1T):
        hidden_TD = decoder(model)(
            input_ids=there.ids_1T, position_ids=there.position_1T, spans=there.spans, use_cache=False
        ).last_hidden_state[0]
    hidden_ND = hidden_TD[there.predict_N]
    gradient_ND = torch.empty_like(hidden_ND)
    for first in range(0, len(hidden_ND), CHUNK):
        gradient_ND[first : first + CHUNK] = watch.head(model, hidden_ND[first : first + CHUNK].detach(), generator)
    watch.forward = False
    if len(hidden_ND):
        hidden_ND.backward(gradient_ND)


class _Watch:
    """Sums of squares, by module."""

    def __init__(self, model: PreTrainedModel):
        head, embedding = head_of(model), model.get_input_embeddings()
        named = dict(model.named_modules())
        kinds = nn.Linear | QuantizedLinear | LoRALinear
        self.linears = {name: module for name, module in named.items() if isinstance(module, kinds) and module is not head}
        self.embedding = next((name for name, module in named.items() if module is embedding), None)
        output = model.get_output_embeddings()
        self._head = next(name for name, module in named.items() if module is output)
        self.tokens, self.predicted, self.forward = 0, 0, False
        self._gradients: dict[str, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}
        self._embedding_module, self._vocabulary = embedding, len(head_weight(model))

    def begin(self, ids_1T: Tensor) -> None:
        """A pack comes; what is computed from here on counts once, until ``forward`` is taken away."""
        self.tokens += ids_1T.shape[1]
        self.forward = True

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Within the block the modules are watched."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self.linears.items()]
        if self._embedding_module is not None:
            handles.append(self._embedding_module.register_forward_hook(self._embedded))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def watched(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if not self.forward or not output.requires_grad:  # a layer is computed a second time in the backward pass
                return
            _add(self._inputs, name, _squares(inputs[0].detach()))
            output.register_hook(lambda gradient: _add(self._gradients, name, _squares(gradient)))

        return watched

    def _embedded(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        assert self.embedding is not None
        name, ids_T = self.embedding, inputs[0].reshape(-1)
        factor = (
            module.factor if isinstance(module, FrozenEmbedding) else float(dict(module.named_buffers()).get("embed_scale", 1))
        )
        _add(self._gradients, name, torch.bincount(ids_T, minlength=self._vocabulary).float())
        embedded = output.detach().requires_grad_()
        embedded.register_hook(lambda gradient: _add(self._inputs, name, _squares(gradient).mul_(factor**2)))
        return embedded

    @torch.no_grad()
    def head(self, model: PreTrainedModel, hidden_CD: Tensor, generator: torch.Generator) -> Tensor:
        """Gradients of some last hidden states, for targets that are drawn; the head's own squares are added, as expected."""
        softcap = vars(model.config).get("final_logit_softcapping")
        with torch.enable_grad():
            input_CD = hidden_CD.requires_grad_()
            logits_CV = model.get_output_embeddings()(input_CD)
            capped_CV = logits_CV.float() if softcap is None else softcap * torch.tanh(logits_CV.float() / softcap)
            probabilities_CV = torch.softmax(capped_CV.detach(), -1)
            target_C1 = torch.multinomial(probabilities_CV.cpu(), 1, generator=generator).to(capped_CV.device)
            loss = -torch.log_softmax(capped_CV, -1).gather(1, target_C1).sum()
            (gradient_CD,) = torch.autograd.grad(loss, input_CD)
        slope_CV = 1.0 if softcap is None else 1.0 - (capped_CV.detach() / softcap).square()
        expected_CV = probabilities_CV * (1.0 - probabilities_CV) * (slope_CV * slope_CV)
        _add(self._gradients, self._head, expected_CV.sum(0))
        _add(self._inputs, self._head, _squares(hidden_CD))
        self.predicted += len(hidden_CD)
        return gradient_CD

    def means(self) -> dict[str, Sensitivity]:
        """Of all that was watched; a layer that no gradient reached has none and is left out."""
        names = [*([] if self.embedding is None else [self.embedding]), *self.linears, self._head]
        counts = {name: self.predicted if name == self._head else self.tokens for name in names}
        return {
            name: Sensitivity(
                (self._gradients[name] / counts[name]).cpu(), (self._inputs[name] / counts[name]).cpu(), counts[name]
            )
            for name in names
            if name in self._gradients and name in self._inputs
        }


def _squares(x: Tensor) -> Tensor:
    """Sum of squares over all leading dimensions, fp32."""
    return x.reshape(-1, x.shape[-1]).float().square().sum(0)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in sums:
        sums[name] += value
    else:
        sums[name] = value
