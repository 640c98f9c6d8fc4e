"""Constrained decoding: at every token the model chooses among those that can still lead to an answer that is allowed
(``engines/constraint.py``).

llguidance turns a schema, or labels as alternatives, into a parser over bytes and says for each token of the vocabulary
whether it fits; what does not fit gets a logit of minus infinity, and greedy decoding goes on as always. A mask costs 20 to 50
microseconds a token. The llama.cpp that we run has the same library inside, so the deployed form gets the same as text.

Several end tokens are one to the grammar: where it lets the answer end, every stop token of the model is allowed.

Shape suffixes: B rows of a batch, V vocabulary; here: X bytes with a bit for each entry.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunesmith.engines.constraint import compiled
from tunesmith.engines.engine import Constraint
from tunesmith.errors import RecipeError


class Grammar:
    """A schema or labels over one model's vocabulary.

    Args:
        allowed: JSON schema, or labels.
        tokenizer: of the model, a fast one.
        stop_ids: tokens that end an answer.
        vocabulary: V.

    Raises:
        RecipeError: it cannot be enforced, or the tokenizer is not a fast one.
        MissingPackage: llguidance is not installed.
    """

    def __init__(self, allowed: Constraint, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], vocabulary: int):
        self._grammar = compiled(allowed)
        self._vocabulary = vocabulary
        self._stop_ids = sorted(stop_ids)
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise RecipeError("constrained decoding needs a fast tokenizer", "decode freely, or convert the tokenizer")
        self._tokenizer = _vocabulary(tokenizer, vocabulary, tuple(self._stop_ids))

    def start(self, rows: int) -> "GrammarState":
        """The constraint on so many answers, none of which has begun."""
        import llguidance

        return GrammarState([llguidance.LLMatcher(self._tokenizer, self._grammar) for _ in range(rows)], self._stop_ids)


class GrammarState:
    """Where each answer of a batch stands in its grammar."""

    def __init__(self, matchers: list[Any], stop_ids: list[int]):
        self._matchers = matchers
        self._stop_ids = stop_ids

    def change(self, logits_BV: Tensor) -> Tensor:
        """The same logits, those of tokens that do not fit at minus infinity."""
        packed_BX = np.stack([np.frombuffer(matcher.compute_bitmask(), np.uint8) for matcher in self._matchers])
        fits_BV = np.unpackbits(packed_BX, axis=1, bitorder="little")[:, : logits_BV.shape[1]].astype(bool)
        return logits_BV.masked_fill_(~torch.from_numpy(fits_BV).to(logits_BV.device), -torch.inf)

    def accept(self, tokens: Sequence[int]) -> None:
        """Move every row on by the token that it chose."""
        for matcher, token in zip(self._matchers, tokens, strict=True):
            if token not in self._stop_ids:
                accepted = matcher.consume_token(token)
                assert accepted, f"a token outside its mask: {token}: {matcher.get_error()}"

    def keep_rows(self, keep: Sequence[int]) -> None:
        """Forget all rows but ``keep``."""
        self._matchers = [self._matchers[row] for row in keep]


@functools.lru_cache(maxsize=2)
def _vocabulary(tokenizer: PreTrainedTokenizerFast, size: int, stop_ids: tuple[int, ...]) -> Any:
    """A tokenizer as llguidance has it: half a second for 49,152 tokens, and every grammar of a model is over the same one."""
    import llguidance.hf

    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=size, eos_token=list(stop_ids))
