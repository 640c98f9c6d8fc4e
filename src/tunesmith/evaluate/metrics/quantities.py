"""Quantities in a text: numbers with their units, dates, times of day, ratios and ranges; and which of them is the answer.

**What is read.** Signs, thousands of several countries (``1,234.5`` ``1.234.567,8`` ``1 234,5`` ``1'234.5`` ``1,00,000``),
decimals with point or comma, exponents and powers, fractions, hexadecimals, LaTeX, percent, magnitudes and units
(``units.py``), English numbers in words where they are the whole text. One comma before three digits parts thousands
(``1,234``), one point does not (``1.234``). What is none of these is no number: a version (1.2.3), a code (3f2a9), a sum that
was not worked out (12 + 5), a name (COVID-19).

**Which one is the answer.** The last: models reason first (the convention of GSM8K). Before that count the last ``\\boxed{}``
and what stands in the line of ``####``. Passed over are a remark in brackets with words in it (``9 (not 8)``, ``5 (see
page 12)``) and what a ``not``, ``instead of`` or ``rather than`` stands before (``9, not 8``). Where the answer
stands earlier in prose, nobody can say by rule: let the model end with it, which is what the metric's line in a prompt asks.

Sources: Cobbe et al. 2021 (GSM8K); Hendrycks et al. 2021 (MATH, boxed answers); ISO 8601; Unicode CLDR (number formats).
"""

import datetime
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from tunesmith.evaluate.metrics.characters import plain
from tunesmith.evaluate.metrics.number_words import number_in_words
from tunesmith.evaluate.metrics.units import Unit, magnitude_of, unit_of

