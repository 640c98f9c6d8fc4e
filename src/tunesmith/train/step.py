"""What one optimizer step computes: the packs, their losses, their gradients.

Every pack goes forward and backward by itself, and its gradient is added to the sum of those before it, in the order of their
numbers. Of a model whose layers are streamed, several packs go through a layer before the next (``train/lockstep.py``), and the
sum is the same. That sum is the definition of a step's gradient: where packs are dealt out to several processes
(``train/distributed.py``), the same numbers are added in the same order.

On a CPU packs are what is dealt out to processes, so there a step should have four, of about equal size and of no more tokens
than its products need to be efficient, or two where four would be too small: ``pack_tokens``. It follows from recipe and rows
alone.

Shape suffixes: T tokens, N rows (positions that predict), D hidden size; here: X is N where the last layer is
narrow, else T.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.kernels.cross_entropy import linear_cross_entropy
from tunesmith.layers.context import Counters, StepContext, at_step
from tunesmith.layers.embedding import known_ids
from tunesmith.models.fuse import narrows
from tunesmith.models.load import decoder, head_new_rows, head_of, head_rows, head_weight
from tunesmith.train.documents import Documents, Pack, make_shared_pack, supervised_tokens
from tunesmith.train.lockstep import gradients_together, hidden_together, passes
from tunesmith.train.prefix import even_parts, find_groups, micro_batches

CUT_COST = 1 / 7  # of a step's tokens that may be computed again because groups are cut, at most
PACKS_PER_STEP = (4, 2)  # at least, on a CPU, as long as packs are not too small
SMALLEST_PACK = 112  # tokens; a pack has costs that do not depend on its size, and smaller ones were not measured
# A pack that is dealt out has a multiple of these tokens. oneDNN compiles a bf16 product for every shape, some 3 ms each, and
# keeps a limited number: 1,442 in 16 steps of packs of any size, 825 so (docs/LOG.md).
ROUND = 16
LARGEST_PACK = 512  # tokens: rows of a product; more make it no faster on a core, and take memory


def pack_tokens(tokens_per_step: int, longest: int, max_length: int) -> int:
    """Tokens of a pack on a CPU.

    Args:
        longest: tokens of the longest document.
        max_length: what the longest may have.
    """
    packs = next((packs for packs in PACKS_PER_STEP if tokens_per_step >= packs * SMALLEST_PACK), 1)
    return min(max_length, max(longest, min(-(-tokens_per_step // packs), LARGEST_PACK)))


def pack_loss(model: PreTrainedModel, pack: Pack, counters: Counters | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy (fp32, nats) and right top-1 guesses over a pack's supervised tokens, where the model is.

    Args:
        counters: of the step; None where nothing is counted.
    """
    there = pack.to(head_weight(model).device)
    return _loss_of(model, there, _last_hidden(model, pack, there), counters)


def _last_hidden(model: PreTrainedModel, pack: Pack, there: Pack) -> Tensor:
    """What the decoder ends with, shape (X, D).

    Args:
        there: the pack where the model is.
    """
    with nullcontext() if there is pack else known_ids(model, pack.ids_1T):
        return decoder(model)(
            input_ids=there.ids_1T, position_ids=there.position_1T, spans=there.spans, rows_N=there.predict_N, use_cache=False
        ).last_hidden_state[0]


def _loss_of(model: PreTrainedModel, pack: Pack, hidden_XD: Tensor, counters: Counters | None) -> tuple[Tensor, Tensor]:
    """See ``pack_loss``; of a pack that is where the model is."""
    hidden_ND = hidden_XD if narrows(model) else hidden_XD[pack.predict_N]
    softcap = vars(model.config).get("final_logit_softcapping")
    overflow = None if counters is None else counters.overflow
    bias, trained = head_of(model).bias, head_new_rows(model)
    return linear_cross_entropy(hidden_ND, head_rows(model), pack.target_N, softcap, overflow, bias, trained)


