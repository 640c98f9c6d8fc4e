"""The training loop: from documents to the best adapter.

One optimizer step is some packs. Each pack runs through the decoder once, the head sees the supervised positions alone
(``kernels/cross_entropy.py``), and the summed loss is divided by the supervised tokens of the *whole step* before the
backward pass. That makes accumulation exact: however a step's documents are packed, the gradient is the same.

``train_steps`` is the loop itself, a generator of step records, for people who own what happens around it; ``fit`` is what the
pipeline does around it: metrics, dev losses, checkpoints, the choice of the best.

Nothing random is carried from step to step: the order of documents follows from (seed, epoch), dropout from (seed, step, pack)
(``layers/context.py``). A run that was killed goes on from its newest checkpoint and ends with the bytes it would have had.

The adapter before the first step is a candidate like all others: it computes the base model, and where training only made the
dev loss worse, it is what is kept, and that is said. A loss, a gradient or a weight that is not finite stops the run with the
documents that showed it, in the last step as in the first; peers that hide it save an adapter of NaN.

Shape suffixes: T tokens, N rows (positions that predict), D hidden size, V vocabulary; here: X is N where the last layer is
narrow, else T.
"""

import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice, pairwise
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
from tunesmith.models.load import attention, decoder, head_of, head_weight
from tunesmith.models.recompute import recompute
from tunesmith.recipe import Optimisation, TrainSettings
from tunesmith.rundir.records.events import Metric
from tunesmith.rundir.records.training import DevLoss, Step
from tunesmith.tracking import MetricsLog, emit, progress, read_metrics
from tunesmith.train.checkpoint import METRICS, Checkpoints, Progress
from tunesmith.train.documents import Documents, Pack, make_pack, make_shared_pack
from tunesmith.train.optim import make_optimizer
from tunesmith.train.prefix import find_groups, micro_batches
from tunesmith.train.schedule import learning_rate

logger = logging.getLogger(__name__)

PlannedStep = tuple[int, list[tuple[int, ...]]]  # epoch, and documents of each micro-batch
NAMED_ROWS = 20  # that an error names
DEV_ROWS = 3  # that one about a dev loss looks for: each is a pass of its own
STILL_FALLING = 0.2  # of its mean speed: a rate that ends at zero leaves a trained model less
LOWER_RATE = "lower train.learning_rate, or use base: fp32"