Kind = Literal["number", "range", "ratio", "date", "day", "numeric date", "time", "moment"]
PERCENT, PER_MILLE = (Unit(dimension="percent", factor=factor) for factor in (Fraction(1), Fraction(1, 10)))


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What one place of a text says.

    Attributes:
        kind: what it is; a ``day`` is a date without its year, a ``numeric date`` one whose day and month nobody can tell
            apart (3/4/2024), a ``moment`` a date with its time.
        values: the number before its unit; ends of a range; parts of a ratio; days, seconds.
        unit: of a number or range; percent is one.
    """

    kind: Kind
    values: tuple[Fraction, ...]
    unit: Unit | None = None


@dataclass(frozen=True, kw_only=True)
class _Item:
    """A quantity in its place; without one it is something that only looks like a number, such as a sum."""

    start: int
    end: int
    quantity: Quantity | None


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?!(?-i:mar|may))(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_LETTER = "A-Za-z_\u00c0-\u024f\u0370-\u052f"  # of alphabets that put spaces around numbers
_ITEM = re.compile(
    rf"""(?<![0-9{_LETTER}])(?<![0-9{_LETTER}]\.)(?<!\d[,:'])(?:
    (?P<iso>\d{{4}}(?P<mark>[-/.])\d{{1,2}}(?P=mark)\d{{1,2}})(?![-/\d])(?:[T ](?P<its_clock>\d\d:\d\d(?::\d\d)?)Z?)?
    |(?P<slashes>\d{{1,2}}(?P<sign_between>[-/.])\d{{1,2}}(?P=sign_between)\d{{4}}|\d{{1,2}}/\d{{1,2}}/\d\d)(?![-/\d])
    |(?P<day_first>\d{{1,2}})(?:st|nd|rd|th)?(?:\ of)?[ -](?P<month>{_MONTH})\b\.?,?(?:[ -](?P<year>\d{{4}})\b)?
    |(?P<month_first>{_MONTH})\b\.?\ (?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\ (?P<its_year>\d{{4}})\b)?(?!:)
    |(?P<clock>\d{{1,2}}:[0-5]\d(?::[0-5]\d)?(?![\d:]))\ ?(?P<half>[ap]\.?m\b\.?)?
    |(?P<hour>\d{{1,2}})\ ?(?P<its_half>[ap]\.?m\b\.?)
    |(?P<ratio>\d+(?::\d+)+)(?!\.?\d)
    |(?P<number>
        (?P<sign>(?<![\w)\]}}%])[-+]|(?<![\d)%]\ )\b(?:minus|negative)\ )?
        (?P<money>(?:US)?[$€£¥₹₩]\ ?|(?:USD|EUR|GBP|JPY|CNY|INR|KRW|CHF)\ ?)?(?P<inner>[-+])?
        (?:(?P<radix>0x[0-9a-f]+|0b[01]+|0o[0-7]+)\b
        |(?P<mixed>\d{{1,18}}\ )?(?P<above>\d{{1,18}})\ ?/\ ?(?P<below>\d{{1,18}})(?![\d/]|[.,]\d)
        |(?P<grouped>[1-9]\d{{0,2}}(?:(?:,\d{{3}})+(?:\.\d+)?|(?:[ ]\d{{3}})+(?:[.,]\d+)?|(?:'\d{{3}})+(?:[.,]\d+)?
            |(?:\.\d{{3}}){{2,}}(?:,\d+)?|(?:\.\d{{3}})+,\d+)|\d{{1,2}}(?:,\d\d)+,\d{{3}}(?:\.\d+)?|\d+(?:_\d+)+(?:\.\d+)?)(?![\d_]|[.,']\d)
        |(?:\d+,){{2,}}(?P<last_of>\d+)(?![.,]?\d)
        |(?P<plain>\d+(?:[.,]\d+)?|\.\d+)(?![.,_]?\d))
        (?:e(?P<exponent>[-+]?\d{{1,4}})\b|\ ?[×x*·]\ ?10(?:\^|\*\*)(?P<tens>[-+]?\d{{1,4}})\b
            |(?:\^|\*\*)(?P<power>[-+]?\d{{1,4}})(?![\d.^]))?)
    |(?P<neither>\d+(?:[.,:/'_]\d+)*))""",
    re.VERBOSE | re.IGNORECASE,
)
_SUFFIX = re.compile(
    r"( ?)(%|‰|percent(?:age points?)?\b|per cent\b|pct\b|[万萬亿億千百만억元]|°(?:[CF]\b)?|[$€£¥₹₩¢]"
    r"|[A-Za-zµμ\u00c0-\u024f]+(?:/[a-z]+|\^[23])?)"
)
_PERCENT = frozenset(("%", "‰", "percent", "per cent", "pct", "percentage point", "percentage points"))
_INTO = re.compile(r" in [^\W\d_]")  # and no inches
_OPERATOR = re.compile(r"[)\]]*[ \t]*(?:([-+*/^×÷·x])|plus|minus|times)[ \t]*[(\[]*")
_PART_OF_A_NAME = re.compile(rf"(?:[{_LETTER}]-|(?<!\w)[A-Za-z][-+*/^×÷·]|(?<!\w)[a-z][ ][-+*/^×÷·][ ]?)$")
_DENIED = re.compile(r"(?:\bnot|\binstead of|\brather than|≠|!=)\s*(?:equal to |[$€£])?$", re.IGNORECASE)
_BRACKETS = re.compile(r"\(([^()]*)\)")
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}"), r" \1/\2"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?"), "°"),
    (re.compile(r"\^\{([-+]?\d+)\}"), r"^\1"),
    (re.compile(r"\{,\}|\\,(?=\d{3})|,\\!(?=\d{3})"), ","),
    (re.compile(r"\\(?:times|cdot)\b\s*"), "×"),
    (re.compile(r"\\(?:text|mathrm|mathbf)\s*\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\\[,;! ]|~"), " "),
    (re.compile(r"\$([^$\n]*)\$(?!\d)"), r"\1"),
    (re.compile(r"(?<!\w)\*\*(?=\S)|(?<=\S)\*\*(?!\w)"), ""),
    (re.compile(r"(?<!\w)(\d+)'[ ]?(\d+(?:\.\d+)?)\""), r"\1 ft \2 in"),
)
_MARKED = re.compile(r"####[ ]*(.+)")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")


def last_quantity(text: str) -> Quantity | None:
    """The quantity that a text gives as its answer, or None."""
    text = plain(text)
    boxed = _BOXED.findall(text)
    for part in (*boxed[-1:], *_MARKED.findall(text)[-1:], text):
        for pattern, instead in _LATEX:
            part = pattern.sub(instead, part)
        quantity = _last(part)
        if quantity is not None:
            return quantity
    return None


