"""What an engine is: something that answers prompts, greedily, and says what that took.

One protocol for transformers in process, llama.cpp and an endpoint, so that an arm is a prompt and an engine and nothing
else. What an engine cannot do it refuses by one of our errors: no engine answers freely where an answer is constrained to
something, and none makes up a log-probability.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.messages import Message, Tools
from tunesmith.rundir.records import Json
from tunesmith.rundir.records.calls import Calls

Constraint = Json | tuple[str, ...]  # all that an answer may be: what meets a JSON schema, or one of these labels
Advance = Callable[[int], None]
Pair = tuple[Sequence[int], Sequence[int]]  # token ids: a context, and what is scored behind it


@dataclass(frozen=True)
class Choices:
    """Answers that are chosen and not written: one of these labels, by the probability of each (``evaluate/choose.py``)."""

    labels: tuple[str, ...]


Allowed = Constraint | Choices


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: what the model said, without the end-of-turn token.
        prompt_tokens, new_tokens: as the engine counted them, the end-of-turn token included.
        seconds: wall time; of prompts that are answered together, their share of it.
        finished: whether the model ended its turn itself (False: cut at the token budget).
        calls: the tool calls in it, where tools were handed over; None too where the model's template writes none that can be
            read. What a server took out of its answer stands in ``text`` as JSON.
        free: whether the model says the same when nothing constrains it; None: the engine does not know.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    finished: bool
    calls: Calls | None = None
    free: bool | None = None


@dataclass(frozen=True)
class Scored:
    """How likely a given answer is.

    Attributes:
        logprob: of the answer's tokens given the prompt, summed, in nats.
        prompt_tokens, tokens: of the prompt and of the answer.
        greedy: whether greedy decoding would say exactly these tokens.
    """

    logprob: float
    prompt_tokens: int
    tokens: int
    greedy: bool


class Engine(Protocol):
    """Greedy decoding with the model's own chat template."""

    def generate(
        self,
        prompts: list[list[Message]],
        max_new_tokens: int,
        advance: Advance,
        allowed: Constraint | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> list[Answer]:
        """Answer every prompt, in order; ``advance(n)`` is called as answers are done.

        Args:
            allowed: what every answer is constrained to, as far as the token budget lets it end; None for free text.
            tools: what each prompt declares, one entry a prompt; None where none declares any and nobody asks for calls.
        """
        ...

    def score(self, items: list[tuple[list[Message], str]], advance: Advance) -> list[Scored]:
        """Log-probability of a given answer to each prompt, in order, the end-of-turn token not counted."""
        ...

    def close(self) -> None:
        """Give back what the engine holds beside its own object; it answers no more."""
        ...
