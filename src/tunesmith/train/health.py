"""Before the first step: our path computes this model's loss, and every adapter can learn, or the run stops.

A model type that nobody has tried can differ in ways that no error shows: logits that are scaled, a scale in the embeddings.
The loss would look healthy and be another model's. So two short documents go through the stock model, each alone, and through
the packed path, together; a fresh adapter changes nothing, so the two losses are equal to rounding. It costs two short forward
passes.

**A document may not know its neighbours.** A layer that does not hear of documents (a state or a short convolution that runs
on over the row, attention of its own making) hands them on from one to the next. How much the loss moves is no measure: in
bf16 the effect of a convolution, 2e-4 to 4e-3 of the loss, lies within rounding, and in fp32 that of small weights does. The
question that has an exact answer in any precision is what the loss of a document *depends on*: its derivative by every embedded
token of its neighbours is zero, and not small, where nothing flows, because it is then made of no terms or of products with
zero. So one document stands between two others, its loss alone goes backward, and a single number that is not zero refuses the
model. It costs a forward and a backward pass over 81 tokens, in the precision that trains and in the modules that train, and
no second copy in fp32. (What has no derivative, experts that choose their tokens among a whole row, is left to the comparison
with the stock model.)

Then the first rows of the run, some hundred tokens, go forward and backward once. The loss of their text, prompts and
answers alike, has to be below ln V: a model that guesses worse than a fair die over its vocabulary was read with the wrong
weights, tokenizer or head. The answers alone cannot tell: a sound model that was never shown the labels of a classification
expects them less than a die does (11.3 nats a token for ``ham``, ln V is 10.8). Every adapter has
to get a gradient: one that gets none is not part of the computation (a tower that no text passes through, a layer whose
output a fused module makes by itself) and would stay zero while its parameters are counted. At the first step the gradient
is that of B, and of DoRA's magnitudes; A's is zero, because B is. The gradient of experts is looked at for all experts of
a layer together: a few hundred tokens need not reach each of them.

Nothing of it is left behind: no gradient, no random number drawn, no weight touched; the run's bytes are those of a run
without checks. What the data teach is checked in ``health_data.py``.

Refused: a training step on a throw-away copy (twice the memory), and a check of every pack (the loop looks at every loss
anyway).

Shape suffixes: T tokens, V vocabulary, I in_features, O out_features.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, TrainingError
from tunesmith.kernels.upload import upload
from tunesmith.layers.dora import DoRALinear
from tunesmith.layers.embedding import FrozenEmbedding
from tunesmith.layers.experts import Adapted
from tunesmith.layers.new_rows import NewRows
from tunesmith.layers.whole_table import TableEmbedding
from tunesmith.models.attention import PACKED
from tunesmith.models.gpu_failure import is_gpu_failure
from tunesmith.models.load import attention, decoder, head_weight
from tunesmith.train.documents import Documents, make_documents, make_pack
from tunesmith.train.step import mean_loss, pack_loss, step_gradients

LENGTHS = (9, 24)  # tokens of the two documents
NEIGHBOURS = (23, 41, 17)  # tokens of the three documents of the proof that none knows another
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}  # of the loss; measured below 2e-6 and 1e-2 on the known families
EMBEDDINGS = (nn.Embedding, FrozenEmbedding, TableEmbedding)
UNSUPPORTED = "this model type cannot be trained here; docs/reference/families.md lists those that can"
FIRST_TOKENS = 512  # of the rows that go through once
LONG = 2048  # tokens of a row from which its beginning goes through, all of it supervised: whole it might not fit


def _random_documents(model: PreTrainedModel, lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    size = len(head_weight(model))
    return [torch.randint(size, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def stock_loss(model: PreTrainedModel) -> float:
    """Mean cross-entropy (nats a token) of the two documents by the stock model's own logits; before ``fuse``."""
    losses = []
    for ids in _random_documents(model, LENGTHS):
        ids_1T = upload(torch.tensor([ids]), head_weight(model).device)
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits_TV, ids_1T[0, 1:], reduction="sum"))
    return float(sum(losses)) / (sum(LENGTHS) - len(LENGTHS))


