"""The stage ``choose``: which of several tuned models that are brought is exported, and judged as it is deployed.

It stands behind the answers of all candidates and what each has forgotten, and before the export. What comes after it is made
from the chosen model, its name and content, and not from the choice with its numbers, so that a choice that comes out the same
makes no export again.
"""

from collections.abc import Callable

from tunesmith.pipeline.inputs import DECIDING, Inputs
from tunesmith.pipeline.stage import Stage
from tunesmith.recipe import Recipe
from tunesmith.recipe.tuned import TUNED_OF
from tunesmith.rundir.records.stages import Parts

NAME = "choose"


def choice_stage(recipe: Recipe, measured: list[Stage], scored: tuple[str, ...], answers: Callable[[Inputs], Parts]) -> Stage:
    """The stage of a recipe with several candidates.

    Args:
        measured: the stages that say what each candidate has forgotten.
        scored: the stages whose answers it reads.
        answers: those answers.
    """
    names = tuple(stage.outputs[0] for stage in measured)

    def inputs(read: Inputs) -> Parts:
        return {
            **read.files("data/test.jsonl", "evaluation/selection.json", "brought.json", *names),
            **answers(read),
            **read.scoring(),
            **read.keys(*DECIDING, "evaluate.arms", "evaluate.forgetting.required"),
        }

    return Stage(
        name=NAME,
        module="choose",
        about="choose the tuned model that is exported, and judged as it is deployed",
        verb="run",
        needs=("select", "bring", *scored, *(stage.name for stage in measured)),
        inputs=inputs,
        outputs=("evaluation/choice.json",),
        implied=True,
    )


def is_file(read: Inputs) -> bool:
    """Whether the deployed form is a GGUF that was brought, so that nothing is made of it.

    Raises:
        MissingInput: which of several is deployed was not chosen yet.
    """
    if not read.recipe.chooses:
        return read.recipe.tuned_kind == "gguf"
    name = read.choice().name
    return any(one.kind == "gguf" and f"{TUNED_OF}{one.label}" == name for one in read.recipe.tuned)
