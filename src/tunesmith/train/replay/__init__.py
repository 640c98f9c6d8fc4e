"""Replay: what the base model itself writes, as rows to train on beside the task's, against forgetting.

A model that is tuned on one narrow task learns the task's answers for every question: after one epoch of questions by kind a
small model answers "number" to a request for a poem, and its bits per byte of general text rise by a quarter. Rows of another
kind tell it where the task ends. The base model's own writing costs a minute, needs no data and no licence (Self-Synthesized
Rehearsal, Huang et al. 2024, arXiv 2403.01244).

**Sampled, not greedy.** Trained on tokens drawn from the base model at temperature 1, the loss is KL(base || tuned) and a
constant: its gradient is zero in the mean where nothing was forgotten. Greedy answers pull to a sharper model: with them bits
per byte still rose by 5 %, with samples by none (docs/LOG.md).

**Requests and beginnings.** ``prompts.jsonl`` holds 404 entries in the order in which they are taken: by turns a request of
everyday life, which is asked as chat, and the first words of a text, which is continued as text; English, code, German,
Spanish, French and others. They were written for this project and have its licence (Apache-2.0). No request stands among the
probes that measure forgetting, or the measure would be of what was trained; a test holds it. What the limit of tokens cuts
off is trained as far as it goes, without an end.

Refused: general data of other models' making, which pull towards those and are a download; requests that are sampled as well,
which a small model does badly; a penalty on the distance from the base, which costs its forward pass in each step.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.chat.render import Renderer
from tunesmith.chat.vocabulary import START
from tunesmith.messages import Message

PROMPTS_FILE = Path(__file__).parent / "prompts.jsonl"
NEW_TOKENS = 48  # of what the model writes, at most


@dataclass(frozen=True, kw_only=True)
class ReplayPrompt:
    """What the base model is given to go on from."""

    id: str
    kind: Literal["request", "beginning"]
    text: str

    def ids(self, renderer: Renderer) -> list[int]:
        """Its tokens: a request as the template writes it, the beginning of a text as it is."""
        if self.kind == "request":
            return renderer.prompt_ids([Message(role="user", content=self.text)])
        return [*renderer.text_begin, *renderer.vocabulary.encode([(self.text, START)])[0]]


def load_prompts() -> list[ReplayPrompt]:
    """All of them, in the order in which they are taken."""
    return [ReplayPrompt(**json.loads(line)) for line in PROMPTS_FILE.read_text(encoding="utf-8").splitlines()]


def replay_count(share: float, rows: int) -> int:
    """How many are trained on beside so many rows of the task: that share, as far as there are prompts."""
    return min(round(share * rows), len(load_prompts()))


def written_text(renderer: Renderer, ids: Sequence[int]) -> str:
    """What was written, for people, without control tokens."""
    return str(renderer.tokenizer.decode(list(ids), skip_special_tokens=True))
