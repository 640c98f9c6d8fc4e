"""The stage ``sweep``, which is part of no run: several GGUF types scored on dev."""

from typing import get_args

from tunesmith.errors import RunError
from tunesmith.pipeline.inputs import Inputs
from tunesmith.pipeline.stage import Stage
from tunesmith.pipeline.table import parity_of
from tunesmith.recipe import Recipe
from tunesmith.recipe.run import GgufType, plain_type
from tunesmith.rundir.records.stages import Parts

SWEEP_ROWS = 256  # of dev: a choice among nine needs more than parity's look for what is broken
SWEEP_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "dynamic-Q4_K_M", "IQ4_XS", "Q4_0", "Q3_K_M", "dynamic-Q3_K_M")


def sweep_stage(recipe: Recipe, types: tuple[str, ...] = ()) -> Stage:
    """The stage that measures these GGUF types, ``SWEEP_TYPES`` when none is named. It is part of no run.

    Raises:
        RunError: a type that is not written here, or nothing is exported of what was brought.
    """
    if recipe.tuned_kind == "several":
        raise RunError(
            "types are compared of one tuned model, and several were brought",
            f"gate one of them alone, and sweep that run: {', '.join(one.label for one in recipe.tuned)}",
        )
    if recipe.tuned_kind not in ("trained", "adapter", "merged"):
        raise RunError(
            f"a tuned model of the form {recipe.tuned_kind} is not exported, so there are no types to choose",
            "bring the adapter or the merged directory",
        )
    types = types or SWEEP_TYPES
    if unknown := [kind for kind in types if kind not in get_args(GgufType)]:
        raise RunError(f"{unknown[0]}: not a type that is written here", f"types: {', '.join(get_args(GgufType))}")

    parity = parity_of(recipe)

    def inputs(read: Inputs) -> Parts:
        rows = read.files("data/train.arrow") if any(plain_type(kind) != kind for kind in types) else {}
        return {**parity.inputs(read), **rows, "types": [*sorted(types)], "rows": SWEEP_ROWS}

    return Stage(
        name="sweep",
        module="sweep",
        about="score several GGUF types on dev, and recommend one",
        verb="export --sweep",
        needs=parity.needs,
        inputs=inputs,
        outputs=("export/sweep.json", "export/sweep.svg"),
        argument=" ".join(types),
        asks_base=True,
    )
