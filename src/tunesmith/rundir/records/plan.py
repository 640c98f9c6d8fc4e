"""What ``tunesmith plan`` answers."""

from dataclasses import dataclass

from tunesmith.rundir.records.base import Record


@dataclass(frozen=True, kw_only=True)
class Place(Record):
    """Where a run must fit.

    Attributes:
        name: of the card, or of this machine.
        device: ``gpu`` or ``cpu``.
        budget_bytes: that the run may take.
        context_bytes: of the process beside what tensors are allocated from.
        context_measured: on the card, just now; else assumed.
        product_flops: a second, of large products; None where no rate is known.
        link_bytes: a second between host and card; None as well.
        rates_measured: on this machine, just now; else of the table of cards.
        dollars_per_hour: of renting the card; None where no price is known.
        price_source: whose price, and of which day.
    """

    name: str
    device: str
    budget_bytes: int
    context_bytes: int
    context_measured: bool
    product_flops: float | None
    link_bytes: float | None
    rates_measured: bool
    dollars_per_hour: float | None
    price_source: str


@dataclass(frozen=True, kw_only=True)
class Setting(Record):
    """One way to turn the dials.

    Attributes:
        plan: dials that are not as they are by default, by the recipe's names.
        needs_bytes: allocator and context together.
        seconds: of a micro-batch, predicted; None where no rate is known.
    """

    plan: dict[str, str | int | tuple[int, ...]]
    needs_bytes: int
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class DiskPlan(Record):
    """What a run has on the disk, before it is there.

    Attributes:
        cached: bytes by what they are, beside all runs: the base, the layers that are streamed.
        there: of these, what is on the disk already.
        cached_in: where they lie.
        cached_free: bytes that are free there.
        run: bytes by what they are, in the run directory, all of them at a time.
        run_in: where that lies.
        run_free: bytes that are free there.
        not_counted: what the sizes leave out, for people; empty for nothing.
    """

    cached: dict[str, int]
    there: tuple[str, ...]
    cached_in: str
    cached_free: int
    run: dict[str, int]
    run_in: str
    run_free: int
    not_counted: str = ""

    @property
    def run_bytes(self) -> int:
        """Of all files in the run directory."""
        return sum(self.run.values())

    @property
    def missing_bytes(self) -> int:
        """What is not there yet of the other files."""
        return sum(nbytes for name, nbytes in self.cached.items() if name not in self.there)


@dataclass(frozen=True, kw_only=True)
class PlanReport(Record):
    """The fastest plan that fits, or the smallest there is.

    Attributes:
        model: as it was named.
        tokens, supervised: of a micro-batch, and those of them that are trained on.
        base: what the frozen layers are kept in.
        fits: whether the plan fits the place.
        plan: dials that are turned, by the recipe's names; empty for none.
        rounds: the plan rounds what others keep (8-bit head, 8-bit moments), since no other fits.
        peak_bytes: the most that tensors take in a step.
        reserved_bytes: what the allocator takes for them.
        needs_bytes: that and the context.
        where: in which pass the peak lies.
        terms: bytes at the peak, by what they are, the largest first.
        seconds: of a micro-batch, predicted; None where no rate is known.
        tokens_per_second: the same turned round.
        dollars_per_million_tokens: of renting the card for a million tokens of training; None where no price is known.
        place: where it must fit.
        passed_over: faster settings that do not fit, the fastest first.
        disk: what a run has on the disk.
        extra_bytes: that a budget gives a base in NF4.
        spare_bytes: that the plan leaves over and ``base_budget: auto`` would give it; 0 for a base that is not in NF4.
    """

    model: str
    tokens: int
    supervised: int
    base: str
    fits: bool
    plan: dict[str, str | int | tuple[int, ...]]
    rounds: bool
    peak_bytes: int
    reserved_bytes: int
    needs_bytes: int
    where: str
    terms: dict[str, int]
    seconds: float | None
    tokens_per_second: float | None
    dollars_per_million_tokens: float | None
    place: Place
    passed_over: tuple[Setting, ...]
    disk: DiskPlan
    extra_bytes: int = 0
    spare_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class SizeRow(Record):
    """A model of the table of techniques.

    Attributes:
        size: ``8B``.
        like: the published model whose sizes it has.
        bytes_by_technique: tensors at the peak of a step.
        published_bytes: what others publish for QLoRA at 2,048 tokens.
        on_cards: by card, the predicted seconds of a micro-batch of the fastest plan; None where nothing fits.
    """

    size: str
    like: str
    bytes_by_technique: dict[str, int]
    published_bytes: int
    on_cards: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class TechniqueTable(Record):
    """Model size by technique.

    Attributes:
        tokens: of the one micro-batch that a step has.
        rows: the smallest model first.
    """

    tokens: int
    rows: tuple[SizeRow, ...]