class Steps(Protocol):
    """All optimizer steps of a run, as ``data/pack.py`` plans them."""

    epoch_ends: list[int]  # number of steps done at the end of each epoch

    def __len__(self) -> int: ...

    def __getitem__(self, step: int, /) -> PlannedStep: ...


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What training ended with.

    Attributes:
        checkpoint: directory of the best checkpoint.
        dev_losses: all, oldest first; the first is of step 0.
        best: the lowest of them, the earliest among equals.
        tokens_per_second: real tokens over the time of training steps, dev losses not counted; None where no step was needed.
        overfit: whether dev loss rose at the end while train loss fell.
        undertrained: whether dev loss was still falling fast at the end.
        computed_on: devices and numbers of threads that took part.
    """

    checkpoint: Path
    dev_losses: tuple[DevLoss, ...]
    best: DevLoss
    tokens_per_second: float | None
    overfit: bool
    undertrained: bool
    computed_on: tuple[str, ...]

    @property
    def only_worse(self) -> bool:
        """Whether no step was better than the untouched adapter."""
        return self.best.step == 0


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
    return linear_cross_entropy(hidden_ND, head_VD, pack.target_N, softcap, overflow, head_of(model).bias)


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


def is_overfitting(dev_losses: Sequence[DevLoss]) -> bool:
    """Dev loss above its best while train loss is below where it stood then."""
    trained = [entry for entry in dev_losses if entry.train_loss is not None]
    if len(trained) < 2:
        return False
    best, last = min(trained, key=lambda entry: entry.dev_loss), trained[-1]
    assert best.train_loss is not None and last.train_loss is not None
    return last.dev_loss > best.dev_loss and last.train_loss < best.train_loss


def is_undertrained(dev_losses: Sequence[DevLoss]) -> bool:
    """The last dev loss is the lowest, and it fell faster since the one before than ``STILL_FALLING`` of its mean speed.

    A speed and not a share of the fall: the last of two intervals is half the run, that of ten a tenth. With fewer than two
    intervals there is nothing to compare.
    """
    if len(dev_losses) < 3:
        return False
    first, before, last = dev_losses[0], dev_losses[-2], dev_losses[-1]
    if last.dev_loss >= min(entry.dev_loss for entry in dev_losses[:-1]):
        return False
    mean_speed = (first.dev_loss - last.dev_loss) / (last.step - first.step)
    return (before.dev_loss - last.dev_loss) / (last.step - before.step) > STILL_FALLING * mean_speed


def train_steps(
    model: PreTrainedModel,
    layers: Mapping[str, Adapted],
    train: Documents,
    steps: Steps,
    settings: TrainSettings,
    seed: int,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    dev: Documents | None = None,
    first: int = 0,
) -> Generator[Step, None, None]:
    """Train, one optimizer step at each turn.

    When a record comes out, its step is done and its dev loss taken: the adapter may be read, saved or scored then, and the
    model asked for answers.

    Args:
        layers: the adapted layers by name, as ``add_lora`` returned them.
        train: the documents.
        steps: all optimizer steps in order, documents of ``train`` by index.
        settings: the section ``train`` of a recipe, with numbers.
        seed: of dropout.
        optimizer: made from ``settings`` where none is given.
        dev: documents whose loss is taken as often as ``settings`` say; None for never.
        first: steps that are done already.

    Yields:
        A record of each step.

    Raises:
        TrainingError: a loss, a gradient or a weight that is not finite.
        MissingPackage: 8-bit moments without bitsandbytes.
    """
    optimizer = make_optimizer(layers, settings) if optimizer is None else optimizer
    dev_packs = [] if dev is None else _dev_packs(dev, settings)
    eval_steps = _eval_steps(steps.epoch_ends, settings.evals_per_epoch)
    hardware.keep_freed_memory()
    try:
        for number in range(first, len(steps)):
            recomputed, fixed = recompute(model, settings.recompute), _deterministic(settings.deterministic)
            with attention(model.eval(), PACKED), recomputed, fixed:
                record = _optimizer_step(model, train, steps, number, optimizer, settings, seed)
                if record.step in eval_steps:
                    _refuse_broken_weights(layers, record.step)
                    if dev is not None:
                        record = replace(record, dev_loss=_dev_loss(model, dev, dev_packs, record.step))
            yield record
    finally:
        hardware.release_freed_memory()


def fit(
    model: PreTrainedModel,
    layers: Mapping[str, Adapted],
    train: Documents,
    steps: Steps,
    dev: Documents,
    settings: TrainSettings,
    seed: int,
    checkpoints: Path,
    metrics: MetricsLog,
    inputs: str,
) -> Fitted:
    """Train the adapter, keep a checkpoint per dev loss, and name the best.

    Args:
        steps: all optimizer steps in order, documents of ``train`` by index.
        settings: the section ``train`` of the recipe, with numbers.
        seed: of dropout.
        inputs: fingerprint of data, model and recipe; only checkpoints that carry it are resumed from.

    Raises:
        TrainingError: a loss, a gradient or a weight that is not finite.
        MissingPackage: 8-bit moments without bitsandbytes.
    """
    optimizer = make_optimizer(layers, settings)
    store = Checkpoints(checkpoints, inputs, settings.keep_checkpoints)
    done = _begin(model, layers, dev, settings, optimizer, store, metrics)
    losses: list[float] = []
    following = train_steps(model, layers, train, steps, settings, seed, optimizer=optimizer, dev=dev, first=done.step)
    with closing(following), progress("training", len(steps), done.step) as bar:
        for record in following:
            assert record.seconds is not None
            done.step, done.tokens, done.seconds = record.step, done.tokens + record.tokens, done.seconds + record.seconds
            losses.append(record.loss)
            metrics.append(record.line())
            emit(Metric.of(record.figures()))
            note = f"loss {record.loss:.3f}  {done.tokens / done.seconds:,.0f} tokens/s"
            if record.dev_loss is not None:
                mean = sum(losses) / len(losses)
                done.dev_losses.append(DevLoss(step=record.step, dev_loss=record.dev_loss, train_loss=mean))
                losses.clear()
                store.save(layers, optimizer, done, metrics.path)
                note += f"  dev {record.dev_loss:.3f}"
            bar.advance(note=note)
    store.remove_others(done)
    fitted = Fitted(
        checkpoint=store.path(done.best.step),
        dev_losses=tuple(done.dev_losses),
        best=done.best,
        tokens_per_second=done.tokens / done.seconds if done.seconds else None,
        overfit=is_overfitting(done.dev_losses),
        undertrained=is_undertrained(done.dev_losses),
        computed_on=tuple(done.computed_on),
    )
    _judge(fitted)
    return fitted


def _begin(
    model: PreTrainedModel,
    layers: Mapping[str, Adapted],
    dev: Documents,
    settings: TrainSettings,
    optimizer: torch.optim.Optimizer,
    store: Checkpoints,
    metrics: MetricsLog,
) -> Progress:
    """Where training goes on from: a checkpoint with its metrics, or the start, whose dev loss is taken."""
    done = store.resume(layers, optimizer)
    here = _computing_on(head_weight(model).device)
    if done is not None:
        metrics.restore(store.path(done.step) / METRICS)
        for line in read_metrics(metrics.path):
            emit(Metric.of(line))
        logger.info(f"resuming after step {done.step} ({store.path(done.step)})")
        if here not in done.computed_on:
            logger.warning(
                f"resuming on {here} what was begun on {', '.join(done.computed_on)}: sums are rounded in another order, so "
                "the last digits are not those of an undisturbed run"
            )
            done.computed_on.append(here)
        return done
    done = Progress(computed_on=[here])
    metrics.restore(None)
    with attention(model.eval(), PACKED):
        done.dev_losses.append(DevLoss(step=0, dev_loss=_dev_loss(model, dev, _dev_packs(dev, settings), 0)))
    store.save(layers, optimizer, done, metrics.path)
    return done


def _judge(fitted: Fitted) -> None:
    """Say aloud what a loss curve says against its run."""
    if fitted.only_worse:
        lowest = min(fitted.dev_losses[1:], key=lambda entry: entry.dev_loss)
        logger.warning(
            f"training only made it worse: dev loss {fitted.best.dev_loss:.4f} before the first step, at best "
            f"{lowest.dev_loss:.4f} after it (step {lowest.step}); the untouched adapter is kept, which computes the base model"
        )
    elif fitted.overfit:
        logger.warning(f"over-fitting: dev loss was lowest at step {fitted.best.step} and rose while train loss fell")
    elif fitted.undertrained:
        before, last = fitted.dev_losses[-2:]
        logger.warning(
            f"under-trained: dev loss was still falling at the end, {before.dev_loss:.4f} to {last.dev_loss:.4f} from step "
            f"{before.step} to {last.step}; raise train.num_train_epochs, or train.learning_rate"
        )


def _computing_on(device: torch.device) -> str:
    """A device and what the order of its additions depends on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type} with {threads} thread{'' if threads == 1 else 's'}"


