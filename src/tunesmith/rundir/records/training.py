"""What training writes: a line of ``metrics.jsonl`` a step, ``state.json`` a checkpoint, ``training.json`` a run.

The bytes of ``metrics.jsonl`` follow from what the run is trained on and with, and from nothing that differs from one machine's
day to another: how long a step took is in the events (``events.jsonl``), not in the table. So a directory that was trained with
one recipe, then another, then the first again ends with the first one's table to the byte.
"""

from dataclasses import dataclass

from tunesmith.notebook import loss_curve, paragraph
from tunesmith.rundir.records.base import FileRecord, Record
from tunesmith.rundir.records.memory import MeasuredMemory, PredictedMemory


@dataclass(frozen=True, kw_only=True)
class Step(Record):
    """One optimizer step, a line of ``metrics.jsonl``.

    Attributes:
        step: number of the step, from 1.
        epoch: from 0.
        loss: mean over the step's supervised tokens, nats.
        accuracy: share of them whose right token was the likeliest.
        learning_rate: of the step.
        grad_norm: length of the gradient before it was clipped.
        tokens: of the step's documents.
        computed_tokens: of the step's packs, where common beginnings are computed once.
        fp16_rescued_rows: rows that plain fp16 would have made infinite; None where nothing is computed in fp16.
        dev_loss: mean over the dev part after this step, nats a supervised token; None where it was not taken.
        seconds: that the step took, dev loss not counted; None in the table.
    """

    step: int
    epoch: int
    loss: float
    accuracy: float
    learning_rate: float
    grad_norm: float
    tokens: int
    computed_tokens: int
    fp16_rescued_rows: int | None = None
    dev_loss: float | None = None
    seconds: float | None = None

    def figures(self) -> dict[str, float]:
        """All that was measured, the time as well: what an event of the step says."""
        return {name: value for name, value in self.to_json().items() if isinstance(value, int | float)}

    def line(self) -> dict[str, float]:
        """The figures of the table: those that were measured, without the time."""
        return {name: value for name, value in self.figures().items() if name != "seconds"}


@dataclass(frozen=True, kw_only=True)
class DevLoss(Record):
    """A dev loss, taken between two steps.

    Attributes:
        step: steps done; 0 is the untouched adapter, which computes the base model.
        dev_loss: nats a supervised token.
        train_loss: mean train loss of the steps since the dev loss before; None at step 0.
    """

    step: int
    dev_loss: float
    train_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Spike(Record):
    """A loss that jumped and took the dev loss with it.

    Attributes:
        step: of the jump.
        loss: of that step.
        dev_loss: the next one.
        back_to: step of the checkpoint that training went on from.
        learning_rate: the highest, from there on.
    """

    step: int
    loss: float
    dev_loss: float
    back_to: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class RaceEntry(Record):
    """One rate of a race.

    Attributes:
        learning_rate: the highest, after the warm-up.
        dev_loss: after the steps of the race; None where something was not finite, which loses it.
    """

    learning_rate: float
    dev_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Race(Record):
    """Rates that were tried from the same start on the first steps of a training.

    Attributes:
        steps: of each.
        entries: lowest rate first.
        learning_rate: that won, and was trained at from the start: of the lowest dev loss, the lower rate among equals.
    """

    steps: int
    entries: tuple[RaceEntry, ...]
    learning_rate: float

    @property
    def words(self) -> str:
        """What was tried and what came of it, for people."""
        losses = ", ".join(
            f"{entry.learning_rate:g}: " + ("not finite" if entry.dev_loss is None else f"{entry.dev_loss:.4f}")
            for entry in self.entries
        )
        return f"race over {self.steps} steps, rate and dev loss: {losses}; trained at {self.learning_rate:g}"


@dataclass(frozen=True, kw_only=True)
class RaceState(FileRecord):
    """``checkpoints/race.json``: the rates of a race that are through, so a killed one goes on.

    Attributes:
        inputs: fingerprint of what is trained on and with, without a race.
        entries: in order.
    """

    inputs: str
    entries: tuple[RaceEntry, ...]


