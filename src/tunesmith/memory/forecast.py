"""What a run is foretold to take, in one record, and what to say where it took something else.

A prediction that nobody looks at afterwards is worth little, so every training writes both down. The pack is the largest that
the run had: what is held against the measurement is the formula, not the guess of how rows would fall into packs.
"""

from tunesmith.memory.dials import Dials
from tunesmith.memory.estimate import estimate
from tunesmith.memory.room import CONTEXT, resident_bytes
from tunesmith.memory.shape import Shape
from tunesmith.rundir.records.memory import MeasuredMemory, PredictedMemory

TOLERANCE = {"allocated": 0.05, "resident": 0.25}  # of what was measured, beyond which a miss is told
NAMED = 3  # terms that a line names


def predict(shape: Shape, dials: Dials, ranks: int = 1) -> PredictedMemory:
    """The record of an estimate.

    Args:
        dials: of the run, with the tokens of its largest pack.
        ranks: processes on a CPU.
    """
    found, gpu = estimate(shape, dials), dials.device == "gpu"
    return PredictedMemory(
        tokens=dials.tokens,
        supervised=dials.rows,
        ranks=ranks,
        allocated=found.peak,
        where=found.where,
        terms=found.terms,
        reserved=found.reserved if gpu else None,
        context=CONTEXT if gpu else None,
        resident=None if gpu else resident_bytes(shape, dials, ranks),
    )


def miss(predicted: PredictedMemory, measured: MeasuredMemory) -> str | None:
    """A line where they are further apart than the formula claims to be right; None where they agree or one is not known.

    Which term is wrong cannot be told from a sum, so the largest ones are named.
    """
    name, foretold, found = _pair(predicted, measured)
    if not foretold or not found or abs(foretold / found - 1.0) <= TOLERANCE[name]:
        return None
    terms = ", ".join(f"{term} {nbytes / 1e9:.2f}" for term, nbytes in list(predicted.terms.items())[:NAMED])
    where = f"the {predicted.where} of {predicted.tokens:,} tokens"
    return (
        f"{words(predicted, measured)}, further off than {TOLERANCE[name]:.0%}; largest terms: {terms} of "
        f"{predicted.allocated / 1e9:.2f} GB of tensors, in {where}"
    )


def words(predicted: PredictedMemory, measured: MeasuredMemory) -> str:
    """Both in a line."""
    name, foretold, found = _pair(predicted, measured)
    if not foretold or not found:
        return "memory was not measured"
    return f"memory, {name}: {foretold / 1e9:.2f} GB foretold, {found / 1e9:.2f} measured ({foretold / found - 1.0:+.0%})"


def _pair(predicted: PredictedMemory, measured: MeasuredMemory) -> tuple[str, int | None, int | None]:
    if predicted.resident is None:
        return "allocated", predicted.allocated, measured.allocated
    return "resident", predicted.resident, measured.resident
