"""Constrained decoding: at every token the model chooses among those that can still lead to an answer that is allowed,
which is one that meets a JSON schema or one of a list of labels.

llguidance turns the schema, or the labels as alternatives, into a parser over bytes and says for each token of the vocabulary
whether it fits; what does not fit gets a logit of minus infinity, and greedy decoding goes on as always. A mask costs 20 to 50
microseconds a token. The llama.cpp that we run has the same library inside, so the deployed form gets the same as text
(``as_text``).

**A schema that cannot be enforced is refused before the first token.** llguidance names what it does not know (``not``, a
remote ``$ref``). llama.cpp's own check of it only writes to its log and then answers freely, so it is not relied upon. A
keyword that llguidance only warns about is refused too: it would be ignored.

White space between tokens of JSON is what llama.cpp's own grammars allow: one blank, or one or two line breaks and up to 20
characters of indentation. Unbounded white space lets a weak model fill its budget with nothing; none at all forces
a tuned model out of the layout that it learned. The copy of llguidance inside llama.cpp does not know this option: there
white space has no bound, and an untrained model may spend its budget on it.

Several end tokens are one to the grammar: where it lets the answer end, every stop token of the model is allowed.

Refused: Outlines and xgrammar, which cover 3 and 28 % of the hard schemas of JSONSchemaBench where llguidance covers 41, and
a converter of schemas to grammars of our own.

Source: llguidance 1.x (``LLMatcher``, ``JsonCompileOptions``); llama.cpp ``common/llguidance.cpp`` for the text form.

Shape suffixes: B rows of a batch, V vocabulary; here: X bytes with a bit for each entry.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunesmith.engines.engine import Constraint
from tunesmith.errors import MissingPackage, RecipeError

WHITESPACE = r"( |\n{1,2}[ \t]{0,20})?"
OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}


def as_text(allowed: Constraint) -> str:
    """The grammar of what is allowed as llama.cpp takes it in ``grammar``.

    Raises:
        RecipeError: it cannot be enforced whole: a schema's keyword that is not known, a reference that leads nowhere, a
            schema that nothing meets.
        MissingPackage: llguidance is not installed.
    """
    _compiled(allowed)
    if isinstance(allowed, tuple):
        return f"%llguidance {{}}\n{_alternatives(allowed)}\n"
    return f"%llguidance {{}}\nstart: %json {json.dumps({**allowed, 'x-guidance': OPTIONS})}\n"


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
        self._grammar = _compiled(allowed)
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


def _alternatives(labels: tuple[str, ...]) -> str:
    """Labels in the grammar language of llguidance, whose strings are those of JSON."""
    return "start: " + " | ".join(json.dumps(label, ensure_ascii=False) for label in labels)


def check_constraint(allowed: Constraint) -> None:
    """Whether answers can be constrained to it at all, before a model is loaded.

    Raises:
        MissingPackage: the extra is not installed.
        RecipeError: it cannot be enforced.
    """
    _compiled(allowed)


def fits(allowed: Constraint, text: str) -> bool:
    """Whether an answer is one that is allowed, to the last character; raises as ``check_constraint``."""
    if isinstance(allowed, tuple):
        return text in allowed
    import llguidance

    matcher = llguidance.LLMatcher(_of_bytes(), _compiled(allowed))
    given = list(text.encode())
    return matcher.try_consume_tokens(given) == len(given) and matcher.is_accepting()


@functools.cache
def _of_bytes() -> Any:
    """A vocabulary whose tokens are the bytes."""
    import llguidance

    return llguidance.LLTokenizer("byte")


def _compiled(allowed: Constraint) -> str:
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "constrained decoding needs the package llguidance", "run: pip install 'tunesmith[constrained]'"
        ) from error
    if isinstance(allowed, tuple):
        grammar = llguidance.LLMatcher.grammar_from_lark(_alternatives(allowed))
    else:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(allowed, overrides=OPTIONS)  # type: ignore[arg-type]
    wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong or messages:
        raise RecipeError(
            f"{'the list of labels' if isinstance(allowed, tuple) else 'the JSON schema'} cannot be enforced token by token: "
            f"{messages[0].strip()}",
            "simplify the schema, or decode freely and let the metric check the answers",
        )
    return grammar
