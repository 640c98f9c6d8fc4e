"""What the exported forms are compared with: the model as it was trained, and as it was before.

The base as training stored it (rounded to bf16, or in NF4) with the fp32 adapter on it, unmerged. Once loaded it is also the
base, with its adapter switched off, and it answers the dev rows; a second copy in memory was refused.

**Arithmetic.** It computes in fp32 all the same, and so does the merged directory: half-precision products would add an error
of their own, of the very size that a wrong form has to be told from. Where fp32 weights fit neither the GPU nor the machine,
both compute as training did, and the bounds are those of that arithmetic.

**Logits** of both are kept on the disk while the forms take their turns, for some 18 prompts of at most 32 positions: 0.6 GB
each for a vocabulary of 262 k, 0.1 GB for 49 k. Memory was refused, since the forms need it.

Shape suffixes: N rows (positions of all prompts), V vocabulary.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.filesize import decimal
from transformers import PreTrainedModel

from tunesmith.engines.base import BaseModel
from tunesmith.engines.deal import Widths, dealt_out
from tunesmith.engines.decode import StopRule, greedy
from tunesmith.engines.form import ComputePlace, model_logits
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.errors import ModelError
from tunesmith.layers.embedding import HostEmbedding
from tunesmith.layers.experts import Adapted
from tunesmith.messages import Message
from tunesmith.models.adapter import load_adapted
from tunesmith.models.device import ROOM, best_device, device_with_room
from tunesmith.models.load import head_weight, load_model
from tunesmith.models.placement import Placement
from tunesmith.models.swap import without_adapters
from tunesmith.parity.figures import base_distance
from tunesmith.parity.prompts import NEW_TOKENS, Prompt, choose_prompts
from tunesmith.parity.task import Outputs, Task
from tunesmith.recipe import Recipe
from tunesmith.tracking import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What was trained.

    Attributes:
        base: what the adapter stands on; without one the whole tuned model, which was brought.
        adapter: PEFT directory; None of a whole model.
        untuned: the base of a whole model; None beside an adapter, which is switched off.
    """

    recipe: Recipe
    base: BaseModel
    adapter: Path | None
    untuned: BaseModel | None = None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the forms are compared with; logits by row, those of prompt i in ``spans[i]``.

    Attributes:
        left_out: prompts that were not asked, and why.
        adapter_kl: mean KL(tuned || base), nats.
        answers: to the dev rows; None where no task is compared.
    """

    prompts: list[Prompt]
    left_out: dict[str, str]
    spans: list[slice]
    tuned_NV: NDArray[np.float32]
    base_NV: NDArray[np.float32]
    adapter_kl: float
    answers: Outputs | None


def choose_place(trained: Trained, weights: int) -> ComputePlace:
    """fp32 on the GPU or the CPU, wherever so many dense weights fit; else as training computed."""
    needed = 4 * weights
    device = device_with_room(needed)
    if device is not None:
        return ComputePlace(device=device, arithmetic="fp32")
    compute = trained.base.compute
    room = decimal(int(ROOM * needed))
    logger.warning(f"parity: fp32 takes {room}, which are not there; computing in {compute}, with its wider bounds")
    return ComputePlace(device=best_device(), arithmetic=compute)


def run_reference(
    trained: Trained, dev_prompts: Mapping[str, list[Message]], place: ComputePlace, task: Task | None, scratch: Path
) -> Reference:
    """The training stack with the adapter on, then off; its answers to the dev rows.

    Args:
        dev_prompts: of dev rows, by row id.
        scratch: directory for the logits.

    Raises:
        ModelError: no prompt fits what the model can take.
    """
    recipe, renderer = trained.recipe, trained.base.renderer
    model, layers = _load(trained, place)
    room = model.config.get_text_config().max_position_embeddings - NEW_TOKENS
    chosen, left_out = choose_prompts(dev_prompts, renderer, room)
    if not chosen:
        raise ModelError(
            f"{trained.base.directory}: none of {len(left_out)} prompts fits the model's {room} positions", "a larger model"
        )
    ids_of = [renderer.prompt_ids(messages) for messages in chosen.values()]
    stop_rule = StopRule(NEW_TOKENS, renderer.stop_ids)
    with progress("parity reference", 2 * len(chosen)) as bar, torch.inference_mode():
        generations = greedy(model, ids_of, stop_rule, recipe.evaluate.batch_size, bar.advance)
        prompts = [
            Prompt(
                name=name,
                messages=messages,
                text=renderer.text(messages, generate=True),
                ids=ids,
                forged=any(renderer.vocabulary.tokens(message["content"]) for message in messages),
                continuation=generation.ids,
            )
            for (name, messages), ids, generation in zip(chosen.items(), ids_of, generations, strict=True)
        ]
        ends = np.cumsum([len(prompt.continuation) for prompt in prompts]).tolist()
        spans = [slice(end - len(prompt.continuation), end) for end, prompt in zip(ends, prompts, strict=True)]
        tuned_NV = _all_logits(model, prompts, spans, scratch / "tuned")
        base_NV = None
        if trained.untuned is None:
            with without_adapters(layers):
                base_NV = _all_logits(model, prompts, spans, scratch / "base")
        bar.advance(len(prompts))
    answers = None
    if task is not None:
        answers = task.ask("reference", InProcessEngine(model, renderer, recipe.evaluate.batch_size))
    if base_NV is None:
        assert trained.untuned is not None
        del model, layers
        with torch.inference_mode():
            base_NV = _untuned_logits(trained, trained.untuned, place, prompts, spans, scratch, tuned_NV.shape[1])
    changes = np.concatenate([base_distance(tuned_NV[span], base_NV[span]) for span in spans])
    return Reference(
        prompts=prompts,
        left_out=left_out,
        spans=spans,
        tuned_NV=tuned_NV,
        base_NV=base_NV,
        adapter_kl=float(changes.mean()),
        answers=answers,
    )


def _untuned_logits(
    trained: Trained,
    untuned: BaseModel,
    place: ComputePlace,
    prompts: list[Prompt],
    spans: list[slice],
    scratch: Path,
    width: int,
) -> NDArray[np.float32]:
    """What the base of a whole tuned model says, as many columns as that one has: some resize the head."""
    base_NV = _all_logits(_load(replace(trained, base=untuned), place)[0], prompts, spans, scratch / "base")
    if width > base_NV.shape[1]:
        lowest_N1 = base_NV.min(axis=1, keepdims=True)
        return np.hstack([base_NV, np.repeat(lowest_N1, width - base_NV.shape[1], axis=1)])
    return base_NV[:, :width]


def _load(trained: Trained, place: ComputePlace) -> tuple[PreTrainedModel, dict[str, Adapted]]:
    """The base as training stored it, with the adapter on it where there is one."""
    recipe = trained.recipe
    storage = trained.base.storage if recipe.base == "nf4" or recipe.deploys_adapter else place.arithmetic
    placement = Placement(
        per_layer_embeddings=recipe.per_layer_embeddings,
        base_head=recipe.base_head,
        resident_layers=recipe.train.resident_layers,
    )
    model = load_model(
        trained.base.directory,
        place.arithmetic,
        storage,
        place.device,
        placement,
        gguf=trained.base.blocks if recipe.deploys_adapter else None,
        mixed=trained.base.mixed,
    )
    if trained.adapter is not None:
        trained.base.lay_grids(model)
    if place.arithmetic == "fp32" and trained.base.compute == "bf16":
        tables = [module.weight for module in model.modules() if isinstance(module, HostEmbedding)]
        for parameter in (*model.parameters(), *tables):  # as training stored them; a checkpoint in bf16 stays as it is
            parameter.copy_(parameter.bfloat16())
    return model, {} if trained.adapter is None else load_adapted(model, trained.adapter)


def _all_logits(model: PreTrainedModel, prompts: list[Prompt], spans: list[slice], file: Path) -> NDArray[np.float32]:
    """Logits at every position of every continuation, on the disk, shape (N, V)."""
    widths = Widths(model)
    logits_NV = np.memmap(file, np.float32, "w+", shape=(spans[-1].stop, head_weight(model).shape[0]))

    def compute(item: int) -> bytes:
        prompt = prompts[item]
        logits_NV[spans[item]] = model_logits(model, prompt.ids + prompt.continuation[:-1], len(prompt.ids) - 1)
        return b""

    costs = [widths.flop(len(prompt.ids) + len(prompt.continuation), len(prompt.continuation)) for prompt in prompts]
    longest = max(len(prompt.ids) + len(prompt.continuation) for prompt in prompts)
    with dealt_out(model, costs, widths.reading_bytes(longest) + 3 * NEW_TOKENS * widths.vocabulary * 4) as run:
        run(compute, lambda _: None)
    return logits_NV
