"""The training loop: from documents to the best adapter.

One optimizer step is some packs. Each pack runs through the decoder once, the head sees the supervised positions alone
(``kernels/cross_entropy.py``), and the summed loss is divided by the supervised tokens of the *whole step* before the
backward pass. That makes accumulation exact: however a step's documents are packed, the gradient is the same.

Nothing random is carried from step to step: the order of documents follows from (seed, epoch), dropout from (seed, step, pack)
(``layers/context.py``). A run that was killed goes on from its newest checkpoint and ends with the bytes it would have had.

A loss that is not finite stops the run with the documents that caused it; peers that hide it save an adapter of NaN.

Shape suffixes: T tokens, N rows (positions that predict), D hidden size, V vocabulary; here: X is N where the last layer is
narrow, else T.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedModel

from tunesmith import hardware
from tunesmith.errors import TrainingError
from tunesmith.kernels.cross_entropy import linear_cross_entropy
from tunesmith.layers.context import Counters, StepContext, at_step
from tunesmith.layers.experts import Adapted
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import narrows
from tunesmith.models.load import attention, decoder, head_weight
from tunesmith.models.recompute import recompute
from tunesmith.recipe import Recipe
from tunesmith.rundir.records.events import Metric
from tunesmith.tracking import MetricsLog, emit, progress
from tunesmith.train.checkpoint import Progress, checkpoint_path, load_checkpoint, newest_checkpoint, save_checkpoint
from tunesmith.train.documents import Documents, Pack, make_shared_pack
from tunesmith.train.optim import make_optimizer
from tunesmith.train.prefix import find_groups, micro_batches
from tunesmith.train.schedule import learning_rate

logger = logging.getLogger(__name__)

Step = tuple[int, list[tuple[int, ...]]]  # epoch, and documents of each micro-batch


class Steps(Protocol):
    """All optimizer steps of a run, as ``data/pack.py`` plans them."""

    epoch_ends: list[int]  # number of steps done at the end of each epoch

    def __len__(self) -> int: ...

    def __getitem__(self, step: int, /) -> Step: ...


@dataclass(frozen=True)
class Trained:
    """What training ended with.

    Attributes:
        checkpoint: directory of the best checkpoint.
        progress: all dev losses.
        tokens_per_second: real tokens over the time of training steps, dev losses not counted.
        overfit: whether dev loss rose at the end while train loss fell.
    """

    checkpoint: Path
    progress: Progress
    tokens_per_second: float
    overfit: bool


def pack_loss(model: PreTrainedModel, pack: Pack, counters: Counters | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy (fp32, nats) and right top-1 guesses over a pack's supervised tokens, where the model is.

    Args:
        counters: of the step; None where nothing is counted.
    """
    head_VD = head_weight(model)
    pack = pack.to(head_VD.device)
    hidden_XD = decoder(model)(
        input_ids=pack.ids_1T, position_ids=pack.position_1T, spans=pack.spans, rows_N=pack.predict_N, use_cache=False
    ).last_hidden_state[0]
    hidden_ND = hidden_XD if narrows(model) else hidden_XD[pack.predict_N]
    softcap = vars(model.config).get("final_logit_softcapping")
    overflow = None if counters is None else counters.overflow
    return linear_cross_entropy(hidden_ND, head_VD, pack.target_N, softcap, overflow)


def step_packs(documents: Documents, packs: list[tuple[int, ...]], capacity: int) -> list[Pack]:
    """The micro-batches of a step, with common beginnings computed once.

    Args:
        packs: the documents of each, as planned; they are put together anew.
        capacity: tokens of a micro-batch.
    """
    chosen = [document for pack in packs for document in pack]
    batches = micro_batches(find_groups(documents, chosen, capacity), capacity)
    return [make_shared_pack(documents, [(group.documents, group.shared) for group in batch]) for batch in batches]


def step_gradients(model: PreTrainedModel, packs: list[Pack], context: StepContext | None = None) -> tuple[float, float]:
    """Add the gradients of one optimizer step to ``.grad``: of this process's packs, out of all.

    Args:
        packs: of the whole step.
        context: of the step; adapters train in it, with dropout, and everything else computes as it is deployed. None: all of
            it computes as the model stands, in one process, and nothing is counted.

    Returns:
        This process's share of the step's mean loss (nats a supervised token) and of its top-1 accuracy. The shares of all
        processes add up, as their gradients do.
    """
    total = sum(len(pack.target_N) for pack in packs)
    sums, right = [], []
    if context is None:
        numbers, counters, block = range(len(packs)), None, nullcontext(lambda _: None)
    else:
        numbers, counters, block = context.packs(len(packs)), context.counters, at_step(model, context)
    with block as enter:
        for number in numbers:
            enter(number)
            pack_sum, pack_correct = pack_loss(model, packs[number], counters)
            (pack_sum / total).backward()
            sums.append(pack_sum.detach())
            right.append(pack_correct)
    # Read when all is under way: a GPU runs one pack while the next is copied to it.
    return sum(map(float, sums)) / total, sum(map(int, right)) / total


@torch.no_grad()
def mean_loss(model: PreTrainedModel, packs: list[Pack]) -> float:
    """Mean cross-entropy (nats a supervised token) over packs, without dropout."""
    assert not model.training, "a dev loss of a model in training mode"
    sums = [pack_loss(model, pack)[0] for pack in packs]
    return sum(map(float, sums)) / sum(len(pack.target_N) for pack in packs)


