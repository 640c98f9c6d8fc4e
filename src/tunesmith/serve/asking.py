"""What an engine that serves is asked and what it says; what the front and the engines agree on.

An engine gets token ids, never text: the front renders with the renderer of the training, so no text of a user becomes a
control token, and every engine is asked the same. It gives pieces as they come. A model that is asked is *borrowed* until its
answer ended: an adapter that is exchanged meanwhile stays with the engine that the answer began with.

Refused: one call that returns the whole answer beside one that streams (the second is the first, gathered); an adapter as a
number (llama.cpp's ids are of one process, and ids that it does not know are accepted in silence).
"""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from tunesmith.chat.render import Renderer


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. The defaults are greedy, as the gate measured.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p, top_k, min_p: what is cut off before the draw; 1, 0 and 0 cut nothing.
        presence_penalty, frequency_penalty: as OpenAI defines them.
        seed: of the draws; None: another one each time.
        logit_bias: added to the logits of tokens by id.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One answer that is wanted.

    Attributes:
        prompt: token ids.
        max_tokens: the most that the answer may have, at least 1; the front has cut it to what the context leaves.
        sampling: how tokens are drawn.
        stop: texts that end the answer and are not part of it.
        logprobs: how many likeliest tokens beside the one that was taken, 0 for that one alone; None: no log-probabilities.
        grammar: what the answer is constrained to, as ``engines.constraint.as_text`` writes it; None: nothing.
        show_control: whether control tokens are part of the text (answers whose calls are written with them).
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    grammar: str | None = None
    show_control: bool = False


@dataclass(frozen=True)
class Likely:
    """A token with its log-probability (nats); ``text`` are the bytes that it stands for."""

    id: int
    text: bytes
    logprob: float


@dataclass(frozen=True)
class Token:
    """A token of an answer, and the likeliest in its place where those were asked for."""

    taken: Likely
    top: tuple[Likely, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer: whole characters. ``tokens`` is empty unless log-probabilities were asked for."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class End:
    """How an answer ended; the last thing that an engine says.

    Attributes:
        reason: ``stop``: the model ended its turn, or a stop text came; ``length``: the budget.
        prompt_tokens, cached_tokens: of the prompt, and how many of them were not computed anew.
        new_tokens: of the answer, the end-of-turn token included.
        stop: the stop text that came, None where the model ended by itself.
    """

    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    stop: str | None = None


class EngineGone(Exception):
    """The engine died or broke off in the middle of an answer; the message says what is known. The front answers 500 or, where
    the answer had begun, with an error event, and never with an end that looks like one."""


class EngineStarting(EngineGone):
    """There is no engine at this moment and nothing was asked of one; it is being started again. The front answers 503.

    Args:
        seconds: after which it is worth asking again.
    """

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that has a name here.

    Attributes:
        name: what a request asks for and what a reply names.
        created: seconds since 1970, of the files.
        parent: the name of the base; None where it is the base, or one file with everything in it.
        version: of the weights: a hash of their files.
        context: tokens that a prompt and its answer may have together.
        renderer: of the training.
        system: what the system turn of a request without one is (``task.short_prompt``); None: none.
        max_new_tokens: of an answer where the request names no number, as the gate measured.
        sampling: of a request that names nothing.
        form: what is served, in words (``base GGUF and adapter GGUF``).
        verdict: of the run in a word; None for a base.
        warnings: what ``--force`` overrode, and what a reader should know.
        run: the run directory; None for a base.
    """

    name: str
    created: int
    parent: str | None
    version: str
    context: int
    renderer: Renderer
    system: str | None
    max_new_tokens: int
    sampling: Sampling = Sampling()
    form: str
    verdict: str | None = None
    warnings: tuple[str, ...] = ()
    run: Path | None = None


class Borrowed(Protocol):
    """A model with the engine that answers for it."""

    @property
    def served(self) -> Served:
        """The model."""
        ...

    def answer(self, ask: Ask) -> AsyncGenerator[Piece | End, None]:
        """Pieces, then one ``End``. Closing the iterator early (``aclose``) frees the slot.

        Raises:
            EngineGone: the engine died.
        """
        ...


class Models(Protocol):
    """All models that are served, by name; the names may change while requests run."""

    def served(self) -> list[Served]:
        """What can be asked for now, the base first."""
        ...

    def borrow(self, name: str) -> AbstractAsyncContextManager[Borrowed]:
        """A model until the block ends.

        Raises:
            KeyError: no model of that name.
        """
        ...

    async def add(self, run: Path, name: str | None = None, *, force: bool = False) -> Served:
        """Serve a run's model too, or its new version in the place of the old; returns when the first request may come.

        Raises:
            TunesmithError: nothing deployable there, another base, a name that is taken by something else.
        """
        ...

    async def remove(self, name: str) -> None:
        """Serve a model no longer; answers that have begun end as they would.

        Raises:
            KeyError: no adapter of that name.
        """
        ...

    async def close(self) -> None:
        """End the engines."""
        ...