def _last(text: str) -> Quantity | None:
    items = [item for item in _joined(text) if item.quantity is not None]
    items = [item for item in items if not _DENIED.search(text, max(0, item.start - 30), item.start)]
    remarks = [bracket.span() for bracket in _BRACKETS.finditer(text) if _is_remark(bracket, items)]
    items = [item for item in items if not any(start < item.start < end for start, end in remarks)]
    if items:
        return items[-1].quantity
    number = number_in_words(text)
    return None if number is None else Quantity(kind="number", values=(Fraction(number),))


def _is_remark(bracket: re.Match[str], items: list[_Item]) -> bool:
    """Whether words in brackets explain a quantity that stands before them."""
    text, start, end = bracket.string, bracket.start(), bracket.end()
    if not any(item.end <= start for item in items):
        return False
    inside = [item for item in items if start < item.start < end]
    edges = [start, *(edge for item in inside for edge in (item.start, item.end)), end]
    around = "".join(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))
    return re.search(r"[^\W\d_]{2}", around) is not None


def _joined(text: str) -> list[_Item]:
    """Items, with feet and inches as one length, ``3-5`` as a range, and sums as nothing."""
    items: list[_Item] = []
    for item in _items(text):
        last = items[-1] if items else None
        if last is not None:
            gap = text[last.end : item.start]
            whole = _compound(last, item) if gap in ("", " ", ", ", " and ") else None
            operator = _OPERATOR.fullmatch(gap)
            if whole is not None:
                item = replace(item, start=last.start, quantity=whole)
                items.pop()
            elif operator is not None and _counts(last) and _counts(item):
                derived = text[: last.start].rstrip().endswith("=")
                between = _range(last, item) if operator[1] == "-" and not derived else None
                item = replace(item, start=last.start, quantity=between)
                items.pop()
        items.append(item)
    return items


def _counts(item: _Item) -> bool:
    return item.quantity is None or item.quantity.kind in ("number", "range")


def _compound(first: _Item, then: _Item) -> Quantity | None:
    a, b = first.quantity, then.quantity
    if a is None or b is None or a.unit is None or b.unit is None or a.unit.dimension in ("percent", "temperature"):
        return None
    if a.unit.dimension != b.unit.dimension or b.unit.factor >= a.unit.factor or b.values[0] < 0 or a.kind != b.kind:
        return None
    rest = b.values[0] * b.unit.factor / a.unit.factor
    return replace(a, values=(a.values[0] + (rest if a.values[0] >= 0 else -rest),))


def _range(first: _Item, then: _Item) -> Quantity | None:
    a, b = first.quantity, then.quantity
    if a is None or b is None or (a.kind, b.kind) != ("number", "number") or a.values[0] >= b.values[0]:
        return None
    if a.unit is not None and b.unit is not None and a.unit != b.unit:
        return None
    return Quantity(kind="range", values=(*a.values, *b.values), unit=a.unit or b.unit)


def _items(text: str) -> Iterator[_Item]:
    place = 0
    while match := _ITEM.search(text, place):
        place, quantity = match.end(), None
        if match["number"] is not None:
            place, quantity = _number(match)
            if _PART_OF_A_NAME.search(text, max(0, match.start() - 4), match.start()):
                quantity = None
        elif match["neither"] is None:
            quantity = _date(match) or _time(match)
        yield _Item(start=match.start(), end=place, quantity=quantity)


def _date(match: re.Match[str]) -> Quantity | None:
    if match["iso"]:
        year, month, day = (int(part) for part in re.split(r"\D", match["iso"]))
        return _day(year, month, day, match["its_clock"])
    if match["slashes"]:
        a, b, year = (int(part) for part in re.split(r"\D", match["slashes"]))
        year += (2000 if year < 69 else 1900) * (year < 100)  # POSIX
        if match["sign_between"] == "." or a > 12 or a == b:
            return _day(year, b, a)
        if b > 12:
            return _day(year, a, b)
        return Quantity(kind="numeric date", values=(Fraction(a), Fraction(b), Fraction(year)))
    name, day = (match["month"], match["day_first"]) if match["month"] else (match["month_first"], match["day"])
    if name is None:
        return None
    month, year = _MONTHS.index(name[:3].lower()) + 1, match["year"] or match["its_year"]
    if year is None:
        return Quantity(kind="day", values=(Fraction(month), Fraction(int(day))))
    return _day(int(year), month, int(day))


