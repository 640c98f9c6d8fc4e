"""Texts of rows and answers as a page shows them: laid out to be compared by eye, and no longer than a page bears."""

import json

LONGEST = 2000  # characters of a text on a page


def pretty(text: str) -> str:
    """JSON with a line a field, so that two answers can be compared by eye; other text as it is. Clipped."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return clipped(text)
    return clipped(json.dumps(value, indent=1, ensure_ascii=False) if isinstance(value, dict | list) else text)


def clipped(text: str) -> str:
    """The beginning of a text, with how much is left out."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [... and {len(text) - LONGEST:,} characters more]"
