"""The stages ``forgetting``: one of a run, or one for each of several tuned models that are brought.

Candidates are measured whichever of them the verdict will be of: that one is chosen by its answers to the test part, and what
it has forgotten has to be known by then. A model behind an endpoint gives no probabilities, so it has no such stage.
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
        arm: of one of several candidates; empty for the tuned model of a run with one.
    """
    return f"evaluation/forgetting/{arm.removeprefix(TUNED_OF)}.json" if arm else "evaluation/forgetting.json"


def forgetting_stages(recipe: Recipe, maker: str, tuned: Callable[[Inputs], Parts]) -> list[Stage]:
    """The stages of a recipe; none where a tuned model is no arm, or all of them are behind endpoints.

    Args:
        maker: the stage that the tuned model comes from.
        tuned: the files of the tuned model, and of its deployed form where that is an arm.
    """
    arms = recipe.evaluate.arms
    several = recipe.tuned_kind == "several"
    measured = [f"{TUNED_OF}{one.label}" for one in recipe.tuned if one.kind != "endpoint"] if several else [""]
    if recipe.tuned_kind == "endpoint" or not any(arm == "deployed" or arm.startswith("tuned") for arm in arms):
        return []
    exports = ["export"] if "deployed" in arms and recipe.tuned_kind != "gguf" else []
    return [_stage(arm, ("render", maker, *exports), tuned) for arm in measured if arm in ("", *arms)]


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
