"""Before the first step: our path computes this model's loss, or the run stops.

A model type that nobody has tried can differ in ways that no error shows: logits that are scaled, attention that does not
know of documents, a head with a bias. The loss would look healthy and be another model's. So two short documents go
through the stock model, each alone, and through the packed path, together; a fresh adapter changes nothing, so the two
losses are equal to rounding. It costs two short forward passes.
"""

import torch
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.models.attention import PACKED
from tunesmith.models.load import attention
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.loop import mean_loss

LENGTHS = (9, 24)  # tokens of the two documents
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}  # of the loss; measured below 2e-6 and 1e-2 on the known families


def _documents(model: PreTrainedModel) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[arg-type]
    return [torch.randint(size, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.no_grad()
def stock_loss(model: PreTrainedModel) -> float:
    """Mean cross-entropy (nats a token) of the two documents by the stock model's own logits; before ``fuse``."""
    losses = []
    for ids in _documents(model):
        ids_1T = torch.tensor([ids])
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits_TV, ids_1T[0, 1:], reduction="sum"))
    return float(sum(losses)) / (sum(LENGTHS) - len(LENGTHS))


def refuse_other_loss(model: PreTrainedModel, expected: float) -> None:
    """Refuse a model whose packed loss is not the stock model's.

    Args:
        expected: what ``stock_loss`` returned.

    Raises:
        ModelError: the losses differ, or the stock model cannot be called as the packed path calls it.
    """
    kind = model.config.model_type
    hint = "this model type is not supported; docs/guides/training.md names those that are"
    documents = make_documents([(ids, [1] * len(ids)) for ids in _documents(model)])
    try:
        with attention(model, PACKED):
            found = mean_loss(model, [make_pack(documents, (0, 1))])
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise ModelError(f"{kind}: its layers cannot run over packed documents: {error}", hint) from error
    tolerance = TOLERANCE.get(next(model.parameters()).dtype, 3e-2)
    if not abs(found - expected) <= tolerance * abs(expected):
        told = f"{kind}: the loss over packed documents is {found:.4f}, the stock model says {expected:.4f}"
        raise ModelError(told, hint)
