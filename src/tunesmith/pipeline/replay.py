"""The stage ``replay``: the base model writes what training mixes in against forgetting (``train/replay``)."""

import logging

from tunesmith.engines.decode import StopRule, greedy
from tunesmith.engines.sampling import Sampling
from tunesmith.models.fuse import fuse_on_gpu
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.data import Replayed
from tunesmith.tracking import progress
from tunesmith.train.documents import Documents, DocumentWriter
from tunesmith.train.replay import NEW_TOKENS, load_prompts, replay_count, written_text

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Sample from the base model; writes ``data/replay.arrow`` for training, and ``data/replay.jsonl`` to be read."""
    rows = Documents.open(run.tokens("train")).rows
    count = replay_count(recipe.train.replay, rows)
    chosen = load_prompts()[:count]
    base = base_of(run, recipe)
    renderer, model = base.renderer, base.load().model
    fuse_on_gpu(model)
    prompts = [prompt.ids(renderer) for prompt in chosen]
    sampling = Sampling.of(model, recipe.seed)
    with progress("replay", count) as bar:
        stop_rule = StopRule(NEW_TOKENS, renderer.stop_ids)
        written = greedy(model, prompts, stop_rule, recipe.evaluate.batch_size, bar.advance, sampling.start)
    with DocumentWriter(run.tokens("replay")) as writer:
        for entry, prompt, new in zip(chosen, prompts, written, strict=True):
            writer.add([(entry.id, prompt + new.ids, [0] * len(prompt) + [1] * len(new.ids))])
    Replayed.write_lines(
        run.data / "replay.jsonl",
        [
            Replayed(id=entry.id, kind=entry.kind, prompt=entry.text, written=written_text(renderer, new.ids))
            for entry, new in zip(chosen, written, strict=True)
        ],
    )
    wanted = round(recipe.train.replay * rows)
    fewer = f", not {wanted}: there are no more" if wanted > count else ""
    logger.info(f"replay: what the base model writes to {count} prompts joins {rows:,} train rows{fewer}")
