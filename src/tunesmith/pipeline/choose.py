"""The stage ``choose``: which of several tuned models is exported, and judged as it is deployed. Reads files, and asks nobody.

The choice is the one that a verdict without ``deployed`` would be of: the highest of those that pass beside what they have
forgotten, or of all. It is made on the sealed test part, so its file is asked for the share of one of them
(``evaluate/candidates.py``), and there is no second choice: where that file does not pass, the verdict says so of it.

Refused: an export of every candidate, whose files would be judged beside each other for the sake of the one that is deployed;
the next best where a file fails, which is a search for a file that passes.
"""

import logging

from tunesmith.data.split import groups_of
from tunesmith.evaluate import gate
from tunesmith.evaluate.arms import read_outputs
from tunesmith.evaluate.candidates import is_tuned
from tunesmith.evaluate.metrics import make_metric
from tunesmith.formatting import percent
from tunesmith.pipeline.booking import tries_of
from tunesmith.pipeline.forgetting_stages import forgetting_files
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.tuned_model import tuned_model
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_rows
from tunesmith.rundir.records.choice import Choice
from tunesmith.rundir.records.evaluation import Selection
from tunesmith.rundir.records.evidence import Forgetting

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Write ``evaluation/choice.json``.

    Raises:
        RunError: not every candidate or finalist was scored.
    """
    rows = read_rows(run.data / "test.jsonl")
    arms = [arm for arm in recipe.evaluate.arms if arm != "deployed"]
    selection = Selection.read(run.evaluation / "selection.json")
    outputs = {name: read_outputs(run.answers(name)) for name in selection.scored(arms)}
    keys = {arm: tuned_model(run, recipe, arm).key for arm in arms if is_tuned(arm)}
    forgotten = {arm: file for arm, file in forgetting_files(recipe).items() if arm}
    evidence = gate.Evidence(
        forgetting_of={arm: Forgetting.read(run.path / file) for arm, file in forgotten.items()},
        forgetting_required=recipe.evaluate.forgetting.required,
        form=recipe.tuned_kind,
        tries=tries_of(run, rows, list(keys.values())),
    )
    metric, terms = make_metric(recipe.task), gate.terms_of(recipe.task)
    name, standing = gate.choose(outputs, selection, metric, terms, groups_of(rows), evidence, recipe.evaluate.replaced)
    Choice(name=name, key=keys[name], candidates=standing).write(run.choice_file)
    told = ", ".join(f"{one.name} {percent(one.score)} ({one.decision})" for one in standing)
    logger.info(f"choose: {name} of {told}; the verdict will be of its deployed form")