def is_overfitting(dev_losses: list[tuple[int, float, float]]) -> bool:
    """Dev loss above its best while train loss is below where it stood then."""
    if len(dev_losses) < 2:
        return False
    best = min(dev_losses, key=lambda entry: entry[1])
    last = dev_losses[-1]
    return last[1] > best[1] and last[2] < best[2]


def fit(
    model: PreTrainedModel,
    layers: Mapping[str, Adapted],
    train: Documents,
    steps: Steps,
    dev: Documents,
    recipe: Recipe,
    checkpoints: Path,
    metrics: MetricsLog,
    inputs: str,
) -> Trained:
    """Train the adapter, keep a checkpoint per dev loss, and name the best.

    Args:
        steps: all optimizer steps in order, documents of ``train`` by index.
        inputs: fingerprint of data, model and recipe; only checkpoints that carry it are resumed from.

    Raises:
        TrainingError: loss or gradient not finite.
    """
    hardware.keep_freed_memory()
    optimizer = make_optimizer(layers, recipe.train)
    dev_packs = step_packs(dev, [tuple(range(len(dev)))], recipe.train.max_length)
    eval_steps = _eval_steps(steps.epoch_ends, recipe.train.evals_per_epoch)
    done = _resume(checkpoints, inputs, layers, optimizer, metrics)
    seconds, tokens, since_eval = 0.0, 0, []
    recomputed, fixed = recompute(model, recipe.train.recompute), _deterministic(recipe.train.deterministic)
    with attention(model.eval(), PACKED), recomputed, fixed, progress("training", len(steps), done.step) as bar:
        while done.step < len(steps):
            started = time.perf_counter()
            record = _optimizer_step(model, train, steps, done.step, optimizer, recipe)
            done.step += 1
            seconds += time.perf_counter() - started
            tokens += record["tokens"]
            since_eval.append(record["loss"])
            note = f"loss {record['loss']:.3f}  {tokens / seconds:,.0f} tokens/s"
            if done.step in eval_steps:
                dev_loss = mean_loss(model, dev_packs)
                done.dev_losses.append((done.step, dev_loss, sum(since_eval) / len(since_eval)))
                since_eval = []
                record["dev_loss"] = dev_loss
                note += f"  dev {dev_loss:.3f}"
                save_checkpoint(checkpoints, layers, optimizer, done)
            metrics.append(record)
            emit(Metric.of(record))
            bar.advance(note=note)
    hardware.release_freed_memory()
    overfit = is_overfitting(done.dev_losses)
    if overfit:
        logger.warning(f"over-fitting: dev loss was lowest at step {done.best_step} and rose while train loss fell")
    return Trained(checkpoint_path(checkpoints, done.best_step), done, tokens / seconds if seconds else math.nan, overfit)


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Within the block, an operation without a deterministic form is an error."""
    if not wanted:
        yield
        return
    hardware.ask_for_deterministic_cublas()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _optimizer_step(
    model: PreTrainedModel,
    train: Documents,
    steps: Steps,
    number: int,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
) -> dict[str, float]:
    """Step ``number`` (from 0): gradients, clipping, update; what the metrics say of it."""
    epoch, chosen = steps[number]
    context = StepContext(seed=recipe.seed, step=number)
    rate = learning_rate(recipe.train, number, len(steps))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"]
    packs = step_packs(train, chosen, recipe.train.max_length)
    loss, accuracy = step_gradients(model, packs, context)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, recipe.train.max_grad_norm))
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        rows = [train.row_id(document) for document in sorted(d for pack in chosen for d in pack)[:20]]
        raise TrainingError(
            f"step {number + 1}: loss {loss}, gradient norm {grad_norm} on train rows {', '.join(rows)}",
            "lower train.learning_rate, or use base: fp32",
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tokens = sum(int(train.lengths[document]) for pack in chosen for document in pack)
    computed = sum(pack.ids_1T.shape[1] for pack in packs)
    rescued = context.counters.overflow.total()  # None where nothing is computed in fp16
    return {
        "step": number + 1,
        "epoch": epoch,
        "loss": loss,
        "accuracy": accuracy,
        "learning_rate": rate,
        "grad_norm": grad_norm,
        "tokens": tokens,
        "computed_tokens": computed,
        **({} if rescued is None else {"fp16_rescued_rows": rescued}),
    }


def _eval_steps(epoch_ends: list[int], evals_per_epoch: int) -> set[int]:
    """Numbers of steps done after which the dev loss is taken: evenly in each epoch, its end included."""
    chosen: set[int] = set()
    for start, end in pairwise([0, *epoch_ends]):
        for part in range(1, evals_per_epoch + 1):
            chosen.add(start + max(1, round((end - start) * part / evals_per_epoch)))
    return chosen


def _resume(
    checkpoints: Path,
    inputs: str,
    layers: Mapping[str, Adapted],
    optimizer: torch.optim.Optimizer,
    metrics: MetricsLog,
) -> Progress:
    newest = newest_checkpoint(checkpoints, inputs)
    if newest is None:
        metrics.truncate_after(0)
        return Progress(inputs)
    done = load_checkpoint(newest, layers, optimizer)
    metrics.truncate_after(done.step)
    logger.info(f"resuming after step {done.step} ({newest})")
    return done
