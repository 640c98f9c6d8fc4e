"""What an adapter answers to the dev rows, asked as the tuned arm asks; kept, so that the same adapter is asked once.

A learning curve asks it of the adapters of several shares, a race of bases of the adapter of each.
"""

import functools
from pathlib import Path

from tunesmith.engines.dealt import open_dealt
from tunesmith.evaluate.arms import declared_tools, key_of_answers, read_outputs, run_arm
from tunesmith.models.adapter import WEIGHTS
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.evaluation import Evaluation
from tunesmith.rundir.hashes import content_hash
from tunesmith.rundir.records.answers import Output


def adapter_on_dev(evaluation: Evaluation, adapter: Path, folder: Path) -> list[Output]:
    """Answers and scores of an adapter on the base of an evaluation.

    Args:
        folder: where they are kept.
    """
    prompts = [evaluation.book.tuned(row, 0) for row in evaluation.dev]
    budget, allowed, tools = evaluation.max_new_tokens, evaluation.allowed, declared_tools(evaluation.dev, evaluation.metric)
    answers_key = key_of_answers(content_hash(adapter / WEIGHTS), prompts, budget, allowed, tools)
    base = base_of(evaluation.run, evaluation.recipe)
    engine = functools.partial(open_dealt, base, adapter, evaluation.recipe.evaluate.batch_size)
    run_arm(folder, folder.parent, engine, answers_key, evaluation.dev, prompts, evaluation.metric, budget, allowed)
    return read_outputs(folder)
