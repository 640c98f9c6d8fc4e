"""Merge a run's adapter, and measure on dev what the choice of the base weights means.

An adapter that was trained on NF4 can be merged into the weights that it was trained on, dequantised, or into the 16-bit
original. Which is better is a question with an answer: the dev loss of both, beside that of the adapter as it was trained.
The form that is written is read back from the disk and measured; of the other, the original with the adapter on it computes
the same as a merge, and the dequantised one is merged into a directory that is removed again. A dense model that fits
neither the GPU nor the machine's memory is not measured, and the line says so.
"""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.pipeline.stage import renderer
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_json, write_json

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def merge_adapter(run: RunDir, directory: Path) -> dict[str, Any]:
    """Write ``directory/merged/``.

    Returns:
        What was merged into what, as JSON.

    Raises:
        ExportError: as ``export.merge.merge``.
    """
    from tunesmith.export.base import held_in_nf4
    from tunesmith.export.merge import merge

    recipe = run.recipe()
    base, made = renderer(recipe)
    held = held_in_nf4(base, recipe.base == "nf4", recipe.per_layer_embeddings == "nf4")
    into, towers = recipe.export.merge_into, recipe.towers
    stops = tuple(made.stop_ids)
    merged = merge(base, run.adapter, directory / "merged", held, into, towers, made.template, stop_ids=stops)
    logger.info(f"export: merged {merged.targets} weights into the {_base(merged.into, merged.dequantized)}, {merged.dtype}")
    return merged.facts()


def measure_merge(run: RunDir, directory: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write ``directory/merge.json``: the facts of the merge there, and with ``base: nf4`` the dev loss of both merges."""
    recipe = run.recipe()
    if recipe.base == "nf4":
        losses = _dev_losses(run, recipe, directory, facts["dtype"], facts["nbytes"])
        facts = {**facts, "dev_loss": losses, "told": _told(losses, "32-bit" if facts["dtype"] == "float32" else "16-bit")}
        logger.info(f"export: {facts['told']}")
    write_json(directory / "merge.json", facts)
    return facts


def write_for_vllm(run: RunDir, directory: Path) -> None:
    """Write ``directory/adapter-vllm/`` where it differs from ``adapter/`` and vLLM takes such an adapter.

    Raises:
        ExportError: as ``export.adapter.write_vllm_adapter``.
    """
    from tunesmith.export.adapter import LARGEST_RANK, write_vllm_adapter

    recipe = run.recipe()
    if recipe.lora.use_dora or recipe.lora.r > LARGEST_RANK:
        return
    doubled = write_vllm_adapter(renderer(recipe)[0], run.adapter, directory / "adapter-vllm")
    if doubled is not None:
        repeated = f"k_proj repeated under v_proj in {doubled} layers, " if doubled else ""
        logger.info(f"export: adapter for vLLM ({repeated}names of the checkpoint)")


def _base(into: str, dequantized: int) -> str:
    if into == "original":
        return "original"
    return "dequantised base" if dequantized else "base"


def _dev_losses(run: RunDir, recipe: Recipe, exported: Path, dtype: str, nbytes: int) -> dict[str, float | None]:
    """Mean dev loss in nats a supervised token: merged both ways, and the adapter as it was trained; None: not measured."""
    from tunesmith.export.base import held_in_nf4, read_stored
    from tunesmith.export.merge import merge
    from tunesmith.models.device import device_with_room
    from tunesmith.models.precision import precision

    directory, _ = renderer(recipe)
    _, compute = precision(recipe.base, recipe.train.compute, directory)
    device = device_with_room(nbytes // (4 if dtype == "float32" else 2) * (4 if compute == "fp32" else 2))
    losses: dict[str, float | None] = dict.fromkeys(("trained", "original"))
    if device is not None:
        into = recipe.export.merge_into
        losses[into] = _dev_loss(run, recipe, exported / "merged", compute, device, with_adapter=False)
        if into == "original":
            with tempfile.TemporaryDirectory(dir=exported, prefix=".trained-") as temporary:
                other = Path(temporary) / "merged"
                held = held_in_nf4(directory, True, recipe.per_layer_embeddings == "nf4")
                merge(directory, run.adapter, other, held, "trained", "drop")
                losses["trained"] = _dev_loss(run, recipe, other, compute, device, with_adapter=False)
        elif not any(weight.is_nf4 for weight in read_stored(directory).values()):
            losses["original"] = _dev_loss(run, recipe, directory, compute, device, with_adapter=True)
    return {**losses, "adapter": read_json(run.manifest_file)["training"]["best_dev_loss"]}


def _dev_loss(run: RunDir, recipe: Recipe, directory: Path, compute: Any, device: "torch.device", with_adapter: bool) -> float:
    from tunesmith.models.adapter import load_adapter_state, read_adapter
    from tunesmith.models.attention import PACKED
    from tunesmith.models.fuse import fuse
    from tunesmith.models.load import attention, load_model
    from tunesmith.models.swap import add_lora
    from tunesmith.train.documents import Documents
    from tunesmith.train.loop import mean_loss, step_packs

    model = load_model(directory, compute, None, device)
    if with_adapter:
        load_adapter_state(add_lora(model, recipe.lora, recipe.seed), read_adapter(run.adapter))
    fuse(model)
    dev = Documents.open(run.tokens("dev"))
    with attention(model, PACKED):
        return mean_loss(model, step_packs(dev, [tuple(range(len(dev)))], recipe.train.max_length))


def _told(losses: dict[str, float | None], width: str) -> str:
    def number(loss: float | None) -> str:
        return "not measured" if loss is None else f"{loss:.4f}"

    return (
        f"dev loss merged into the dequantised base {number(losses['trained'])}, into the {width} original "
        f"{number(losses['original'])}, adapter unmerged {number(losses['adapter'])}"
    )
