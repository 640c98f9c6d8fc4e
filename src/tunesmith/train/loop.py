"""The training loop: from documents to the best adapter.

One optimizer step is some packs. Each pack runs through the decoder once, the head sees the supervised positions alone
(``kernels/cross_entropy.py``), and the summed loss is divided by the supervised tokens of the *whole step* before the
backward pass. That makes accumulation exact: however a step's documents are packed, the gradient is the same
(``train/step.py``). On a CPU the packs are dealt out to processes, and the bytes of the adapter do not depend on their number
(``train/distributed.py``).

``train_steps`` is the loop itself, a generator of step records, for people who own what happens around it; ``fit`` is what the
pipeline does around it: metrics, dev losses, checkpoints, the choice of the best.

Nothing random is carried from step to step: the order of documents follows from (seed, epoch), dropout from (seed, step, pack)
(``layers/context.py``). A run that was killed goes on from its newest checkpoint and ends
with the bytes it would have had; on a GPU under ``train.deterministic`` alone, without which PyTorch's attention adds its
gradients up in the order of their arrival.

The adapter before the first step is a candidate like all others: it computes the base model, and where training only made the
dev loss worse, it is what is kept, and that is said. A loss, a gradient or a weight that is not finite stops the run with the
documents that showed it, in the last step as in the first; peers that hide it save an adapter of NaN.

Shape suffixes: T tokens, N rows (positions that predict).
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tunesmith import hardware
from tunesmith.errors import TrainingError, raised_by_triton
from tunesmith.launch.group import Group
from tunesmith.layers.experts import Adapted
from tunesmith.layers.nf4 import NF4Weight
from tunesmith.models.attention import PACKED
from tunesmith.models.gpu_failure import is_gpu_failure, next_try, words_of
from tunesmith.models.keep_less import keep_less
from tunesmith.models.load import attention, head_weight
from tunesmith.models.ranks import threads
from tunesmith.recipe import TrainSettings
from tunesmith.rundir.records.events import Metric
from tunesmith.rundir.records.training import DevLoss, Spike, Step
from tunesmith.tracking import MetricsLog, emit, progress, read_metrics
from tunesmith.train.checkpoint import METRICS, Checkpoints, Progress
from tunesmith.train.distributed import Largest, Steps, World, deterministic
from tunesmith.train.documents import Documents, make_pack
from tunesmith.train.optim import make_optimizer
from tunesmith.train.schedule import learning_rate
from tunesmith.train.spike import MOST, SLOWER, find_spike
from tunesmith.train.step import mean_loss

logger = logging.getLogger(__name__)

NAMED_ROWS = 20  # that an error names
DEV_ROWS = 3  # that one about a dev loss looks for: each is a pass of its own
LONG = 4096  # tokens of a document from which attention's temporaries are mapped apart (hardware.map_large_blocks)
STILL_FALLING = 0.2  # of its mean speed: a rate that ends at zero leaves a trained model less
LOWER_RATE = "lower train.learning_rate, or use base: fp32"


class FirstStepFull(torch.OutOfMemoryError):
    """A GPU's memory ended in the first step since a training began or went on: nothing is lost by planning it again."""


class NotFinite(TrainingError):
    """A loss, a gradient or a weight is NaN or infinity."""


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
        computed_on: devices, and numbers of threads and processes, that took part.
        spikes: from which the run went back.
        largest: pack that was trained on in this call; None where no step was needed.
    """

    checkpoint: Path
    dev_losses: tuple[DevLoss, ...]
    best: DevLoss
    tokens_per_second: float | None
    overfit: bool
    undertrained: bool
    computed_on: tuple[str, ...]
    spikes: tuple[Spike, ...]
    largest: Largest | None

    @property
    def only_worse(self) -> bool:
        """Whether no step was better than the untouched adapter."""
        return self.best.step == 0


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
    dev: Documents | None = None,
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
        dev: documents whose loss is taken as often as ``settings`` say; None for never.

    Yields:
        A record of each step.

    Raises:
        TrainingError: a loss, a gradient or a weight that is not finite; or a GPU that cannot go on.
        MissingPackage: 8-bit moments without bitsandbytes.
    """
    optimizer = make_optimizer(layers, settings)
    try:
        with World(model, layers, train, steps, dev, settings, seed) as world:
            yield from steps_in_world(model, layers, train, steps, settings, world, optimizer, dev, 0)
    except (RuntimeError, *raised_by_triton()) as error:
        if not is_gpu_failure(error):
            raise
        base = "nf4" if any(isinstance(module, NF4Weight) for module in model.modules()) else "dense"
        hint = next_try(error, True, settings.recompute, base, settings.max_length, 1).replace("train.", "")  # no recipe here
        raise TrainingError(f"training: {words_of(error)}", hint) from error


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
    group: Group | None = None,
) -> Fitted:
    """Train the adapter, keep a checkpoint per dev loss, and name the best.

    Args:
        steps: all optimizer steps in order, documents of ``train`` by index.
        settings: the section ``train`` of the recipe, with numbers.
        seed: of dropout.
        inputs: fingerprint of data, model and recipe; only checkpoints that carry it are resumed from.
        group: processes that were launched together and follow this training.

    Raises:
        TrainingError: a loss, a gradient or a weight that is not finite.
        MissingPackage: 8-bit moments without bitsandbytes.
    """
    optimizer = make_optimizer(layers, settings)
    store = Checkpoints(checkpoints, inputs, settings.keep_checkpoints)
    with World(model, layers, train, steps, dev, settings, seed, group) as world:
        done = _begin(model, layers, dev, world, optimizer, store, metrics)
        while True:
            rate = settings.learning_rate * SLOWER ** len(done.spikes)
            slowed = settings.model_copy(update={"learning_rate": rate})
            following = steps_in_world(model, layers, train, steps, slowed, world, optimizer, dev, done.step)
            save = partial(store.save, layers, optimizer, done, metrics.path)
            spike = _follow(following, len(steps), done, rate, metrics, save)
            if spike is None:
                break
            logger.warning(
                f"{_words(spike, done.best)}; back to step {spike.back_to} and on at half the rate, {spike.learning_rate:.1e}"
            )
            optimizer = make_optimizer(layers, settings)
            done = store.go_back(layers, optimizer, done, spike, metrics)
    store.remove_others(done)
    fitted = Fitted(
        checkpoint=store.path(done.best.step),
        dev_losses=tuple(done.dev_losses),
        best=done.best,
        tokens_per_second=done.tokens / done.seconds if done.seconds else None,
        overfit=is_overfitting(done.dev_losses),
        undertrained=is_undertrained(done.dev_losses),
        computed_on=tuple(done.computed_on),
        spikes=tuple(done.spikes),
        largest=world.largest if world.largest.tokens else None,
    )
    _judge(fitted, "" if settings.from_adapter else ", which computes the base model")
    return fitted