def _dev_packs(dev: Documents, settings: Optimisation) -> list[Pack]:
    return step_packs(dev, [tuple(range(len(dev)))], settings.max_length)


def _dev_loss(model: PreTrainedModel, dev: Documents, packs: list[Pack], step: int) -> float:
    """The mean loss over the dev part after a step.

    Raises:
        TrainingError: it is not finite.
    """
    loss = mean_loss(model, packs)
    if math.isfinite(loss):
        return loss
    alone = ((dev.row_id(document), mean_loss(model, [make_pack(dev, (document,))])) for document in _supervised(dev))
    rows = list(islice((row for row, value in alone if not math.isfinite(value)), DEV_ROWS))
    where = f"dev rows {', '.join(rows)}" if rows else "the dev rows together, though not on any alone"
    hint = "use base: fp32; is the checkpoint whole?" if step == 0 else LOWER_RATE
    raise TrainingError(f"dev loss after step {step} is {loss} on {where}", hint)


def _supervised(documents: Documents) -> Iterator[int]:
    """Documents that predict something."""
    return (document for document in range(len(documents)) if len(make_pack(documents, (document,)).target_N))


def _refuse_broken_weights(layers: Mapping[str, Adapted], step: int) -> None:
    for name, layer in layers.items():
        for key, parameter in layer.named_parameters():
            if parameter.requires_grad and not bool(parameter.isfinite().all()):
                raise TrainingError(f"step {step}: its update left NaN or infinity in {name}.{key}", LOWER_RATE)


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
    settings: TrainSettings,
    seed: int,
) -> Step:
    """Step ``number`` (from 0): gradients, clipping, update."""
    started = time.perf_counter()
    epoch, chosen = steps[number]
    context = StepContext(seed=seed, step=number)
    rate = learning_rate(settings, number, len(steps))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"]
    packs = step_packs(train, chosen, settings.max_length)
    loss, accuracy = step_gradients(model, packs, context)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm))
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        rows = [train.row_id(document) for document in sorted(d for pack in chosen for d in pack)[:NAMED_ROWS]]
        raise TrainingError(
            f"step {number + 1}: loss {loss}, gradient norm {grad_norm} on train rows {', '.join(rows)}", LOWER_RATE
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Step(
        step=number + 1,
        epoch=epoch,
        loss=loss,
        accuracy=accuracy,
        learning_rate=rate,
        grad_norm=grad_norm,
        tokens=sum(int(train.lengths[document]) for pack in chosen for document in pack),
        computed_tokens=sum(pack.ids_1T.shape[1] for pack in packs),
        fp16_rescued_rows=context.counters.overflow.total(),
        seconds=time.perf_counter() - started,
    )


def _eval_steps(epoch_ends: list[int], evals_per_epoch: int) -> set[int]:
    """Numbers of steps done after which the dev loss is taken: evenly in each epoch, its end included."""
    chosen: set[int] = set()
    for start, end in pairwise([0, *epoch_ends]):
        for part in range(1, evals_per_epoch + 1):
            chosen.add(start + max(1, round((end - start) * part / evals_per_epoch)))
    return chosen
