"""Amounts of memory as people write them: ``16GB``, ``15.5 GiB``, ``900 MB``."""

import re

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]+)\s*")


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
    """Decimal gigabytes for people.

    >>> gb(7_242_000_000), gb(12_000_000)
    ('7.24 GB', '0.01 GB')
    """
    return f"{nbytes / 1e9:.2f} GB"
