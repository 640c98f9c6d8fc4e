"""Which form each module gets under a budget of bytes: a multiple-choice knapsack.

Of every module one form is taken, and the sum of costs shall be least while the sum of bytes fits. By Lagrange's multiplier a
solution takes of each module only forms on the lower convex hull of (bytes, cost), and takes the steps along all hulls in the
order of what a byte gains (Kellerer, Pferschy and Pisinger 2004, section 11.2). Up to the first step that does not fit this is
the best there is for its bytes, so what follows differs from the optimum by no more than that step's gain. What is left is
filled greedily, with forms off the hull too.

The order is that of gain a byte, then of names, so every process and every machine takes the same.

Refused: an integer program (a solver to install, for a rest of less than one module in hundreds).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tunesmith.errors import ModelError


class Option(NamedTuple):
    """A form that a module may take.

    Attributes:
        form: its name.
        bytes: that the module then takes.
        cost: what its rounding costs; any unit, the same for all modules.
    """

    form: str
    bytes: int
    cost: float


def choose(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """One form for each module, of least cost within the budget but for a rest of one step.

    Args:
        options: by module; at least one each.
        budget: bytes of all modules together.

    Returns:
        The choice, in the order of ``options``.

    Raises:
        ModelError: the smallest forms of all take more than the budget.
    """
    hulls = {name: _hull(forms) for name, forms in options.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(option.bytes for option in chosen.values())
    if left < 0:
        raise ModelError(
            f"{budget:,} bytes are less than the {budget - left:,} that the smallest forms take", f"a budget of {budget - left}"
        )
    steps = [
        ((before.cost - after.cost) / (after.bytes - before.bytes), name, before, after)
        for name, hull in hulls.items()
        for before, after in itertools.pairwise(hull)
    ]
    for _, name, before, after in sorted(steps, key=lambda step: (-step[0], step[1], step[3].bytes)):
        if chosen[name] == before and after.bytes - before.bytes <= left:
            chosen[name], left = after, left - (after.bytes - before.bytes)
    return _filled(options, chosen, left)


def _hull(forms: Sequence[Option]) -> list[Option]:
    """The forms that are best for some price of a byte, smallest first: each costs less than the one before."""
    hull: list[Option] = []
    for option in sorted(forms, key=lambda each: (each.bytes, each.cost, each.form)):
        if hull and option.cost >= hull[-1].cost:
            continue
        while hull and (option.bytes == hull[-1].bytes or _is_above(hull, option)):
            hull.pop()
        hull.append(option)
    return hull


def _is_above(hull: list[Option], option: Option) -> bool:
    """Whether the last form lies on or above the line from the one before it to a further one."""
    if len(hull) < 2:
        return False
    first, last = hull[-2], hull[-1]
    return (first.cost - last.cost) * (option.bytes - first.bytes) <= (first.cost - option.cost) * (last.bytes - first.bytes)


def _filled(options: Mapping[str, Sequence[Option]], chosen: dict[str, Option], left: int) -> dict[str, Option]:
    """What is left of the bytes, given to whichever form of any module gains most for it, again and again."""
    while True:
        better = [
            (chosen[name].cost - option.cost, name, option)
            for name, forms in options.items()
            for option in forms
            if option.bytes - chosen[name].bytes <= left and option.cost < chosen[name].cost
        ]
        if not better:
            return chosen
        _, name, option = min(better, key=lambda each: (-each[0], each[1], each[2]))
        left -= option.bytes - chosen[name].bytes
        chosen[name] = option
