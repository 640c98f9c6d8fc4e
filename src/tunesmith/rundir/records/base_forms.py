"""``data/base.json``: what each module of the base is kept in, and why."""

from dataclasses import dataclass

from tunesmith.formatting import gb
from tunesmith.rundir.records.base import FileRecord, Json, Record


@dataclass(frozen=True, kw_only=True)
class BaseModule(Record):
    """One linear layer of the base.

    Attributes:
        module: its full name.
        form: ``nf4``, ``Q8_0`` or ``BF16``.
        weights: how many it has.
        bytes: that they take.
        kl: nats a supervised token that its rounding is expected to cost.
        nf4_kl: the same, had it stayed in NF4.
        measured: KL of the base with this module alone in 16 bits against the base in NF4; None where it was not measured.
    """

    module: str
    form: str
    weights: int
    bytes: int
    kl: float
    nf4_kl: float
    measured: float | None = None


@dataclass(frozen=True, kw_only=True)
class BaseForms(FileRecord):
    """The file.

    Attributes:
        budget: as the recipe says it.
        budget_bytes: that the whole base may take.
        nf4_bytes: that it takes with every linear layer in NF4.
        bytes: that it takes as chosen.
        rows, tokens: of the pass that scored the modules.
        rank_correlation: Spearman's, of foretold and measured KL over the modules that were measured; None of fewer than three.
        modules: in the model's order.
    """

    budget: str
    budget_bytes: int
    nf4_bytes: int
    bytes: int
    rows: int
    tokens: int
    rank_correlation: float | None
    modules: tuple[BaseModule, ...]

    @property
    def counts(self) -> Json:
        """How many layers are kept in each form."""
        return {form: sum(each.form == form for each in self.modules) for form in ("nf4", "Q8_0", "BF16")}

    @property
    def summary(self) -> Json:
        """For the manifest: the budget, the bytes, and how many layers are kept in each form."""
        return {"budget": self.budget, "nf4_bytes": self.nf4_bytes, "bytes": self.bytes, "layers": self.counts}

    @property
    def words(self) -> str:
        """Which forms how often, and what they gain."""
        kept = ", ".join(f"{count} in {form}" for form, count in self.counts.items() if count)
        before, after = sum(each.nf4_kl for each in self.modules), sum(each.kl for each in self.modules)
        more = self.bytes / self.nf4_bytes - 1.0
        return (
            f"{len(self.modules)} linear layers: {kept}; {gb(self.bytes)}, {more:+.1%} on top of NF4; expected KL to the "
            f"16-bit base {after:.2g} nats a token, {before:.2g} with all of them in searched NF4"
        )
