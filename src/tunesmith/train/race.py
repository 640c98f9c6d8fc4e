"""Three rates race: half, one and twice what the recipe says or the rule gives, over the first tenth of the training.

A rule for the rate (``recipe/derive.py``) is made for the mean over models and data, and may be off for one of them. A race
asks the rows at hand: each rate starts from the same untouched adapter, sees the same rows in the same order with the schedule
of the whole run, and the lowest dev loss at its end wins (the lower rate among equals). A rate at which something is not finite
has lost, and ends nothing.

**The winner trains from the start**, though its first tenth was computed already. So a training is one run whose bytes follow
from its rate: one that raced is to the byte the one in which its rate was given by hand, it goes on from the same checkpoints,
and nothing has to be known of how the rate was found. Going on from the winner's last step would save a tenth, and cost a
second way to begin a run.

**Killed in a race**, a run goes on with the rates that are left: ``checkpoints/race.json`` holds those that are through, under
the fingerprint of what is trained on and with. A race that is over is not run again.

Cost: three tenths of the training, and three dev losses. Refused: more rates, or a search over other settings (pichak, a tuner
that races rates for the first 10 to 20 % of the steps, found it as good as Optuna in equal time); to drop those that are behind
earlier, in the warm-up. How often the winner of a tenth wins the whole is not measured here.
"""

import logging
import math
from collections.abc import Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path

from transformers import PreTrainedModel

from tunesmith.errors import RunError, TrainingError
from tunesmith.launch.group import Group
from tunesmith.layers.experts import Adapted
from tunesmith.models.adapter import adapter_state, load_adapter_state
from tunesmith.recipe import TrainSettings
from tunesmith.rundir.records.training import Race, RaceEntry, RaceState
from tunesmith.tracking import progress
from tunesmith.train.distributed import Steps, World
from tunesmith.train.documents import Documents
from tunesmith.train.loop import LOWER_RATE, NotFinite, dev_loss_after, steps_in_world
from tunesmith.train.optim import make_optimizer

logger = logging.getLogger(__name__)

FACTORS = (0.5, 1.0, 2.0)
SHARE, FEWEST = 10, 5
STATE = "race.json"


def steps_of_race(total: int) -> int:
    """Steps of each rate, of a training with so many: a tenth, at least five."""
    return min(total, max(FEWEST, math.ceil(total / SHARE)))


def race(
    model: PreTrainedModel,
    layers: Mapping[str, Adapted],
    train: Documents,
    steps: Steps,
    dev: Documents,
    settings: TrainSettings,
    seed: int,
    checkpoints: Path,
    inputs: str,
    group: Group | None = None,
) -> Race | None:
    """Try each rate, and leave the adapter as it was; None where the settings ask for no race.

    Args:
        layers: the adapted layers by name, untrained.
        steps: all optimizer steps of the training.
        dev: documents whose loss decides.
        settings: the section ``train`` of the recipe, with numbers.
        seed: of dropout.
        checkpoints: folder for what a killed race has come to.
        inputs: fingerprint of data, model and recipe, whether they race or not.
        group: processes that were launched together and follow this training.

    Raises:
        TrainingError: no rate kept everything finite.
        MissingPackage: 8-bit moments without bitsandbytes.
    """
    if not settings.race:
        return None
    state, count = checkpoints / STATE, steps_of_race(len(steps))
    entries = list(_entries_before(state, inputs))
    rates = [settings.learning_rate * factor for factor in FACTORS]
    if missing := rates[len(entries) :]:
        start = {name: tensor.clone() for name, tensor in adapter_state(layers).items()}
        with World(model, layers, train, steps, dev, settings, seed, group) as world:
            for rate in missing:
                load_adapter_state(layers, start)
                changed = settings.model_copy(update={"learning_rate": rate})
                loss = _loss_after(count, model, layers, train, steps, dev, changed, world)
                entries.append(RaceEntry(learning_rate=rate, dev_loss=loss))
                RaceState(inputs=inputs, entries=tuple(entries)).write(state)
        load_adapter_state(layers, start)
    finite = [(entry.dev_loss, entry.learning_rate) for entry in entries if entry.dev_loss is not None]
    if not finite:
        state.unlink()  # whoever tries again tries all
        tried = ", ".join(f"{rate:g}" for rate in rates)
        raise TrainingError(f"race: no rate of {tried} kept everything finite", LOWER_RATE)
    return Race(steps=count, entries=tuple(entries), learning_rate=min(finite)[1])


def _entries_before(state: Path, inputs: str) -> tuple[RaceEntry, ...]:
    """What a race of these inputs came to before it was killed; nothing where there is none, or its file is damaged."""
    if not state.exists():
        return ()
    try:
        before = RaceState.read(state)
    except RunError as error:
        logger.warning(f"{state}: damaged, so the race begins anew: {error.message}")
        return ()
    if before.inputs != inputs:
        return ()
    for entry in before.entries:
        loss = "not finite" if entry.dev_loss is None else f"{entry.dev_loss:.4f}"
        logger.info(f"race: rate {entry.learning_rate:g}: dev loss {loss}, as it was measured before")
    return before.entries


def _loss_after(
    count: int,
    model: PreTrainedModel,
    layers: Mapping[str, Adapted],
    train: Documents,
    steps: Steps,
    dev: Documents,
    settings: TrainSettings,
    world: World,
) -> float | None:
    """Dev loss after the first steps at a rate; None, and a warning, where something was not finite."""
    optimizer, rate = make_optimizer(layers, settings), settings.learning_rate
    following = steps_in_world(model, layers, train, steps, settings, world, optimizer, None, 0)
    try:
        with closing(following), progress(f"race at rate {rate:g}", count) as bar:
            for record in islice(following, count):
                bar.advance(note=f"loss {record.loss:.3f}")
        loss = dev_loss_after(model, layers, dev, world, count)
    except NotFinite as error:
        logger.warning(f"race: rate {rate:g} is out: {error.message}")
        return None
    finally:
        optimizer.zero_grad(set_to_none=True)  # a step that failed leaves its gradients
    logger.info(f"race: rate {rate:g}: dev loss {loss:.4f} after {count} of {len(steps)} steps")
    return loss
