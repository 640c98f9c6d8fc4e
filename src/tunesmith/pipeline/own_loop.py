"""For people who own their loop: rows to token ids, and a model trained a step at a turn; no recipe file, no run directory.

    base = ts.open_base("org/instruct").add_lora(r=16)
    for step in ts.train_steps(base, ts.render("rows.jsonl", base), learning_rate=1e-3):
        print(step.step, step.loss)
    base.save_adapter("adapter")

It is the path of the stage ``train``, which calls the same two functions: ``make_ready`` swaps in our layers, proves that they
compute the stock model's loss and that every adapter can learn, and plans the steps; ``train.loop.train_steps`` is the loop. So
the records are the lines that a run of the same rows and settings writes into ``metrics.jsonl``, to the bit (a test holds it).
What a run adds is all around it: the split, checkpoints, the choice of the best, the evaluation.

Refused: a trainer with callbacks, which is somebody else's loop with holes in it.
"""

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from tunesmith.chat.rendered import Rendered
from tunesmith.data.meaning import Meaning
from tunesmith.data.memory import Rows
from tunesmith.data.pack import Plan
from tunesmith.data.quality import wrong_lines
from tunesmith.data.read import AS_FOUND, Reader, ReadOptions
from tunesmith.engines.base import BaseModel, LoadedModel
from tunesmith.errors import DataError, ModelError, RecipeError, TrainingError
from tunesmith.layers.experts import Adapted
from tunesmith.models.fuse import fuse, is_fused
from tunesmith.models.load import head_weight
from tunesmith.pipeline.dials import Shortage, choose_dials
from tunesmith.pipeline.lines import reading_lines
from tunesmith.recipe import Train, TrainSettings, section_from
from tunesmith.recipe.derive import Derived, derive, width_of_update
from tunesmith.rundir.records.training import Step
from tunesmith.rundir.rows import Row
from tunesmith.train import loop
from tunesmith.train.documents import Documents, make_documents
from tunesmith.train.health import check_adapter, first_rows, refuse_other_loss, stock_loss
from tunesmith.train.prefix import row_tokens
from tunesmith.train.step import pack_tokens

logger = logging.getLogger(__name__)