def refuse_other_loss(model: PreTrainedModel, expected: float) -> None:
    """Refuse a model whose packed loss is not the stock model's, or in which a document knows its neighbours.

    Args:
        expected: what ``stock_loss`` returned.

    Raises:
        ModelError: the losses differ, a loss depends on another document, or the stock model cannot be called as the packed
            path calls it. What a GPU raises itself goes through as it is (``models/gpu_failure.py``).
    """
    kind = model.config.model_type
    documents = make_documents([(ids, [1] * len(ids)) for ids in _random_documents(model, LENGTHS)])
    was_training = model.training
    try:
        with attention(model.eval(), PACKED):
            leak = _leak(model)
            packed_loss = mean_loss(model, [make_pack(documents, (0, 1))])
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        if is_gpu_failure(error) or _is_in_our_kernels(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{kind}: its layers cannot run over packed documents: {reason:.300}", UNSUPPORTED) from error
    finally:
        model.train(was_training)
    if leak is not None:
        raise ModelError(
            f"{kind}: the loss of a document depends on the documents next to it in a pack ({leak}), so rows would be trained "
            "on what others say",
            UNSUPPORTED,
        )
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, 3e-2)
    if not abs(packed_loss - expected) <= tolerance * abs(expected):
        raise ModelError(
            f"{kind}: the loss over packed documents is {packed_loss:.4f}, the stock model says {expected:.4f}", UNSUPPORTED
        )


