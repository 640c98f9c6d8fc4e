"""The row of the table of stages that chooses what each layer of the base is kept in, where a recipe has ``base_budget``.

It stands behind the rendering, whose rows it scores the layers on, and before everything that opens the base: prompts are asked
of the base that is trained on.
"""

from collections.abc import Iterable
from dataclasses import replace

from tunesmith.pipeline.inputs import Inputs
from tunesmith.pipeline.stage import Stage
from tunesmith.rundir.records.stages import Parts

# What a plan of the training reserves memory by, and so what it leaves over for ``auto``.
PLANNED = (
    *("lora.r", "lora.dropout", "lora.use_dora", "lora.modules_to_save", "chat.new_tokens"),
    *(f"train.{key}" for key in ("memory", "max_length", "tokens_per_step", "optimizer", "recompute", "offload", "mlp_tile")),
    "train.embedding_on",
)


def _base(read: Inputs) -> Parts:
    keys = ("base", "base_budget", "train.compute", "per_layer_embeddings", "base_head", "seed")
    planned = PLANNED if read.recipe.base_budget == "auto" else ()
    return {**read.files("data/train.arrow", "data/chat_template.jinja"), **read.model(), **read.keys(*keys, *planned)}


BASE = Stage(
    name="base",
    module="base_forms",
    about="choose in how many bits each layer of the base lies",
    verb="run",
    needs=("render",),
    inputs=_base,
    outputs=("data/base.json", "data/base_sensitivity.safetensors"),
    implied=True,
    asks_base=True,
)


def with_forms(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """The stages with this one behind the rendering, and needed by all later ones that open the base."""
    found: list[Stage] = []
    for stage in stages:
        later = any(before.name == "render" for before in found)
        found.append(replace(stage, needs=(*stage.needs, BASE.name)) if later and stage.asks_base else stage)
        if stage.name == "render":
            found.append(BASE)
    return tuple(found)