def _day(year: int, month: int, day: int, clock: str | None = None) -> Quantity | None:
    try:
        date = datetime.date(year, month, day)
    except ValueError:
        return None
    days = Fraction(date.toordinal())
    return Quantity(kind="moment", values=(days, _seconds(clock))) if clock else Quantity(kind="date", values=(days,))


def _time(match: re.Match[str]) -> Quantity | None:
    """A time of day, or a ratio: what has colons and cannot be a time."""
    clock, half = match["clock"] or match["hour"], match["half"] or match["its_half"]
    if match["ratio"] or (clock and not half and int(clock.partition(":")[0]) > 24):
        parts = [int(part) for part in (match["ratio"] or clock).split(":")]
        divisor = math.gcd(*parts) or 1
        return Quantity(kind="ratio", values=tuple(Fraction(part // divisor) for part in parts))
    if not clock:
        return None
    hour = int(clock.partition(":")[0])
    if half and not 1 <= hour <= 12:
        return None
    noon = 0 if not half else 12 * (half[0].lower() == "p") - 12 * (hour == 12)
    return Quantity(kind="time", values=(_seconds(clock) + 3600 * noon,))


def _seconds(clock: str) -> Fraction:
    parts = [int(part) for part in clock.split(":")]
    return Fraction(sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False)))


def _number(match: re.Match[str]) -> tuple[int, Quantity | None]:
    """Where a number ends with its unit, and what it is; None where letters and digits make it a code."""
    value = _value(match)
    unit = unit_of(match["money"].strip()) if match["money"] else None
    money, end = unit is not None, match.end()
    while suffix := _SUFFIX.match(match.string, end):
        attached, word = not suffix[1], suffix[2]
        magnitude = magnitude_of(word, attached, money)
        known = None if _INTO.match(match.string, suffix.start()) else unit_of(word)
        if word in _PERCENT:
            return suffix.end(), _quantity(value, PER_MILLE if word == "‰" else PERCENT)
        if magnitude is not None:
            value = None if value is None else value * magnitude
        elif known is not None and unit in (None, known):
            return suffix.end(), _quantity(value, known)
        elif attached and match.string[suffix.end() : suffix.end() + 1].isdigit():
            return suffix.end(), None
        elif not attached:
            break
        end = suffix.end()
        if magnitude is None:
            break
    return end, _quantity(value, unit)


def _quantity(value: Fraction | None, unit: Unit | None) -> Quantity | None:
    return None if value is None else Quantity(kind="number", values=(value,), unit=unit)


def _value(match: re.Match[str]) -> Fraction | None:
    """The number without its unit; None for a division by zero, and for powers beyond all use."""
    if match["radix"]:
        value = Fraction(int(match["radix"], 0))
    elif match["below"]:
        if int(match["below"]) == 0:
            return None
        value = Fraction(int(match["mixed"] or 0)) + Fraction(int(match["above"]), int(match["below"]))
    else:
        value = Fraction(Decimal(_with_a_point(match)))
    if match["exponent"] or match["tens"]:
        value *= Fraction(10) ** int(match["exponent"] or match["tens"])
    elif match["power"]:
        if value == 0 or len(match[0]) * abs(int(match["power"])) > 20_000:
            return None
        value **= int(match["power"])
    negative = [sign for sign in (match["sign"], match["inner"]) if sign and sign != "+"]
    return -value if len(negative) == 1 else value


def _with_a_point(match: re.Match[str]) -> str:
    """The digits of a number with a point before its decimals and nothing between thousands."""
    if not match["grouped"]:
        return (match["last_of"] or match["plain"]).replace(",", ".")
    digits = re.sub(r"[ '_]", "", match["grouped"])
    marks = [sign for sign in digits if sign in ".,"]
    has_decimals = marks and (digits != match["grouped"] or len(set(marks)) == 2)
    if has_decimals:
        whole, _, decimals = digits.rpartition(marks[-1])
        return re.sub(r"[.,]", "", whole) + "." + decimals
    return re.sub(r"[.,]", "", digits)
