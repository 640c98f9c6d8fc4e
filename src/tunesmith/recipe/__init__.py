"""The recipe: one YAML file that drives the whole life of a run.

Every key changes behaviour (``tests/rules/test_every_key.py`` holds one observation per key), and an unknown key is an
error that names the nearest known one: a mistyped key that is silently ignored is how a run becomes another run.
What is not written is derived or defaulted, and the resolved recipe in the run directory writes it all out.
"""

from tunesmith.recipe.data import NewToken
from tunesmith.recipe.evaluate import EXTERNAL, PROMPT_ARMS, PROMPT_DEPLOYED, TokenPrice
from tunesmith.recipe.load import (
    dump_recipe,
    is_below_folder,
    is_shipped_name,
    json_schema,
    load_recipe,
    recipe_from,
    section_from,
    yaml_line,
)
from tunesmith.recipe.run import BLOCK_BASES, Recipe
from tunesmith.recipe.task import HeldTo, Judge, Task
from tunesmith.recipe.train import Lora, Optimisation, Train, TrainSettings

__all__ = [
    "BLOCK_BASES",
    "EXTERNAL",
    "PROMPT_ARMS",
    "PROMPT_DEPLOYED",
    "HeldTo",
    "Judge",
    "Lora",
    "NewToken",
    "Optimisation",
    "Recipe",
    "Task",
    "TokenPrice",
    "Train",
    "TrainSettings",
    "dump_recipe",
    "is_below_folder",
    "is_shipped_name",
    "json_schema",
    "load_recipe",
    "recipe_from",
    "section_from",
    "yaml_line",
]
