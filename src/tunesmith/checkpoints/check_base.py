"""What a recipe asks of a base model that its files already deny, said before the first stage and not after the training.

``config.json``, the headers of the safetensors and the recipe decide it, in some milliseconds and without torch. Each of these
was once an error after rows were split, rendered or trained on: a base that is quantised in a way that is not read, an
architecture of two stacks, a text model within a model that is not known, layers that are no linear layers, an export that the
adapter or the model cannot have, a file that is not there.

A row that is longer than the model's positions is known when lengths are (``check_lengths``). ``train.max_length`` above the
positions is no error by itself: it is the size of a pack too, and positions start anew at each row of a pack.

Refused: trying the load on the meta device, which needs torch and two seconds, and says of none of these what to do.
"""

from collections.abc import Mapping

from tunesmith.checkpoints.facts import BaseFacts
from tunesmith.checkpoints.quantized.schemes import WAYS_ON, Scheme
from tunesmith.errors import DataError, ModelError, RecipeError
from tunesmith.families import CONV1D, WRAPPERS
from tunesmith.recipe import Recipe
from tunesmith.recipe.tables import BOTH, ONE_TABLE, table_of, tables_of

FAMILIES_PAGE = "docs/reference/families.md lists the models that can be trained"
SHOWN = 5  # rows in a message


def check_base(recipe: Recipe, facts: BaseFacts) -> None:
    """Refuse what cannot end well.

    Args:
        facts: of the recipe's model, from ``base_facts``, which refuses missing shards itself.

    Raises:
        ModelError: the base cannot be trained.
        RecipeError: the recipe asks for what this base, or another of its keys, rules out.
    """
    _check_architecture(facts)
    if isinstance(facts.scheme, str):
        raise ModelError(f"{facts.directory}: the checkpoint is quantised by {facts.scheme}, which is not read", WAYS_ON)
    if recipe.export.lora_gguf and recipe.lora.use_dora:
        raise RecipeError(
            "export.lora_gguf with lora.use_dora: a GGUF of an adapter holds no lengths of rows",
            "set export.lora_gguf: false and serve the merged GGUF, or lora.use_dora: false",
        )
    if recipe.train.embedding_on == "host" and recipe.base_head == "auto" and facts.tied and not facts.own_head:
        raise RecipeError(
            "train.embedding_on: host, but the output head of this model is the same table, and a step reads all of it",
            "add base_head: int8, which gives the GPU a head of its own in 8 bits; or set train.embedding_on: device",
        )
    if recipe.base_budget is not None and isinstance(facts.scheme, Scheme) and facts.scheme.is_nf4:
        raise RecipeError(
            f"base_budget: {recipe.base_budget}, but the weights of {facts.directory} lie in NF4 already and have no more bits",
            "leave base_budget out, or name the 16-bit original as model",
        )
    _check_tables(recipe, facts)
    context, positions = recipe.export.num_ctx, facts.max_positions
    if context is not None and positions is not None and context > positions:
        raise RecipeError(f"export.num_ctx: {context:,}, the model takes {positions:,} tokens", f"at most {positions}")


def check_lengths(lengths: Mapping[str, int], facts: BaseFacts) -> None:
    """Refuse rows that are longer than the positions that the model has.

    Args:
        lengths: tokens of each row that is to be trained on, by row id.

    Raises:
        DataError: one is longer.
    """
    positions = facts.max_positions
    if positions is None or max(lengths.values(), default=0) <= positions:
        return
    long = [f"{row} ({length:,})" for row, length in lengths.items() if length > positions]
    more = f" and {len(long) - SHOWN:,} more" if len(long) > SHOWN else ""
    raise DataError(
        f"{len(long):,} rows are longer than the {positions:,} tokens that {facts.model_type} has positions for: "
        f"{', '.join(long[:SHOWN])}{more}",
        f"set train.max_length: {positions}, and data.on_too_long: drop or drop_oldest_turns",
    )


def _check_tables(recipe: Recipe, facts: BaseFacts) -> None:
    """What ``lora.modules_to_save`` rules out."""
    named = () if recipe.tuned else tables_of(recipe.lora.modules_to_save)
    trained = ("embedding", "head") if named and facts.tied and not facts.own_head else named
    key = f"lora.modules_to_save: [{', '.join(recipe.lora.modules_to_save)}]"
    for name in recipe.lora.modules_to_save if named else ():
        there = [table for table in facts.tables if table_of(table) == table_of(name)]
        if there and not any(f".{table}".endswith(f".{name}") for table in there):
            raise RecipeError(
                f"{key}: {facts.text_type} has no {name}, but {there[0]}",
                f"lora.modules_to_save: [{there[0].rpartition('.')[2]}]",
            )
    if "head" in trained and recipe.base_head == "int8":
        raise RecipeError(f"base_head: int8, but the head is trained ({key})", "set base_head: auto")
    if "embedding" in trained and recipe.train.embedding_on == "host":
        raise RecipeError(
            f"train.embedding_on: host, but the embedding is trained where the model computes ({key})",
            "set train.embedding_on: device",
        )
    if "head" in trained and facts.head_bias:
        raise RecipeError(f"{key}: this head has a bias, which PEFT would train too and nothing here does", "name no head")
    if recipe.chat.new_tokens and len(trained) == 1:
        raise RecipeError(ONE_TABLE, f"lora.modules_to_save: [{', '.join(BOTH)}], or leave that key out")


def _check_architecture(facts: BaseFacts) -> None:
    name = f"{facts.directory}: model type {facts.model_type}"
    if facts.encoder_decoder:
        raise ModelError(f"{name} reads with one stack and answers with another, expected a decoder alone", FAMILIES_PAGE)
    if facts.multimodal and facts.model_type not in WRAPPERS:
        raise ModelError(
            f"{name} is multimodal, and its text model ({facts.text_type}) is not known here",
            f"known: {', '.join(WRAPPERS)}; or extract its text model with transformers and give that directory",
        )
    if facts.text_type in CONV1D:
        raise ModelError(f"{name} has Conv1D layers, whose weights lie transposed, in place of linear layers", FAMILIES_PAGE)