def _follow(
    following: Generator[Step, None, None],
    total: int,
    done: Progress,
    rate: float,
    metrics: MetricsLog,
    save: Callable[[], None],
) -> Spike | None:
    """Go through the steps to the end, or to the dev loss after a spike, and say which.

    Args:
        total: steps of the run.
        done: where it stands; brought forward.
        rate: that it is at.
        save: writes a checkpoint.
    """
    losses = [float(line["loss"]) for line in read_metrics(metrics.path)]
    is_third_told = False
    with closing(following), progress("training", total, done.step) as bar:
        for record in following:
            assert record.seconds is not None
            done.step, done.tokens, done.seconds = record.step, done.tokens + record.tokens, done.seconds + record.seconds
            losses.append(record.loss)
            metrics.append(record.line())
            emit(Metric.of(record.figures()))
            note = f"loss {record.loss:.3f}  {done.tokens / done.seconds:,.0f} tokens/s"
            if record.dev_loss is not None:
                since = done.dev_losses[-1].step
                spike = find_spike(losses, since, record.dev_loss, done.best, rate)
                if spike is not None and len(done.spikes) < MOST:
                    return spike
                if spike is not None and not is_third_told:
                    is_third_told = True
                    logger.warning(f"{_words(spike, done.best)}; training went back {MOST} times before, and goes on")
                mean = sum(losses[since:]) / len(losses[since:])
                done.dev_losses.append(DevLoss(step=record.step, dev_loss=record.dev_loss, train_loss=mean))
                save()
                note += f"  dev {record.dev_loss:.3f}"
            bar.advance(note=note)
    return None


def _words(spike: Spike, best: DevLoss) -> str:
    return f"spike: loss {spike.loss:.3f} at step {spike.step}, dev loss {spike.dev_loss:.4f} after {best.dev_loss:.4f} at best"


def _begin(
    model: PreTrainedModel,
    layers: Mapping[str, Adapted],
    dev: Documents,
    world: World,
    optimizer: torch.optim.Optimizer,
    store: Checkpoints,
    metrics: MetricsLog,
) -> Progress:
    """Where training goes on from: a checkpoint with its metrics, or the start, whose dev loss is taken."""
    done = store.resume(layers, optimizer)
    here = _computing_on(head_weight(model).device, world)
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
    done.dev_losses.append(DevLoss(step=0, dev_loss=dev_loss_after(model, layers, dev, world, 0)))
    store.save(layers, optimizer, done, metrics.path)
    return done


def _judge(fitted: Fitted, first: str) -> None:
    """Say aloud what a loss curve says against its run; ``first`` is what there is to add about the adapter of step 0."""
    if fitted.only_worse:
        lowest = min(fitted.dev_losses[1:], key=lambda entry: entry.dev_loss)
        logger.warning(
            f"training only made it worse: dev loss {fitted.best.dev_loss:.4f} before the first step, at best "
            f"{lowest.dev_loss:.4f} after it (step {lowest.step}); the untouched adapter is kept{first}"
        )
    elif fitted.overfit:
        logger.warning(f"over-fitting: dev loss was lowest at step {fitted.best.step} and rose while train loss fell")
    elif fitted.undertrained:
        before, last = fitted.dev_losses[-2:]
        logger.warning(
            f"under-trained: dev loss was still falling at the end, {before.dev_loss:.4f} to {last.dev_loss:.4f} from step "
            f"{before.step} to {last.step}; raise train.num_train_epochs, or train.learning_rate"
        )