def _is_in_our_kernels(error: BaseException) -> bool:
    """Whether a call of ours was refused, as by another version of PyTorch, and not one of a layer of the model."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return isinstance(error, TypeError) and where.startswith("tunesmith.kernels.")


def _leak(model: PreTrainedModel) -> str | None:
    """How the middle one of three documents in a pack depends on the two others; None where it does not at all."""
    before, between, after = _random_documents(model, NEIGHBOURS)
    rows = [(ids, [int(ids is between)] * len(ids)) for ids in (before, between, after)]
    pack = make_pack(make_documents(rows), (0, 1, 2))
    with torch.enable_grad(), _embedded(model, sum(NEIGHBOURS)) as embedded:
        loss, _ = pack_loss(model, pack)
        grads = torch.autograd.grad(loss, embedded, allow_unused=True) if loss.requires_grad else ()
    largest_T = torch.zeros(sum(NEIGHBOURS), device=loss.device)
    for grad in grads:
        if grad is not None:
            largest_T = torch.maximum(largest_T, grad[0].flatten(1).abs().amax(1).float().to(loss.device))
    before_T, between_T, after_T = largest_T.split(NEIGHBOURS)
    if not bool(between_T[:-1].any()):  # its last token predicts nothing
        return "it depends on none of its own tokens, as far as can be seen"
    others = [(name, tokens) for name, tokens in (("before", before_T), ("after", after_T)) if bool((tokens != 0).any())]
    figures = [f"by {float(tokens.max()):.1e} on one {name} it" for name, tokens in others]
    return ", ".join([*figures, f"by {float(between_T.max()):.1e} on its own"]) if figures else None


@contextlib.contextmanager
def _embedded(model: PreTrainedModel, tokens: int) -> Iterator[list[torch.Tensor]]:
    """Within the block, what every embedding of the decoder puts out for a row of so many tokens, as leaves of the graph."""
    leaves: list[torch.Tensor] = []

    def keep(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        if output.ndim < 3 or output.shape[:2] != (1, tokens) or not output.is_floating_point():
            return output
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handles = [module.register_forward_hook(keep) for module in decoder(model).modules() if isinstance(module, EMBEDDINGS)]
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()


def first_rows(documents: Documents, packs: Sequence[Sequence[int]]) -> list[int]:
    """The first documents of a step that teach something, together some ``FIRST_TOKENS`` tokens, at least one."""
    chosen: list[int] = []
    tokens = 0
    for document in (document for pack in packs for document in pack):
        spans = documents.spans(document)
        if not len(spans) or int(spans[-1, 1]) < 2:  # nothing but a first token, which nothing predicts
            continue
        tokens += int(documents.lengths[document])
        if chosen and tokens > FIRST_TOKENS:
            break
        chosen.append(document)
    return chosen


def check_adapter(
    model: PreTrainedModel, layers: Mapping[str, Adapted], documents: Documents, chosen: list[int], *, is_new: bool = True
) -> float:
    """Send the first rows forward and backward once, and look at what comes back. Leaves no trace.

    Args:
        layers: the adapted layers by name, as ``add_lora`` returned them.
        documents: the training part.
        chosen: what ``first_rows`` returned.
        is_new: whether the layers are untrained, so that they may change nothing.

    Returns:
        Their mean loss (nats a supervised token); of rows that are long, that of the text they begin with.

    Raises:
        TrainingError: an adapter changes the model before it is trained, a loss or gradient is not finite, the text's loss
            is above ln V, or an adapter gets no gradient.
    """
    if not chosen:
        raise TrainingError("no row of the first step has a supervised token to predict", "supervise longer answers")
    if is_new:
        _refuse_delta(layers)
    trained = {f"{name}.{key}": p for name, layer in layers.items() for key, p in layer.named_parameters() if p.requires_grad}
    was_training = model.training
    try:
        with attention(model.eval(), PACKED):
            texts = [documents.ids(n)[:LONG] for n in chosen]
            whole = make_documents([(ids, [1] * len(ids)) for ids in texts])
            is_long = any(int(documents.lengths[n]) > LONG for n in chosen)
            first = make_pack(whole, range(len(whole))) if is_long else make_pack(documents, chosen)
            loss, _ = step_gradients(model, [first])
            text_loss = mean_loss(model, [make_pack(whole, range(len(whole)))])
        _refuse_loss(loss, text_loss, len(head_weight(model)), [documents.row_id(document) for document in chosen[:5]])
        _refuse_gradients(trained, _unread(layers, documents, chosen))
    finally:
        model.train(was_training)
        model.zero_grad(set_to_none=True)
    return loss


def _refuse_delta(layers: Mapping[str, Adapted]) -> None:
    for name, layer in layers.items():
        started = [key for key, p in layer.named_parameters() if p.requires_grad and "lora_B" in key and bool(p.any())]
        if started or (isinstance(layer, DoRALinear) and bool(layer.delta_OI().any())):
            raise TrainingError(
                f"{name}: its adapter changes the model before it is trained ({', '.join(started) or 'lora_magnitude_vector'})",
                "an adapter starts from B = 0; is the model adapted already?",
            )


def _refuse_loss(loss: float, text_loss: float, vocabulary: int, rows: list[str]) -> None:
    where = f"train rows {', '.join(rows)}"
    if not math.isfinite(loss):
        raise TrainingError(f"the base model's loss on {where} is {loss}", "use base: fp32; is the checkpoint whole?")
    if not text_loss < math.log(vocabulary):
        raise TrainingError(
            f"the base model's loss on the text of {where} is {text_loss:.2f} nats a token, above the "
            f"{math.log(vocabulary):.2f} of guessing among {vocabulary:,} tokens",
            "do weights, tokenizer and chat template belong together? a random or damaged model looks like this",
        )


def _unread(layers: Mapping[str, Adapted], documents: Documents, chosen: Sequence[int]) -> frozenset[str]:
    """Rows of an embedding whose tokens stand in none of the first rows: nothing reads them yet.

    The head's rows are read in every prediction, and so are those that both tables share.
    """
    tables = [name for name, layer in layers.items() if isinstance(layer, NewRows)]
    if len(tables) < 2:
        return frozenset()
    rows = layers[tables[0]]
    assert isinstance(rows, NewRows)
    is_read = any(((ids := documents.ids(n)) >= rows.first).any() and (ids < rows.end).any() for n in chosen)
    return frozenset() if is_read else frozenset({f"{tables[0]}.rows"})


def _refuse_gradients(trained: Mapping[str, nn.Parameter], unread: frozenset[str]) -> None:
    """A is left out where it is zero: its gradient is B times something, and B is zero."""
    with_gradient = {name: p.grad.abs().max() for name, p in trained.items() if p.grad is not None}
    read = torch.stack([*with_gradient.values()]).tolist() if with_gradient else []  # at once: each look at a GPU is a wait
    largest = dict.fromkeys(trained, 0.0) | dict(zip(with_gradient, read, strict=True))
    odd = [name for name, size in largest.items() if not math.isfinite(size)]
    if odd:
        raise TrainingError(
            f"{odd[0]}: its first gradient is not finite, nor {len(odd) - 1} of {len(trained) - 1} others", "use base: fp32"
        )
    idle = [name for name, size in largest.items() if size == 0.0 and "lora_A" not in name and name not in unread]
    if idle:
        raise TrainingError(
            f"{idle[0]}: no gradient reaches it on the first rows, nor {len(idle) - 1} of {len(trained) - 1} others; "
            "training would leave it at zero",
            "leave it out of lora.target_modules",
        )
