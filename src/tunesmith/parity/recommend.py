"""Which type to deploy, of several that answered the dev rows: the smallest file that is non-inferior. A pure function."""

from collections.abc import Sequence

from tunesmith.rundir.records.parity import SweepType


def recommend(types: Sequence[SweepType]) -> tuple[str | None, str]:
    """Its name, or None, and why. What cannot be told is not taken."""
    good = [entry for entry in types if entry.state == "pass"]
    if good:
        return min(good, key=lambda entry: entry.bytes).type, "the smallest file that is non-inferior"
    worse = [entry.type for entry in types if entry.state == "fail"]
    others = f"surely worse: {', '.join(worse)}" if worse else "none is surely worse either"
    return None, f"no type is non-inferior on these dev rows, {others}; more dev rows would tell"
