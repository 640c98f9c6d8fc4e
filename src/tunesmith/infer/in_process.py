"""Greedy decoding with transformers: batched, left-padded, the prompts' common beginning computed once.

Of a few-shot prompt of a thousand tokens some thirty differ from row to row; the rest is computed once for all batches
(``infer/shared_prefix.py``). Rows leave the batch when they end, so one rambling answer does not keep thirty finished
ones computing. ``model.generate`` does neither; it is the oracle in the tests.

Rows of several adapters are answered in one call, grouped by adapter (``infer/adapters.py``). A JSON schema masks the logits
before the greedy choice (``infer/grammar.py``); without one nothing is added to a step. Everything is made where the model is.

Shape suffixes: B rows of the batch, S new tokens of a step (the suffix, then 1), C own tokens so far, V head entries.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith import hardware
from tunesmith.chat.render import Renderer
from tunesmith.chat.vocabulary import AFTER, MIDDLE
from tunesmith.errors import RunError
from tunesmith.infer.adapters import Adapters
from tunesmith.infer.engine import Advance, Answer, Message, Scored
from tunesmith.infer.grammar import Constraint, Grammar
from tunesmith.infer.score import continuation_logprobs
from tunesmith.infer.shared_prefix import MIN_SHARED, SHARED_PREFIX, Prefix, RowCache, common_beginning, compute_prefix
from tunesmith.models.load import attention, decoder


class InProcessEngine:
    """A transformers model and its renderer.

    Args:
        batch_size: rows decoded together.
        adapters: those of the model's LoRA layers, where rows may name one; None for a model that is what it is.
    """

    def __init__(self, model: PreTrainedModel, renderer: Renderer, batch_size: int, adapters: Adapters | None = None):
        self.model = model.eval()
        self.renderer = renderer
        self.batch_size = batch_size
        self.adapters = adapters
        self._grammars: dict[str, Grammar] = {}

    def generate(
        self,
        prompts: list[list[Message]],
        max_new_tokens: int,
        advance: Advance,
        schema: dict[str, Any] | None = None,
        adapters: Sequence[str | None] | None = None,
    ) -> list[Answer]:
        """See ``Engine``.

        Args:
            adapters: the adapter of each row, None for the base model; all rows by the model as it is when not given.

        Raises:
            RunError: a prompt and its answer do not fit the model's context.
            RecipeError: the schema cannot be enforced.
            ModelError: no adapter of this name.
        """
        ids = [self.renderer.prompt_ids(prompt) for prompt in prompts]
        self._check_room(ids, max_new_tokens)
        grammar = None if schema is None else self._grammar(schema)
        if adapters is None:
            return self._generate(ids, max_new_tokens, advance, grammar)
        assert self.adapters is not None, "an engine without adapters"
        assert len(adapters) == len(prompts), f"{len(adapters)} adapters for {len(prompts)} prompts"
        answers: dict[int, Answer] = {}
        try:
            for name in dict.fromkeys(adapters):
                rows = [row for row, wanted in enumerate(adapters) if wanted == name]
                self.adapters.use(name)
                answers |= zip(rows, self._generate([ids[row] for row in rows], max_new_tokens, advance, grammar), strict=True)
        finally:
            self.adapters.use(None)
        return [answers[row] for row in range(len(prompts))]

    def score(self, items: list[tuple[list[Message], str]], advance: Advance) -> list[Scored]:
        """See ``Engine``. An answer is encoded apart from its prompt, as in training, and as plain text.

        Raises:
            RunError: a prompt and its answer do not fit the model's context.
            ModelError: the model does something to its logits that is not known here.
        """
        vocabulary = self.renderer.vocabulary
        asked = [self.renderer.prompt_ids(prompt) for prompt, _ in items]
        begins = [AFTER if ids[-1] in vocabulary.control_ids else MIDDLE for ids in asked]
        said = vocabulary.encode([(answer, place) for (_, answer), place in zip(items, begins, strict=True)])
        return continuation_logprobs(self.model, list(zip(asked, said, strict=True)), advance)

    @torch.inference_mode()
    def _generate(self, ids: list[list[int]], max_new_tokens: int, advance: Advance, grammar: Grammar | None) -> list[Answer]:
        shared = common_beginning(ids)
        shared = shared if shared >= MIN_SHARED else 0
        prefix = compute_prefix(self.model, ids[0][:shared]) if shared else {}
        hardware.keep_freed_memory()
        answers: dict[int, Answer] = {}
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            started = time.perf_counter()
            constraint = None if grammar is None else grammar.start(len(batch))
            with attention(self.model, SHARED_PREFIX):
                new_ids = self._decode([ids[i][shared:] for i in batch], prefix, shared, max_new_tokens, constraint)
            seconds = (time.perf_counter() - started) / len(batch)
            for index, new in zip(batch, new_ids, strict=True):
                answers[index] = self._answer(len(ids[index]), new, seconds)
            advance(len(batch))
        return [answers[index] for index in range(len(ids))]

    def close(self) -> None:
        """Give freed memory back to the system; the model goes with the object."""
        hardware.release_freed_memory()

    def _answer(self, prompt_tokens: int, new_ids: list[int], seconds: float) -> Answer:
        finished = bool(new_ids) and new_ids[-1] in self.renderer.stop_ids
        said = new_ids[:-1] if finished else new_ids
        text = self.renderer.tokenizer.decode(said, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return Answer(text, prompt_tokens, len(new_ids), seconds, finished)

    def _check_room(self, ids: list[list[int]], max_new_tokens: int) -> None:
        limit = self.model.config.max_position_embeddings
        longest = max(len(prompt) for prompt in ids)
        if longest + max_new_tokens > limit:
            raise RunError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of {limit}",
                "lower evaluate.few_shot.k or task.max_new_tokens",
            )

    def _grammar(self, schema: dict[str, Any]) -> Grammar:
        """The schema over this model's vocabulary; made once, since it takes a second for a large vocabulary."""
        key = json.dumps(schema)
        if key not in self._grammars:
            head = self.model.get_output_embeddings()
            assert head is not None
            self._grammars[key] = Grammar(schema, self.renderer.tokenizer, self.renderer.stop_ids, head.weight.shape[0])
        return self._grammars[key]

    def _decode(
        self,
        suffixes: list[list[int]],
        prefix: Prefix,
        shared: int,
        max_new_tokens: int,
        constraint: Constraint | None = None,
    ) -> list[list[int]]:
        """New token ids of each row, its stop token included."""
        device = self.model.device
        width = max(len(suffix) for suffix in suffixes)
        input_BS = torch.tensor([[0] * (width - len(suffix)) + suffix for suffix in suffixes], device=device)
        filled = [[False] * (width - len(suffix)) + [True] * len(suffix) for suffix in suffixes]
        real_BC = torch.tensor(filled, device=device)
        position_BS = (real_BC.cumsum(1) - 1).clamp(min=0) + shared
        # A padding position may see itself: its output is never used, but a softmax over nothing is NaN.
        causal_SC = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        allowed_BSC = (real_BC[:, None, :] & causal_SC) | torch.eye(width, dtype=torch.bool, device=device)
        cache = RowCache(len(suffixes), width + max_new_tokens)
        stop = torch.tensor(self.renderer.stop_ids, device=device)
        rows = list(range(len(suffixes)))
        new_ids: list[list[int]] = [[] for _ in suffixes]
        for _ in range(max_new_tokens):
            logits_BV = self._logits(input_BS, position_BS, cache, prefix, allowed_BSC)
            if constraint is not None:
                constraint.mask_(logits_BV)
            next_B = logits_BV.argmax(-1)
            if constraint is not None:
                constraint.accept(next_B.tolist())
            for row, token in zip(rows, next_B.tolist(), strict=True):
                new_ids[row].append(token)
            keep = (~torch.isin(next_B, stop)).nonzero()[:, 0]
            if len(keep) == 0:
                break
            if len(keep) < len(rows):
                cache.keep_rows(keep)
                rows = [rows[index] for index in keep.tolist()]
                if constraint is not None:
                    constraint.keep_rows(keep.tolist())
                next_B, real_BC, position_BS = next_B[keep], real_BC[keep], position_BS[keep]
            input_BS = next_B[:, None]
            real_BC = torch.cat([real_BC, torch.ones_like(input_BS, dtype=torch.bool)], dim=1)
            allowed_BSC = real_BC[:, None, :]
            position_BS = position_BS[:, -1:] + 1
        return new_ids

    def _logits(self, input_BS: Tensor, position_BS: Tensor, cache: RowCache, prefix: Prefix, allowed_BSC: Tensor) -> Tensor:
        """Of the next token of every row, shape (B, V), before what keeps their order."""
        hidden_BSD = decoder(self.model)(
            input_ids=input_BS,
            position_ids=position_BS,
            past_key_values=cache,
            use_cache=True,
            prefix=prefix,
            allowed_BSC=allowed_BSC,
            seen_from_BS=position_BS,
        ).last_hidden_state
        cache.filled += input_BS.shape[1]
        # The stock model hands its head a strided (B, 1, D); in bf16 that product copies the head once a row: 2 GB.
        # What some families do to the logits afterwards (scale, soft-cap) keeps their order.
        head = self.model.get_output_embeddings()
        assert head is not None
        return head(hidden_BSD[:, -1].contiguous())
