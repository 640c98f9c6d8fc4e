"""The stages ``forgetting``: one of a run, and one for each of several tuned models that are brought.

Candidates are measured whichever of them the verdict will be of: that one is chosen by its answers to the test part, and what
it has forgotten has to be known by then. Where the recipe has the arm ``deployed``, the chosen one is exported, and measured
once more as the model of any run is, in process and as it is deployed. A model behind an endpoint gives no probabilities, so it
has no such stage.
"""

from collections.abc import Callable

from tunesmith.pipeline.inputs import Inputs
from tunesmith.pipeline.stage import Stage
from tunesmith.recipe import Recipe
from tunesmith.recipe.tuned import TUNED_OF
from tunesmith.rundir.records.stages import Parts

TEMPLATE = "data/chat_template.jinja"


def forgetting_file(arm: str = "") -> str:
    """Where the record lies, seen from the run.

    Args:
        arm: of one of several candidates; empty for the tuned model of the run, which is the only or the chosen one.
    """
    return f"evaluation/forgetting/{arm.removeprefix(TUNED_OF)}.json" if arm else "evaluation/forgetting.json"


def forgetting_of_each(recipe: Recipe, maker: str, tuned: Callable[[Inputs], Parts]) -> list[Stage]:
    """A stage for each of several candidates that is an arm; none of a run with one, and of those behind endpoints.

    Args:
        maker: the stage that they come from.
        tuned: their files.
    """
    if recipe.tuned_kind != "several":
        return []
    measured = [f"{TUNED_OF}{one.label}" for one in recipe.tuned if one.kind != "endpoint"]
    return [_stage(arm, ("render", maker), tuned) for arm in measured if arm in recipe.evaluate.arms]


def forgetting_of_run(recipe: Recipe, maker: str, tuned: Callable[[Inputs], Parts]) -> list[Stage]:
    """The stage of the tuned model of a run; none where it is no arm, behind an endpoint, or one of several is not chosen.

    Args:
        maker: the stage that the tuned model comes from.
        tuned: the files of the tuned model, and of its deployed form where that is an arm.
    """
    arms, kind = recipe.evaluate.arms, recipe.tuned_kind
    is_arm = any(arm == "deployed" or arm.startswith("tuned") for arm in arms)
    if kind == "endpoint" or not is_arm or (kind == "several" and not recipe.chooses):
        return []
    exports = ["export"] if "deployed" in arms and kind != "gguf" else []
    return [_stage("", ("render", maker, *exports), tuned)]


def forgetting_files(recipe: Recipe) -> dict[str, str]:
    """Where the records of a recipe lie, seen from the run, by the arm of a candidate; of the run's tuned model by nothing."""
    stages = [*forgetting_of_each(recipe, "", lambda _: {}), *forgetting_of_run(recipe, "", lambda _: {})]
    return {stage.argument: stage.outputs[0] for stage in stages}


def _stage(arm: str, needs: tuple[str, ...], tuned: Callable[[Inputs], Parts]) -> Stage:
    def inputs(read: Inputs) -> Parts:
        settings = read.recipe.evaluate.forgetting
        without = ("evaluate.forgetting.required", "evaluate.forgetting.texts", "evaluate.forgetting.tasks_path")
        return {
            **tuned(read),
            **read.files(TEMPLATE),
            **read.base_in_memory(),
            **read.keys("evaluate.forgetting", without=without),
            **read.source("evaluate.forgetting.texts (content)", settings.texts),
            **read.source("evaluate.forgetting.tasks_path (content)", settings.tasks_path),
        }

    return Stage(
        name=f"forgetting {arm}".rstrip(),
        module="forgetting",
        about="measure what the tuned model and its deployed form have forgotten, against its base",
        needs=needs,
        inputs=inputs,
        outputs=(forgetting_file(arm),),
        argument=arm,
        verb="forgetting",
        asks_base=True,
    )
