"""May the candidate take the place of a model that was tuned elsewhere? Non-inferiority by the margin of the recipe.

The question of somebody who leaves a hosted tuner: the old model is switched off, and this one need not be better than it. It
may replace it where it is certain that less than ``task.min_gain`` is lost (the low end of the interval of the difference lies
above minus that), it loses too much where for certain at least that much is lost, and else nobody knows. Source:
non-inferiority by a margin, CONSORT 2010 extension (Piaggio et al. 2012).
"""

from collections.abc import Sequence

from tunesmith.evaluate import rule
from tunesmith.formatting import percent, points_between
from tunesmith.rundir.records.evaluation import Comparison, Replacement, Terms


def replacement(name: str, score: float, comparison: Comparison, terms: Terms) -> Replacement:
    """The candidate against a model that it is to take the place of.

    Args:
        name: of the arm.
        score: of that model.
        comparison: of the candidate with it.
    """
    loses = rule.is_too_much_lost(comparison, terms)
    state = "may replace it" if rule.is_as_good(comparison, terms) else "loses too much" if loses else "not known"
    return Replacement(name=name, score=score, comparison=comparison, state=state)


def first_that(replaced: Sequence[Replacement], state: str) -> Replacement | None:
    """The first of which a state is found."""
    return next((each for each in replaced if each.state == state), None)


def replaces(replaced: Sequence[Replacement], terms: Terms) -> str:
    """Why it may replace them all."""
    names = " and ".join(each.name for each in replaced)
    return f"for certain less than {percent(terms.min_gain)} points behind {names}; that a prompt would not do is not shown"


def why_not(each: Replacement, terms: Terms) -> str:
    """Why it does not, or why nobody knows."""
    c = each.comparison
    between = points_between(c.low, c.high)
    if each.state == "loses too much":
        return f"but against {each.name}, which it is to replace, it loses {percent(-c.gain)} points ({between})"
    return f"but whether less than {percent(terms.min_gain)} points are lost against {each.name} is not certain ({between})"
