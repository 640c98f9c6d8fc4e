"""An instruction that another model writes (GEPA), as one more start of the search for the ``optimized_prompt``.

The writer sees the instruction, three train rows, what the base model said to them and what the reference is, and writes a
better instruction; what does better on those rows answers all dev rows; the next rewriting starts from one that is best at
some dev row (the Pareto front), so that different strengths are kept. The package ``gepa`` does the evolving; here stand its
view of our arms, the budget, and the writer as an endpoint of the recipe.

The winner is an instruction without demonstrations. It joins the random search (``search.py``) under the name ``written``,
where it competes and is combined with demonstrations like any other.

Cost: at most ``answers`` of the base model. gepa looks at its budget between two rewritings, so one is begun only when the
longest it can take still fits. A rewriting asks the writer once; train rows leave the machine when the writer is a hosted one.

Refused: DSPy, which brings GEPA among sixty packages and wants the task as its own program; and reflection by the base model
itself: one that fails the task for want of skill does not write the instruction that mends it.

Source: Agrawal et al. 2025, "GEPA: Reflective Prompt Evolution Can Outperform Reinforcement Learning" (arXiv 2507.19457),
algorithm 1; gepa 0.1.4, ``gepa/core/adapter.py``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tunesmith.errors import MissingPackage, RunError
from tunesmith.recipe import Recipe
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evaluation import Written
from tunesmith.rundir.rows import Row

SHOWN = 3  # train rows that the writer sees at a time, as in the paper
COMPONENT = "instruction"

Answers = Callable[[str, list[Row]], list[Output]]  # an instruction and rows -> scored answers


def write_instruction(
    recipe: Recipe, train: list[Row], dev: list[Row], answers_of: Answers, writer: Callable[[str], str]
) -> Written:
    """Evolve ``task.prompt``.

    Args:
        train: rows whose answers the writer may see.
        dev: rows on which an instruction is chosen.
        answers_of: asks the base model.
        writer: a question to its answer.

    Raises:
        MissingPackage: gepa is not installed.
        RunError: the answers do not pay for one rewriting.
    """
    try:
        from gepa.api import optimize
    except ModuleNotFoundError as error:
        raise MissingPackage("evaluate.optimized_prompt.writer needs gepa", "run: pip install 'tunesmith[gepa]'") from error
    settings = recipe.evaluate.optimized_prompt.writer
    assert settings is not None
    longest = 2 * SHOWN + len(dev)  # answers of a rewriting: its rows before and after, then all dev rows
    if settings.answers < len(dev) + longest:
        raise RunError(
            f"evaluate.optimized_prompt.writer.answers: {settings.answers} do not pay for one rewriting on {len(dev)} dev rows",
            f"set it to {len(dev) + longest} or more",
        )
    questions = 0

    def write(prompt: str | list[Any]) -> str:
        nonlocal questions
        assert isinstance(prompt, str), "a prompt with images"
        questions += 1
        return writer(prompt)

    arms = _Arms(answers_of)
    first = recipe.task.prompt or recipe.task.short_prompt or ""
    result = optimize(
        {COMPONENT: first},
        train,
        dev,
        arms,
        reflection_lm=write,
        reflection_minibatch_size=SHOWN,
        stop_callbacks=lambda gepa_state: arms.spent + longest > settings.answers,
        logger=_Quiet(),
        seed=recipe.seed,
    )
    best = result.best_candidate
    assert isinstance(best, dict)
    return Written(instruction=best[COMPONENT].strip(), answers=arms.spent, rewritings=questions)


class _Arms:
    """The base model as gepa's adapter: an instruction is evaluated on rows, and what came of it is put in words."""

    propose_new_texts: Any = None  # gepa's own question to the writer

    def __init__(self, answers_of: Answers):
        self._answers_of = answers_of
        self.spent = 0

    def evaluate(self, batch: list[Row], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        from gepa.core.adapter import EvaluationBatch

        outputs = self._answers_of(candidate[COMPONENT], batch)
        self.spent += len(batch)
        scores = [output.score or 0.0 for output in outputs]
        return EvaluationBatch(outputs=outputs, scores=scores, trajectories=outputs if capture_traces else None)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, str]]]:
        lessons = [
            {
                "Inputs": output.prompt[-1]["content"],
                "Generated Outputs": output.output,
                "Feedback": f"Score {score:.2f} of 1. The right answer is: {output.reference}",
            }
            for output, score in zip(eval_batch.trajectories, eval_batch.scores, strict=True)
        ]
        return dict.fromkeys(components_to_update, lessons)


class _Quiet:
    """gepa's log goes nowhere: standard output is for data, and the answers have their own progress bars."""

    def log(self, message: str) -> None:
        pass
