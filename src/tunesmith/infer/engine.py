"""What an engine is: something that answers prompts, greedily, and says what that took."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Message = dict[str, str]


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: what the model said, without the end-of-turn token.
        prompt_tokens, new_tokens: as the engine counted them, the end-of-turn token included.
        seconds: wall time; within a batch, the batch's time divided by its rows.
        finished: whether the model ended its turn itself (False: cut at the token budget).
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    finished: bool


class Engine(Protocol):
    """Greedy decoding with the model's own chat template."""

    def generate(self, prompts: list[list[Message]], max_new_tokens: int, advance: Callable[[int], None]) -> list[Answer]:
        """Answer every prompt, in order; ``advance(n)`` is called as answers are done."""
        ...

    def close(self) -> None:
        """Give back what the engine holds beside its own object; it answers no more."""
        ...