NOT_HERE = {
    "resident_layers": "the model is loaded with it: open_base(recipe)",
    "shard": "processes that were launched together make a whole run: torchrun -m tunesmith run",
    "sequence_parallel": "processes that were launched together make a whole run: torchrun -m tunesmith run",
    "embedding_on": "the model is loaded with it: open_base(recipe)",
    "from_adapter": "the model is loaded with it: open_base(model).load(directory)",
    "compute": "the model was opened with it: open_base(model, compute=...)",
    "replay": "what the base model writes are rows like all others: render them too",
    "race": "a race is between the first steps of whole trainings: tunesmith train",
    "keep_checkpoints": "your loop saves when it likes: model.save_adapter(directory)",
}


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A model that can be trained, and the plan.

    Attributes:
        steps: all optimizer steps.
        swapped: what was swapped in, for people.
        first_loss: on the first rows, nats a supervised token.
    """

    steps: Plan
    swapped: str
    first_loss: float


def make_ready(
    model: PreTrainedModel,
    layers: Mapping[str, Adapted],
    documents: Documents,
    settings: TrainSettings,
    seed: int,
    *,
    is_new: bool = True,
) -> Ready:
    """Swap in our layers, plan the steps, and look before the first one.

    Args:
        model: with its adapted layers; fused already where it was made ready before.
        documents: to train on, none longer than ``settings.max_length``.
        is_new: whether the adapter is untrained, so that it must change nothing yet.

    Raises:
        ModelError: our layers compute another loss than the stock ones, or documents in a pack know each other.
        TrainingError: an adapter that cannot learn, or a model that guesses worse than a die.
    """
    largest = settings.max_length
    if model.device.type == "cpu":
        largest = pack_tokens(settings.tokens_per_step, int(documents.lengths.max()), largest)
    sizes = documents.row_sizes if documents.rows < len(documents) else None
    steps = Plan(row_tokens(documents), settings.num_train_epochs, settings.tokens_per_step, largest, seed, sizes)
    swapped = "as it was made ready before"
    if not is_fused(model):
        expected = stock_loss(model)
        swapped = fuse(model).summary()
        refuse_other_loss(model, expected)
    first_loss = check_adapter(model, layers, documents, first_rows(documents, steps[0][1]), is_new=is_new)
    return Ready(steps=steps, swapped=swapped, first_loss=first_loss)


def settings_for(model: LoadedModel, documents: Documents, train: Train, shortage: Shortage | None = None) -> Derived:
    """What a section ``train`` comes to for a model with an adapter and for what it is trained on.

    Args:
        shortage: what is known of the GPU's memory since a first step did not fit.
    """
    assert model.lora is not None, "no adapter"
    derived = derive(
        train,
        rows=documents.rows,
        tokens=int(row_tokens(documents).sum()),
        hidden=head_weight(model.model).shape[1],
        update=width_of_update(model.lora),
        supervised=documents.supervised_tokens,
    )
    return choose_dials(derived, model, int(documents.lengths.max()), shortage)


def render(rows: Rows, model: BaseModel | LoadedModel, options: ReadOptions = AS_FOUND) -> list[Rendered]:
    """Token ids and supervision of rows, as the model's template writes them.

    A row whose template rewrites earlier turns is a document for each supervised turn: ``documents`` of what is returned has
    all of them, ``ids`` is the last.

    How they are read, and what they mean that their author may not have meant, is logged.

    Args:
        rows: file, directory or hub id, or rows in memory, in any format that ``check`` reads.
        model: what they are rendered for.
        options: how they are read.

    Raises:
        DataError: bad rows, or one that the template refuses or in which nothing is supervised.
        ModelError: ``model`` is not an open one.
    """
    _expect(model, (BaseModel, LoadedModel), "render", "open one: ts.open_base(model)")
    reader = Reader(rows, options)
    meaning = Meaning(reasoning_is_text=options.reasoning == "keep")
    rendered = model.render(row.to_json() for row in _seen(reader, meaning))
    reading = reader.summary()
    for line in reading_lines(reading):
        logger.info(f"render: {line}")
    for line in wrong_lines(meaning.findings(reading)):
        logger.warning(f"render: {line}")
    return rendered


def _seen(reader: Reader, meaning: Meaning) -> Iterator[Row]:
    for batch in reader.batches():
        meaning.add(batch)
        yield from batch


def train_steps(
    model: LoadedModel,
    rows: Sequence[Rendered],
    *,
    dev: Sequence[Rendered] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Generator[Step, None, None]:
    """Train a model's adapter, one optimizer step at each turn.

    What cannot be trained is refused at once, before the first turn. When a record comes out, its step is done and its dev
    loss taken: the adapter may be saved then, and answers be asked of ``model.base.load(directory)``. (``model`` itself does
    nothing but train from here on: its layers read packed documents.) Breaking off the loop leaves the adapter of the last
    step.

    Args:
        model: with an adapter, from ``add_lora`` or ``load``.
        rows: what it learns, from ``render``.
        dev: rows whose loss is taken ``evals_per_epoch`` times an epoch; None for never.
        seed: of the order of rows and of dropout.
        settings: keys of the recipe's section ``train``: ``learning_rate``, ``num_train_epochs``, ``tokens_per_step`` ...;
            those three are derived from rows and model where they are not given.

    Returns:
        A record of each step, as it is made.

    Raises:
        RecipeError: an unknown key, a value out of range, or a key that has no meaning here.
        DataError: no rows, or one longer than ``max_length``.
        ModelError: not an open model, or a type that cannot be trained.
        TrainingError: no adapter, one that cannot learn, or a loss, a gradient or a weight that is not finite.
        MissingPackage: 8-bit moments without bitsandbytes.
    """
    _expect(model, (LoadedModel,), "train_steps", "open_base(model).add_lora(r=16)")
    for key, reason in NOT_HERE.items():
        if key in settings:
            raise RecipeError(f"train_steps: {key} has no meaning here", reason)
    train = section_from(Train, settings, "train_steps")
    if not model.layers:
        raise TrainingError("train_steps: the model has no adapter to train", "open_base(model).add_lora(r=16)")
    documents = _documents(rows, "rows", train.max_length)
    dev_documents = None if dev is None else _documents(dev, "dev", train.max_length)
    numbers = settings_for(model, documents, train).settings
    ready = make_ready(model.model, model.layers, documents, numbers, seed, is_new=False)
    return loop.train_steps(model.model, model.layers, documents, ready.steps, numbers, seed, dev=dev_documents)


def _expect(model: object, kinds: tuple[type, ...], where: str, hint: str) -> None:
    if not isinstance(model, kinds):
        raise ModelError(f"{where}: expected {kinds[-1].__name__}, found {type(model).__name__}", hint)


def _documents(rows: Sequence[Rendered], name: str, max_length: int) -> Documents:
    if not rows:
        raise DataError(f"train_steps: {name}: no rows", 'render some: ts.render("rows.jsonl", model)')
    long = [number for number, row in enumerate(rows) if row.longest > max_length]
    if long:
        tokens = rows[long[0]].longest
        raise DataError(
            f"train_steps: {name}[{long[0]}] has {tokens:,} tokens, more than max_length {max_length:,}, as have "
            f"{len(long) - 1} more of {len(rows)} rows; nothing is cut",
            f"leave them out, or give max_length={max(row.longest for row in rows)}",
        )
    pairs = ((document.ids, document.supervised) for row in rows for document in row.documents)
    return make_documents(pairs, [len(row.documents) for row in rows])
