"""What greedy decoding may say where rounding decides: no test may depend on how a processor rounds.

The likeliest token of a random model is often ahead of the second by less than the rounding of its logits. Which of the two
wins then follows from the instructions of the processor, the number of threads and the rows of the batch, and after it the
answers have nothing in common. So an answer is not compared with *the* answer of an oracle but with all that greedy decoding
can give where differences of two logits are known to a bound: the oracle is asked again behind every token that close to the
likeliest. Mostly that is one answer, and a wrong model is as far from all of them as from the first (test_ties.py).

Refused: looking only at the first place where two answers part, which says nothing of what follows; a share of answers that
may differ, which passes a model that is wrong on few; and prompts chosen by their gaps, since weights that were trained on
another processor have other gaps.

The cost is a pass of the oracle without a cache for every token.
"""

from collections.abc import Callable, Iterator, Sequence
from math import inf

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.engines.grammar import Grammar

FP32 = 1e-4  # two logits of at most 20 by sums of a few hundred products, 2^-24 each: below 1e-5 where it was measured
F16 = 0.04  # llama.cpp rounds activations, keys and values to 2^-11: 0.02 a logit of the tiny models (test_llama_model.py)
MOST = 200  # answers beyond which a comparison with one of them would say little

NextLogits = Callable[[list[int]], Tensor]
"""Token ids -> logits of the next token, shape (V,)."""


def next_logits(model: PreTrainedModel) -> NextLogits:
    """Those of a stock model, without a cache."""

    @torch.inference_mode()
    def logits_of(ids: list[int]) -> Tensor:
        return model(torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1].double()

    return logits_of


def constrained(logits_of: NextLogits, grammar: Grammar, prompt_tokens: int) -> NextLogits:
    """Logits of which those that the grammar does not allow behind the prompt are minus infinity."""

    def allowed_of(ids: list[int]) -> Tensor:
        state = grammar.start(1)
        for token in ids[prompt_tokens:]:
            state.accept([token])
        logits_1V = logits_of(ids)[None].clone()
        logits_1V = state.change(logits_1V)
        return logits_1V[0]

    return allowed_of


def greedy_answers(
    logits_of: NextLogits, prompt: list[int], new_tokens: int, bound: float, stop_ids: Sequence[int] = ()
) -> list[list[int]]:
    """New ids of every answer that greedy decoding may give, the oracle's own first, the token that ends it included.

    Args:
        bound: to how much a difference of two logits is known, the oracle's rounding and the other's together.
    """

    def answers(new: list[int]) -> Iterator[list[int]]:
        if len(new) == new_tokens or (new and new[-1] in stop_ids):
            yield new
            return
        logits_V = logits_of(prompt + new)
        near = (logits_V >= logits_V.max() - bound).nonzero()[:, 0]
        for token in near[logits_V[near].argsort(descending=True)].tolist():
            yield from answers([*new, token])

    found = []
    for answer in answers([]):
        found.append(answer)
        assert len(found) <= MOST, f"more than {MOST} answers within {bound}: the bound is too wide for this model"
    return found


def is_greedy(logits_NV: Tensor, ids: list[int], bound: float) -> bool | None:
    """Whether each token is the likeliest at its place; None where rounding decides.

    Args:
        logits_NV: the oracle's, of the places where ``ids`` stand.
        bound: as in ``greedy_answers``.
    """
    chosen_N = logits_NV.gather(1, torch.tensor(ids, dtype=torch.int64)[:, None])[:, 0]
    others_N = logits_NV.scatter(1, torch.tensor(ids, dtype=torch.int64)[:, None], -inf).amax(-1)
    behind = max((others_N - chosen_N).tolist(), default=-inf)
    return None if abs(behind) <= bound else behind < 0
