"""What a call of the tuned model saves, and when that has paid for the training: a part of ``verdict.json``."""

import math
from dataclasses import dataclass
from typing import Literal

from tunesmith.rundir.records.base import Record

Basis = Literal["tokens", "time"]


@dataclass(frozen=True, kw_only=True)
class Saving(Record):
    """The deployed form against the best prompt on the base model, in the same engine at the same quantisation.

    Attributes:
        way: how the prompt asks, for people.
        basis: whether a call costs its tokens (a price of tokens is given), or the time it takes.
        prompt_tokens, new_tokens, ms: means that a call saves; below zero where it takes more.
        calls_per_month: calls.
        a_call: money that a call saves.
        cached: whether the saved prompt tokens are priced as cached ones.
        output_priced: whether answer tokens have a price.
        hosting: money that a month of hosting costs more.
        a_month: money that a month saves, hosting taken off.
        hours: of the training.
        cost: money that they took.
        calls, days: until the saving has paid that; None where it never does.
        horizon: days within which it has to.
    """

    way: str
    basis: Basis
    prompt_tokens: float
    new_tokens: float
    ms: float
    calls_per_month: float
    a_call: float
    cached: bool
    output_priced: bool
    hosting: float
    a_month: float
    hours: float
    cost: float
    calls: float | None
    days: float | None
    horizon: float

    @property
    def pays_back(self) -> bool:
        """Whether the training is paid for within the horizon."""
        return self.days is not None and self.days <= self.horizon

    @property
    def even(self) -> str:
        """When it pays back, for people."""
        training = f"{self.cost:,.2f} of training ({self.hours:,.2f} h)"
        if self.calls is None or self.days is None:
            return f"never pays back {training}"
        time = f"{math.ceil(self.calls):,} calls, {self.days:,.1f} days ({self.horizon:,.0f} are allowed)"
        return f"pays back {training} after {time}"

    @property
    def line(self) -> str:
        """The arithmetic, for people."""
        priced = "the time that it takes"
        if self.basis == "tokens":
            priced = f"its tokens, saved prompt tokens as {'cached' if self.cached else 'uncached'} ones"
            priced += "" if self.output_priced else ", answer tokens without a price"
        hosting = f"after {self.hosting:,.2f} for hosting" if self.hosting else "hosting not counted"
        return (
            f"against {self.way} in the same engine and file type a call takes {_less(self.prompt_tokens, 'prompt tokens')}, "
            f"{_less(self.new_tokens, 'answer tokens')} and {_less(self.ms, 'ms')}; priced by {priced}, "
            f"{self.calls_per_month:,.0f} calls save {self.a_month:,.2f} a month, {hosting}: it {self.even}"
        )


def _less(saved: float, unit: str) -> str:
    return f"{abs(saved):,.0f} {'fewer' if saved >= 0.0 else 'more'} {unit}"