def step_packs(documents: Documents, packs: list[tuple[int, ...]], most: int, tokens: int | None = None) -> list[Pack]:
    """The micro-batches of a step, with common beginnings computed once.

    Args:
        packs: the documents of each, as planned; they are put together anew.
        most: tokens of a micro-batch, at most, before it is rounded up.
        tokens: that it should have, about, all of them alike; more where documents share much, since every micro-batch computes
            what they share again. None: as many as it may have.
    """
    chosen = [document for pack in packs for document in pack]
    groups = find_groups(documents, chosen, most)
    batches = micro_batches(groups, most)
    if tokens is not None and tokens < most:
        count = -(-sum(len(documents.ids(document)) for document in chosen) // tokens)
        shared = max(max(group.shared) for group in groups)
        if shared:
            count = min(count, 1 + int(CUT_COST * sum(group.tokens for group in groups) / shared))
        even = [find_groups(documents, part, most) for part in even_parts(documents, groups, count)]
        if all(sum(group.tokens for group in part) <= most for part in even):
            batches = even
    multiple = 1 if tokens is None else ROUND
    return [make_shared_pack(documents, [(group.documents, group.shared) for group in batch], multiple) for batch in batches]


def step_gradients(
    model: PreTrainedModel,
    packs: Sequence[Pack],
    context: StepContext | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """Add the gradients of one optimizer step to ``.grad``, pack after pack.

    Args:
        packs: of the whole step.
        context: of the step; adapters train in it, with dropout, and everything else computes as it is deployed. None: all of
            it computes as the model stands, and nothing is counted.
        meanwhile: called when all is under way, before the host waits for a GPU.

    Returns:
        The step's mean loss (nats a supervised token) and its top-1 accuracy.
    """
    total = supervised_tokens(packs)
    sums, right = [], []
    counters = None if context is None else context.counters
    with nullcontext(lambda _: None) if context is None else at_step(model, context) as enter:

        def backward(number: int, pack_sum: Tensor, pack_correct: Tensor) -> None:
            (pack_sum / total).backward()
            sums.append(pack_sum.detach())
            right.append(pack_correct)

        for numbers in passes(model, packs):
            if len(numbers) > 1 and _gradients_together(model, {n: packs[n] for n in numbers}, counters, enter, backward):
                continue
            for number in numbers:
                enter(number)
                backward(number, *pack_loss(model, packs[number], counters))
    meanwhile()
    # Read when all is under way: a GPU runs one pack while the next is copied to it.
    return sum(map(float, sums)) / total, sum(map(int, right)) / total


def _gradients_together(
    model: PreTrainedModel,
    packs: Mapping[int, Pack],
    counters: Counters | None,
    enter: Callable[[int], None],
    backward: Callable[[int, Tensor, Tensor], None],
) -> bool:
    """Packs that go through the layers together; False, and nothing done, where they cannot."""
    there = {number: pack.to(head_weight(model).device) for number, pack in packs.items()}

    def run_backward(number: int, hidden_XD: Tensor) -> None:
        backward(number, *_loss_of(model, there[number], hidden_XD, counters))

    return gradients_together(model, list(packs), partial(_decoded, model, packs, there), run_backward, enter)


def _decoded(
    model: PreTrainedModel, packs: Mapping[int, Pack] | Sequence[Pack], there: Mapping[int, Pack], number: int
) -> Tensor:
    return _last_hidden(model, packs[number], there[number])


@torch.no_grad()
def mean_loss(model: PreTrainedModel, packs: list[Pack]) -> float:
    """Mean cross-entropy (nats a supervised token) over packs, without dropout."""
    assert not model.training, "a dev loss of a model in training mode"
    sums: list[Tensor] = []
    for numbers in passes(model, packs):
        there = {n: packs[n].to(head_weight(model).device) for n in numbers}
        decode = partial(_decoded, model, packs, there)
        found = hidden_together(model, numbers, decode) if len(numbers) > 1 else None
        for number, hidden_XD in found or ((n, decode(n)) for n in numbers):
            sums.append(_loss_of(model, there[number], hidden_XD, None)[0])
    return sum(map(float, sums)) / supervised_tokens(packs)
