"""The stage ``replay``: the base model answers requests of everyday life, for training to mix in (``train/replay``)."""

import logging

from tunesmith.engines.decode import StopRule, greedy
from tunesmith.messages import Message
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.data import Replayed
from tunesmith.tracking import progress
from tunesmith.train.documents import Documents, DocumentWriter
from tunesmith.train.replay import NEW_TOKENS, answer_text, load_prompts, replay_count

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Answer the requests; writes ``data/replay.arrow`` for training, and ``data/replay.jsonl`` to be read."""
    rows = len(Documents.open(run.tokens("train")))
    count = replay_count(recipe.train.replay, rows)
    chosen = load_prompts()[:count]
    base = base_of(run, recipe)
    renderer = base.renderer
    prompts = [renderer.prompt_ids([Message(role="user", content=text)]) for _, text in chosen]
    with progress("replay", count) as bar:
        stop_rule = StopRule(NEW_TOKENS, renderer.stop_ids)
        answers = greedy(base.load().model, prompts, stop_rule, recipe.evaluate.batch_size, bar.advance)
    with DocumentWriter(run.tokens("replay")) as writer:
        for (name, _), prompt, answer in zip(chosen, prompts, answers, strict=True):
            writer.add([(name, prompt + answer.ids, [0] * len(prompt) + [1] * len(answer.ids))])
    texts = [answer_text(renderer, answer.ids) for answer in answers]
    Replayed.write_lines(
        run.data / "replay.jsonl",
        [Replayed(id=name, prompt=text, answer=answer) for (name, text), answer in zip(chosen, texts, strict=True)],
    )
    wanted = round(recipe.train.replay * rows)
    fewer = f", not {wanted}: there are no more requests" if wanted > count else ""
    logger.info(f"replay: the base model's answers to {count} requests join {rows:,} train rows{fewer}")