def _computing_on(device: torch.device, world: World) -> str:
    """A device and what the order of its additions depends on: the threads of a process, and how many add up their own."""
    sums = "" if world.summands == 1 else f", sums of {world.summands} processes"
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) + sums
    return f"{device.type} with {world.threads} thread{'' if world.threads == 1 else 's'}{sums}"


def dev_loss_after(model: PreTrainedModel, layers: Mapping[str, Adapted], dev: Documents, world: World, step: int) -> float:
    """The mean loss over the dev part after a step, between the steps of a training.

    Raises:
        NotFinite: that loss, or a weight.
    """
    _refuse_broken_weights(layers, step)
    world.start()
    with attention(model.eval(), PACKED), threads(world.threads):
        return _dev_loss(model, dev, world, step)


def _dev_loss(model: PreTrainedModel, dev: Documents, world: World, step: int) -> float:
    """The mean loss over the dev part after a step.

    Raises:
        NotFinite: that loss.
    """
    loss = world.dev_loss()
    if math.isfinite(loss):
        return loss
    where = "the dev rows" if world.in_step else _where_not_finite(model, dev)
    hint = "use base: fp32; is the checkpoint whole?" if step == 0 else LOWER_RATE
    raise NotFinite(f"dev loss after step {step} is {loss} on {where}", hint)


def _where_not_finite(model: PreTrainedModel, dev: Documents) -> str:
    """Some dev rows whose loss is not finite, each in a pass of its own."""
    alone = ((dev.row_id(document), mean_loss(model, [make_pack(dev, (document,))])) for document in _supervised(dev))
    rows = list(islice((row for row, value in alone if not math.isfinite(value)), DEV_ROWS))
    return f"dev rows {', '.join(rows)}" if rows else "the dev rows together, though not on any alone"


def _supervised(documents: Documents) -> Iterator[int]:
    """Documents that predict something."""
    return (document for document in range(len(documents)) if len(make_pack(documents, (document,)).target_N))


def _refuse_broken_weights(layers: Mapping[str, Adapted], step: int) -> None:
    trained = {f"{name}.{key}": p for name, x in layers.items() for key, p in x.named_parameters() if p.requires_grad}
    finite = {name: parameter.isfinite().all() for name, parameter in trained.items()}
    # Read at once: each look at a GPU is a wait.
    broken = [name for name, whole in zip(finite, torch.stack([*finite.values()]).tolist(), strict=True) if not whole]
    if broken:
        raise NotFinite(f"step {step}: its update left NaN or infinity in {broken[0]}", LOWER_RATE)


def steps_in_world(
    model: PreTrainedModel,
    layers: Mapping[str, Adapted],
    train: Documents,
    steps: Steps,
    settings: TrainSettings,
    world: World,
    optimizer: torch.optim.Optimizer,
    dev: Documents | None,
    first: int,
) -> Generator[Step, None, None]:
    """The steps from ``first`` on; in a process of one thread, the parent of the others."""
    eval_steps = _eval_steps(steps.epoch_ends, settings.evals_per_epoch)
    if int(train.lengths.max()) > LONG:
        hardware.map_large_blocks()
    else:
        hardware.keep_freed_memory()
    try:
        for number in range(first, len(steps)):
            world.start()
            less, fixed = keep_less(model, settings), deterministic(settings.deterministic)
            with attention(model.eval(), PACKED), less, fixed, threads(world.threads):
                try:
                    record = _optimizer_step(train, steps, number, optimizer, settings, world)
                except torch.OutOfMemoryError as error:
                    if number > first:
                        raise
                    raise FirstStepFull(str(error)) from error
                if record.step in eval_steps:
                    _refuse_broken_weights(layers, record.step)
                    if dev is not None:
                        record = replace(record, dev_loss=_dev_loss(model, dev, world, record.step))
            yield record
    finally:
        hardware.release_freed_memory()


def _optimizer_step(
    train: Documents, steps: Steps, number: int, optimizer: torch.optim.Optimizer, settings: TrainSettings, world: World
) -> Step:
    """Step ``number`` (from 0): gradients, clipping, update."""
    started = time.perf_counter()
    epoch, chosen = steps[number]
    rate = learning_rate(settings, number, len(steps))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"]
    loss, accuracy, rescued = world.gradients(number)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm))
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        rows = [train.row_id(document) for document in sorted(d for pack in chosen for d in pack)[:NAMED_ROWS]]
        raise NotFinite(
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
        computed_tokens=sum(pack.ids_1T.shape[1] for pack in world.packs(number)),
        fp16_rescued_rows=rescued,
        seconds=time.perf_counter() - started,
    )


def _eval_steps(epoch_ends: list[int], evals_per_epoch: int) -> set[int]:
    """Numbers of steps done after which the dev loss is taken: evenly in each epoch, its end included."""
    chosen: set[int] = set()
    for start, end in pairwise([0, *epoch_ends]):
        for part in range(1, evals_per_epoch + 1):
            chosen.add(start + max(1, round((end - start) * part / evals_per_epoch)))
    return chosen
