"""Numbers as people read them: shares and gains in points of 100, times, limits of length. One place, so that terminal, page
and log agree.

>>> percent(0.4123), points(0.0312), points_between(-0.01, 0.052)
('41.2', '+3.1', '-1.0 to +5.2')
"""

from collections.abc import Mapping


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
