"""Replay: what the base model itself answers to everyday requests, as rows to train on beside the task's, against forgetting.

A model that is tuned on one narrow task learns the task's answers for every question: after two epochs of questions by kind
a small model answers "number" to a request for a poem. Rows of another kind tell it where the task ends. The base model's
own greedy answers cost a minute, need no data and pull to nowhere else than where the model was (Self-Synthesized Rehearsal,
Huang et al. 2024, arXiv 2403.01244).

``prompts.jsonl`` holds 202 requests in the order in which they are taken, mixed in kind and language. They were written for
this project and have its licence (Apache-2.0). None stands among the probes that measure forgetting, or the measure would be
of what was trained; a test holds it. An answer that the limit cuts off is trained as far as it goes, without an end.

Refused: general data of other models' making, which pull towards those and are a download; sampling the requests from the
model as well, which a small one does badly; a penalty on the distance from the base, which costs its forward pass each step.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tunesmith.chat.render import Renderer

PROMPTS_FILE = Path(__file__).parent / "prompts.jsonl"
NEW_TOKENS = 48  # of an answer at most: what a request is, and how an answer to it begins


def load_prompts() -> list[tuple[str, str]]:
    """All requests in the order in which they are taken: id and text."""
    lines = PROMPTS_FILE.read_text(encoding="utf-8").splitlines()
    return [(entry["id"], entry["prompt"]) for entry in map(json.loads, lines)]


def replay_count(share: float, rows: int) -> int:
    """How many requests are trained on beside so many rows of the task: that share, as far as there are requests."""
    return min(round(share * rows), len(load_prompts()))


def answer_text(renderer: Renderer, ids: Sequence[int]) -> str:
    """An answer for people, without control tokens."""
    return str(renderer.tokenizer.decode(list(ids), skip_special_tokens=True))
