"""What a training was foretold to take of memory, and what it took."""

from dataclasses import dataclass, field

from tunesmith.rundir.records.base import Record


@dataclass(frozen=True, kw_only=True)
class PredictedMemory(Record):
    """Bytes by the formula of ``memory/estimate.py``, for the largest pack that the run had.

    Attributes:
        tokens, supervised: of that pack, and those of them that are trained on.
        ranks: processes.
        allocated: tensors at the peak of a step.
        where: in which pass the peak lies.
        terms: the same by what they are, the largest first.
        reserved: what the allocator takes from a GPU for them; None on a CPU.
        context: that a process was taken to have on a GPU beside them; None on a CPU.
        resident: memory of all processes together; None on a GPU.
    """

    tokens: int
    supervised: int
    ranks: int = 1
    allocated: int
    where: str
    terms: dict[str, int] = field(default_factory=dict[str, int])
    reserved: int | None = None
    context: int | None = None
    resident: int | None = None


@dataclass(frozen=True, kw_only=True)
class MeasuredMemory(Record):
    """Bytes at most while the steps of a training ran.

    Attributes:
        allocated, reserved: tensors on a GPU, and what the allocator had taken for them; None on a CPU.
        context: that the card lacked beside them, other programs on it included; None on a CPU.
        resident: of all training processes on a CPU, what they share counted once; None on a GPU.
    """

    allocated: int | None = None
    reserved: int | None = None
    context: int | None = None
    resident: int | None = None
