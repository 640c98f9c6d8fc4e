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

Shape suffixes: T tokens, N rows (positions that predict), C rows of one chunk, D hidden size, V vocabulary, O out_features, I
in_features.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import set_checkpoint_early_stop
from transformers import PreTrainedModel

from tunesmith.bits.sensitivity import Sensitivity
from tunesmith.errors import ModelError
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
        ModelError: the model has no linear head, or no decoder layers; inputs or gradients that are not finite.
    """
    assert not model.training, "sensitivities of a model in training mode: dropout would be part of them"
    generator = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    policy = "none" if model.device.type == "cpu" else "layer"
    watch = _Watch(model, twice=policy != "none")
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        # whole layers: what stops at the last tensor that a gradient wants leaves out the input of the last product
        whole = set_checkpoint_early_stop(False)
        with whole, torch.enable_grad(), attention(model, PACKED), recompute(model, policy), watch.on():
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
        gradient_ND[first : first + CHUNK] = watch.draw(hidden_ND[first : first + CHUNK].detach(), generator)
    watch.turn()
    if len(hidden_ND):
        hidden_ND.backward(gradient_ND)
    watch.end()


class _Sums:
    """``sum_t g_to^2 x_ti^2`` of one module by row (O), by column (I) and in all, and the sum of all ``g_to^2``."""

    def __init__(self) -> None:
        self.by_row: Tensor | None = None
        self.by_column: Tensor | None = None
        self.total = self.gradients = 0.0

    def add(self, gradient_TO: Tensor, input_TI: Tensor) -> None:
        """Some tokens, given by squares."""
        gradient_T, input_T = gradient_TO.sum(1), input_TI.sum(1)
        by_row, by_column = input_T @ gradient_TO, gradient_T @ input_TI
        self.add_sums(by_row, by_column, float(input_T @ gradient_T), float(gradient_T.sum()))

    def add_sums(self, by_row: Tensor, by_column: Tensor, total: float, gradients: float) -> None:
        """Some tokens, already summed."""
        self.by_row = by_row if self.by_row is None else self.by_row + by_row
        self.by_column = by_column if self.by_column is None else self.by_column + by_column
        self.total += total
        self.gradients += gradients

    def mean(self, tokens: int) -> Sensitivity | None:
        """None where no gradient came, or no input that is not zero."""
        if self.by_row is None or self.by_column is None or not self.total or not self.gradients:
            return None
        gradient_O = self.by_row * (self.gradients / (self.total * tokens))
        return Sensitivity(gradient_O.cpu(), (self.by_column / self.gradients).cpu(), tokens)


class _Watch:
    """The sums of every module, and of those that are half known their input or the gradient of their output.

    Args:
        twice: whether layers are computed a second time in the backward pass, so that no input has to wait for it.
    """

    def __init__(self, model: PreTrainedModel, twice: bool):
        head, self._embedding = head_of(model), model.get_input_embeddings()
        output = model.get_output_embeddings()
        assert output is not None, "head_of refuses a model without one"
        self._head, self._softcap = output, vars(model.config).get("final_logit_softcapping")
        self._vocabulary, self._twice, self._forward = len(head_weight(model)), twice, False
        named = dict(model.named_modules())
        kinds = nn.Linear | QuantizedLinear | LoRALinear
        self._linears = {name: module for name, module in named.items() if isinstance(module, kinds) and module is not head}
        table = next((name for name, module in named.items() if module is self._embedding), "")
        self._table, self._top = table, next(name for name, module in named.items() if module is self._head)
        self._sums = {name: _Sums() for name in (table, *self._linears, self._top) if name}
        self._inputs: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._tokens = 0

    def begin(self, ids_1T: Tensor) -> None:
        """A pack comes."""
        self._tokens += ids_1T.shape[1]
        self._forward = True

    def turn(self) -> None:
        """From here on layers are computed for the second time."""
        self._forward = False

    def end(self) -> None:
        """All gradients of a pack have come; what none came for waits no longer."""
        assert not self._gradients, f"no input came for {', '.join(self._gradients)}"
        self._inputs.clear()

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Within the block the modules are watched."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._linears.items()]
        if self._table:
            handles.append(self._embedding.register_forward_hook(self._embedded))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def back(gradient: Tensor) -> None:
            if name in self._inputs:
                self._sums[name].add(_squares(gradient), _squares(self._inputs.pop(name)))
            else:  # of the last product of a layer, whose gradient is what has the layer computed again
                self._gradients[name] = gradient

        def watched(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return
            if self._forward:
                output.register_hook(back)
            if self._forward == self._twice:
                return
            if name in self._gradients:
                self._sums[name].add(_squares(self._gradients.pop(name)), _squares(inputs[0].detach()))
            else:
                self._inputs[name] = inputs[0].detach()

        return watched

    def _embedded(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        """A table is read without a product: row v of its squares is what the tokens that read it have together."""
        ids_T = inputs[0].reshape(-1)
        scale = dict(module.named_buffers()).get("embed_scale", 1.0)
        factor = module.factor if isinstance(module, FrozenEmbedding) else float(scale)

        def back(gradient: Tensor) -> None:
            squares_TD = _squares(gradient) * factor**2
            token_T = squares_TD.sum(1)
            by_row = torch.zeros(self._vocabulary, device=token_T.device).index_add_(0, ids_T, token_T)
            self._sums[self._table].add_sums(by_row, squares_TD.sum(0), float(token_T.sum()), float(len(ids_T)))

        embedded = output.detach().requires_grad_()
        embedded.register_hook(back)
        return embedded

    @torch.no_grad()
    def draw(self, hidden_CD: Tensor, generator: torch.Generator) -> Tensor:
        """Gradients of some last hidden states, for targets that are drawn; the head's own squares are added, as expected."""
        with torch.enable_grad():
            input_CD = hidden_CD.requires_grad_()
            logits_CV = self._head(input_CD).float()
            capped_CV = logits_CV if self._softcap is None else self._softcap * torch.tanh(logits_CV / self._softcap)
            probabilities_CV = torch.softmax(capped_CV.detach(), -1)
            target_C1 = torch.multinomial(probabilities_CV.cpu(), 1, generator=generator).to(capped_CV.device)
            loss = -torch.log_softmax(capped_CV, -1).gather(1, target_C1).sum()
            (gradient_CD,) = torch.autograd.grad(loss, input_CD)
        squares_CV = probabilities_CV * (1.0 - probabilities_CV)
        if self._softcap is not None:
            squares_CV *= (1.0 - (capped_CV.detach() / self._softcap).square()).square()
        self._sums[self._top].add(squares_CV, _squares(hidden_CD))
        return gradient_CD

    def means(self) -> dict[str, Sensitivity]:
        """Of all that was watched; a layer that no gradient reached is left out.

        Raises:
            ModelError: a mean that is not finite.
        """
        means = {name: sums.mean(self._tokens) for name, sums in self._sums.items()}
        found = {name: mean for name, mean in means.items() if mean is not None}
        for name, mean in found.items():
            if not (mean.gradient_O.isfinite().all() and mean.input_I.isfinite().all()):
                raise ModelError(
                    f"{name}: what goes in, or its gradient, is not finite, so nothing can be said of its layer",
                    "does the model answer? compute in fp32 or bf16 (train.compute)",
                )
        return found


def _squares(x: Tensor) -> Tensor:
    """Squares by token and channel, fp32."""
    return x.reshape(-1, x.shape[-1]).float().square()