@dataclass(frozen=True, kw_only=True)
class GpuUse(Record):
    """The GPU of a training, and the most that it held.

    Attributes:
        name: of the product.
        driver: its version; None where the system does not say.
        capability: of the card, such as 9.0.
        total_bytes: of its memory.
        torch, cuda: versions of PyTorch and of the CUDA that it was built with.
        peak_allocated: bytes of tensors at most, loading included.
        peak_reserved: bytes that PyTorch had taken from the card at most.
    """

    name: str
    driver: str | None
    capability: str
    total_bytes: int
    torch: str
    cuda: str | None
    peak_allocated: int
    peak_reserved: int

    @property
    def words(self) -> str:
        """For people."""
        driver = "" if self.driver is None else f", driver {self.driver}"
        peak = f"{self.peak_allocated / 1e9:.1f} GB allocated and {self.peak_reserved / 1e9:.1f} reserved at most"
        return (
            f"{self.name} (capability {self.capability}{driver}, CUDA {self.cuda}, torch {self.torch}): "
            f"{peak}, of {self.total_bytes / 1e9:.1f}"
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointState(FileRecord):
    """``state.json`` of a checkpoint: where the run stands, and what proves the files beside it.

    Attributes:
        inputs: fingerprint of what the run trains on and with.
        step: optimizer steps done.
        dev_losses: all so far, oldest first; the last one is of this step.
        tokens: real tokens trained on so far, of all calls together.
        seconds: that their steps took.
        computed_on: devices, and numbers of threads and processes, that took part, in order.
        spikes: from which the run went back.
        sha256: of each other file of the checkpoint, by name.
    """

    inputs: str
    step: int
    dev_losses: tuple[DevLoss, ...]
    tokens: int
    seconds: float
    computed_on: tuple[str, ...]
    spikes: tuple[Spike, ...]
    sha256: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Training(FileRecord):
    """``training.json``: what training came to.

    Attributes:
        steps: optimizer steps of the whole run.
        fill: tokens over the capacity of all packs, 0..1.
        learning_rate, tokens_per_step, num_train_epochs: what it was trained with.
        derivation: a line for each of them: its value, and why.
        from_adapter: directory of the adapter that it went on from; None for a new one.
        trained_weights: numbers that are trained.
        target_layers: layers that have an adapter.
        race: of rates, before it; None where the recipe asks for none.
        replayed_rows: samples of the base model that were trained on beside the train rows.
        dev_losses: all, oldest first; the first is of step 0, the untouched adapter.
        best_step: the earliest step of the lowest dev loss; its adapter is in ``adapter/``.
        best_dev_loss: that loss, nats a supervised token.
        first_dev_loss: of step 0.
        only_worse: no step was better than the untouched adapter, which is what was kept.
        overfit: dev loss rose at the end while train loss fell.
        undertrained: dev loss was still falling at the end, at more than a fifth of its mean speed.
        tokens_per_second: real tokens over the time of training steps, dev losses not counted; None where no step was needed.
        computed_on: devices, and numbers of threads and processes, that took part; more than one where a run went on elsewhere.
        spikes: from which the run went back to its best checkpoint, at half the rate.
        recompute: what was computed a second time instead of kept.
        gpu: that it ran on; None for a CPU.
        predicted, measured: memory of the steps; None where sizes are not known, or no step was needed any more.
    """

    steps: int
    fill: float
    learning_rate: float
    tokens_per_step: int
    num_train_epochs: int
    derivation: tuple[str, ...]
    from_adapter: str | None = None
    trained_weights: int
    target_layers: int
    race: Race | None = None
    replayed_rows: int = 0
    dev_losses: tuple[DevLoss, ...]
    best_step: int
    best_dev_loss: float
    first_dev_loss: float
    only_worse: bool
    overfit: bool
    undertrained: bool
    tokens_per_second: float | None
    computed_on: tuple[str, ...]
    spikes: tuple[Spike, ...] = ()
    recompute: str | int | tuple[int, ...] = "none"
    gpu: GpuUse | None = None
    predicted: PredictedMemory | None = None
    measured: MeasuredMemory | None = None

    def _repr_html_(self) -> str:
        """What was kept, and the losses as a curve."""
        best = f"best dev loss {self.best_dev_loss:.4f} at step {self.best_step} of {self.steps}"
        notes = f"{self.first_dev_loss:.4f} before the first step"
        if self.from_adapter is not None:
            notes += f", that of the adapter {self.from_adapter}"
        if self.tokens_per_second is not None:
            notes += f"; {self.tokens_per_second:,.0f} tokens/s"
        if self.only_worse:
            notes += "; training only made it worse, so the untouched adapter was kept"
        elif self.overfit:
            notes += "; over-fitting: dev loss rose at the end while train loss fell"
        elif self.undertrained:
            notes += "; under-trained: dev loss was still falling at the end"
        if self.race is not None:
            notes += f"; {self.race.words}"
        for spike in self.spikes:
            notes += f"; spike at step {spike.step}: back to step {spike.back_to}, at rate {spike.learning_rate:.1e} from there"
        dev = [(entry.step, entry.dev_loss) for entry in self.dev_losses]
        train = [(entry.step, entry.train_loss) for entry in self.dev_losses if entry.train_loss is not None]
        notes += "".join(f"; {line}" for line in self.derivation)
        if self.gpu is not None:
            notes += f"; {self.gpu.words}"
        return paragraph(notes, best) + loss_curve(dev, train, self.best_step)
