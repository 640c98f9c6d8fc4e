"""An amount of memory as a key of a recipe, or of ``jobs.yaml``."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from tunesmith.formatting import parse_amount


def _digits(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


AmountText = Annotated[str, BeforeValidator(_digits)]  # what checks it then says which unit a bare number lacks


def checked_amount(text: str, *words: str) -> str:
    """The text, if it is an amount or one of some words.

    Raises:
        ValueError: it is none of them.
    """
    if text not in words:
        parse_amount(text)
    return text
