"""Answers and log-probabilities of a transformers model in this process.

The decoding is ``engines/decode.py``, the scoring ``engines/score.py``; here conversations become token ids and token ids
become answers.

What answers are constrained to masks the logits before the greedy choice (``engines/grammar.py``); free text adds nothing to a
step. Everything is made where the model is.
"""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from tunesmith import hardware
from tunesmith.chat.calls.forms import read_calls
from tunesmith.chat.calls.probe import call_form
from tunesmith.chat.render import Renderer
from tunesmith.chat.vocabulary import AFTER, MIDDLE
from tunesmith.engines.decode import Generation, StopRule, greedy
from tunesmith.engines.engine import Advance, Answer, Constraint, Scored
from tunesmith.engines.grammar import Grammar
from tunesmith.engines.score import Scorer
from tunesmith.errors import RunError
from tunesmith.messages import Message, Tools


class InProcessEngine:
    """A transformers model and its renderer.

    Args:
        batch_size: rows decoded together.
    """

    def __init__(self, model: PreTrainedModel, renderer: Renderer, batch_size: int):
        self.model = model.eval()
        self.renderer = renderer
        self.batch_size = batch_size
        self._scorer = Scorer(model)

    def generate(
        self,
        prompts: list[list[Message]],
        max_new_tokens: int,
        advance: Advance,
        allowed: Constraint | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> list[Answer]:
        """See ``Engine``.

        Raises:
            RunError: a prompt and its answer do not fit the model's context.
            RecipeError: what answers are constrained to cannot be enforced.
        """
        declared = tools or [None] * len(prompts)
        ids = [self.renderer.prompt_ids(prompt, own) for prompt, own in zip(prompts, declared, strict=True)]
        self._check_room(ids, max_new_tokens)
        answers = self._generate(ids, max_new_tokens, advance, None if allowed is None else self._grammar(allowed))
        if tools is None or (form := call_form(self.renderer)) is None:
            return answers
        return [replace(answer, calls=read_calls(answer.text, form, own)) for answer, own in zip(answers, tools, strict=True)]

    def score(self, items: list[tuple[list[Message], str]], advance: Advance) -> list[Scored]:
        """See ``Engine``. An answer is encoded apart from its prompt, as in training, and as plain text.

        Raises:
            RunError: a prompt and its answer do not fit the model's context.
            ModelError: the model does something to its logits that is not known here.
        """
        vocabulary = self.renderer.vocabulary
        prompts = [self.renderer.prompt_ids(prompt) for prompt, _ in items]
        begins = [AFTER if ids[-1] in vocabulary.control_ids else MIDDLE for ids in prompts]
        answers = vocabulary.encode([(answer, place) for (_, answer), place in zip(items, begins, strict=True)])
        return self._scorer.continuation_logprobs(list(zip(prompts, answers, strict=True)), advance)

    def _generate(self, ids: list[list[int]], max_new_tokens: int, advance: Advance, grammar: Grammar | None) -> list[Answer]:
        stop_rule = StopRule(max_new_tokens, self.renderer.stop_ids)
        constrain = None if grammar is None else lambda numbers: grammar.start(len(numbers))
        generations = greedy(self.model, ids, stop_rule, self.batch_size, advance, constrain)
        return [self._answer(len(prompt), generation) for prompt, generation in zip(ids, generations, strict=True)]

    def close(self) -> None:
        """Give freed memory back to the system; the model goes with the object."""
        hardware.release_freed_memory()

    def _answer(self, prompt_tokens: int, generation: Generation) -> Answer:
        finished = bool(generation.ids) and generation.ids[-1] in self.renderer.stop_ids
        answer_ids = generation.ids[:-1] if finished else generation.ids
        text = self.renderer.tokenizer.decode(answer_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return Answer(text, prompt_tokens, len(generation.ids), generation.seconds, finished, free=generation.likeliest)

    def _check_room(self, ids: list[list[int]], max_new_tokens: int) -> None:
        limit = self.model.config.max_position_embeddings
        longest = max(len(prompt) for prompt in ids)
        if longest + max_new_tokens > limit:
            raise RunError(
                f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of {limit}",
                "lower evaluate.few_shot.k or task.max_new_tokens",
            )

    def _grammar(self, allowed: Constraint) -> Grammar:
        """What is allowed over this model's vocabulary."""
        head = self.model.get_output_embeddings()
        assert head is not None
        return Grammar(allowed, self.renderer.tokenizer, self.renderer.stop_ids, head.weight.shape[0])
