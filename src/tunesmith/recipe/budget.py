"""``base_budget``: how many bytes the frozen base may take beyond NF4, in the three ways of saying it."""

import re

from tunesmith.errors import RecipeError
from tunesmith.formatting import parse_amount

_SHARE = re.compile(r"\+\s*(\d+(?:\.\d+)?)\s*%")


def checked_budget(text: str) -> str:
    """The text, if it says a budget.

    Raises:
        ValueError: it says none.
    """
    if text != "auto" and _SHARE.fullmatch(text) is None:
        try:
            parse_amount(text)
        except ValueError as error:
            raise ValueError("expected auto, a share like +10% or an amount like 6.5GB") from error
    return text


def budget_bytes(text: str, nf4_bytes: int, spare: int) -> int:
    """Bytes that the whole base may take.

    Args:
        text: of the recipe.
        nf4_bytes: that it takes with everything in NF4 that may be.
        spare: that the plan leaves over, for ``auto``.
    """
    if text == "auto":
        return nf4_bytes + max(0, spare)
    share = _SHARE.fullmatch(text)
    return parse_amount(text) if share is None else int(nf4_bytes * (1.0 + float(share[1]) / 100.0))


def too_small(text: str, nf4_bytes: int) -> RecipeError:
    """What to say of a budget below what the base takes in NF4.

    Args:
        text: of the recipe.
        nf4_bytes: that the base takes with everything in NF4 that may be.
    """
    least = f"{nf4_bytes / 1e9 + 5e-4:.3f}GB"
    return RecipeError(
        f"base_budget: {text} is less than the {least} that this base takes with its linear layers in NF4",
        f"base_budget: {least} or more, or a share on top as +10%",
    )
