"""Numbers as people read and write them: shares and gains in points of 100, times, limits of length, amounts of memory; and
what a message names of a list. One place, so that terminal, page and log agree.

>>> percent(0.4123), points(0.0312), points_between(-0.01, 0.052)
('41.2', '+3.1', '-1.0 to +5.2')
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
Item = TypeVar("Item")
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]+)\s*")


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 in points of 100; a dash where nothing was measured."""
    return "-" if share is None else f"{100.0 * share:.{digits}f}"


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours as well."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def points(gain: float) -> str:
    """A difference of two shares in points of 100, with its sign."""
    return f"{100.0 * gain:+.1f}"


def points_between(low: float, high: float) -> str:
    """An interval of differences in points of 100."""
    return f"{points(low)} to {points(high)}"


def limits(keep: Mapping[str, int]) -> str:
    """What each ``max_length`` keeps, from percentages of the rows to lengths."""
    return ", ".join(f"{length:,} keeps {share} %" for share, length in keep.items())


def parse_amount(text: str) -> int:
    """Bytes of an amount.

    Raises:
        ValueError: it is none, or nothing; the message says what one looks like.

    >>> parse_amount("16GB"), parse_amount("0.5 GiB")
    (16000000000, 536870912)
    """
    match = _AMOUNT.fullmatch(text)
    unit = None if match is None else UNITS.get(match[2].upper())
    if match is None or unit is None or float(match[1]) == 0.0:
        raise ValueError(f"expected an amount of memory like 16GB or 15.5GiB, found {text!r}")
    return int(float(match[1]) * unit)


def gb(nbytes: float) -> str:
    """Decimal gigabytes for people, or a smaller unit of what would be none.

    >>> gb(7_242_000_000), gb(12_000_000), gb(1_000)
    ('7.24 GB', '0.01 GB', '1.00 kB')
    """
    unit, size = next(((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6)) if nbytes >= size / 100), ("kB", 1e3))
    return f"{nbytes / size:.2f} {unit}"


def whole_characters(text: str) -> str:
    """A text that UTF-8 can write, with ``?`` for what is no character: names of files, and what messages quote of files that
    are no text, may hold single bytes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def repeated(items: Iterable[Item]) -> list[Item]:
    """What stands more than once among hashable items, in the order in which it first stands there; in time with their number.

    >>> repeated(["b", "a", "b", "c", "a"])
    ['b', 'a']
    """
    return [item for item, count in Counter(items).items() if count > 1]
