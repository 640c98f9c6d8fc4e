"""Exact match, on a ladder: equal to the byte, and equal after what two careful people would not call a difference.

``strict`` is equality to the byte. The headline ``score`` is equality after five rungs, each of which is left out where it
would leave nothing (the class ``A`` is not ``The``, ``!`` is not ``?``):

1. *Characters*: one spelling (``characters.py``), case folded, white space single. ``mW`` and ``MW`` are lost here, as in
   every benchmark that folds case: score units with ``numeric``.
2. *Markup*: Markdown's ``**bold**``, ```` `code` ````, bullets and headings, and quotation marks in pairs.
3. *Numbers*: thousands (``1,234`` ``1'234`` ``1_234``), a zero before the point, a plus sign, and the space in ``50 %``,
   ``5 km``, ``x = 1``; a currency goes before its number.
4. *Punctuation* at the edge of words, and hyphens between words. Inside a word, a number or an expression it stays:
   ``example.com``, ``.NET``, ``-.5``, ``5-3``, ``C++``, ``it's``, ``f(x)`` and ``2024-01-02`` are not what is left without it.
5. *Articles* of English: ``the`` before a word; ``a`` and ``an`` as the first word alone, where they are hardly ever a name
   (``type a cell``). Spaces between characters of scripts that write none.

SQuAD's script (and HELM's ``quasi_exact_match`` after it) deletes all punctuation and all articles, by which ``-.5`` is ``5``,
``C++`` is ``C`` and ``vitamin A`` is ``vitamin``: those are wrong answers called right, and refused. Articles of other
languages are inflected, and stay; so do accents and harakat.

Sources: Rajpurkar et al. 2016 (SQuAD, evaluation script); Liang et al. 2022 (HELM).
"""

import re
import unicodedata
from functools import lru_cache

from tunesmith.evaluate.metrics.characters import SPACELESS, plain
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.recipe import Task


def _digits(match: re.Match[str]) -> str:
    return re.sub(r"\D", "", match[0])


_MARKUP = (
    (re.compile(r"^(?:[*•]|#{1,6}) (?=\S)"), ""),
    (re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*]*[^\s*])\1(?![\w*])"), r"\2"),
    (re.compile(r"(?<![\w`])`([^`]+)`(?![\w`])"), r"\1"),
    (re.compile(r"(?<!\w)\"(?=\S)([^\"]*[^\s\"])\"(?!\w)"), r"\1"),
    (re.compile(r"(?<!\w)'(?=\S)((?:[^']|(?<=\w)'(?=\w))*[^\s'])'(?!\w)"), r"\1"),
    (re.compile(r"[—―]|(?<=\w)---?(?=\w)"), " - "),
)
_NUMBERS = (
    (re.compile(r"(?<![\w.,])[1-9]\d{0,2}([,'_])\d{3}(?:\1\d{3})*(?!\w|[,'.]\d{3}[,'.]|[,']\d)"), _digits),
    (re.compile(r"(?<![\w.,])\d{1,2}(?:,\d\d)+,\d{3}(?!\w|,\d)"), _digits),  # India
    (re.compile(r"(?<![\w.])\.(?=\d)"), "0."),
    (re.compile(r"(?<![\w)\]}%+])(?<![\w)\]}%+] )\+(?=\.?\d)"), ""),
    (re.compile(r"(?<=\d) (?=[%‰°])"), ""),
    (re.compile(r"(?<![\d.,])(\d[\d.,]*(?: \d{3})*) ?([$€£¥₹₩₽₺₫₪₴฿])(?! ?\d)"), r"\2\1"),
    (re.compile(r"(?<=[$€£¥₹₩₽₺₫₪₴฿]) (?=[-\d])"), ""),
    (re.compile(r"(?<![\w.,:'])(\d+(?:[.,]\d+)*)(?=[^\W\d_]+(?!\w))"), r"\1 "),
    (re.compile(r"(?<!\w\w)(?<=\w) - (?=\w(?!\w))|(?<=\d) - (?=\d)"), "-"),
    (re.compile(r"(?<=\S) ?([=<>+*/^×÷·≤≥≠≈&~|]) ?(?=\S)"), r"\1"),
)
_ABBREVIATION = re.compile(r"(?<![\w.])(?:[^\W\d_]\.){2,}(?!\w)")
_ELLIPSIS = re.compile(r"\.{2,}(?!\d)|(?<!\d)\.{2,}|…")
_ARTICLES = re.compile(r"^(?:(?:the (?=\S)|(?:a|an) (?=[^\W\d_]{2})))+|\bthe (?=\S)")
_MEANING = frozenset("#%&*@/\\_‰′″")  # punctuation by Unicode's book, and yet what tells two answers apart
_OPERATORS = frozenset("=<>+-*/^×÷·≤≥≠≈&~|")
_SEPARATORS = frozenset(",;،؛、")
_SPACES = re.compile(f"(?<=[{SPACELESS}]) | (?=[{SPACELESS}])")


def exact_match(task: Task) -> Metric:
    """The metric; it has no keys."""
    return Metric(name="exact_match", score=match, tie_break="strict", binary=True)


def match(answer: str, reference: str) -> Score:
    """``score``: equal on the top of the ladder; ``strict``: equal to the byte."""
    return {"score": float(normalise(answer) == normalise(reference)), "strict": float(answer == reference)}


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """A text on the top of the ladder; never empty unless the text is blank."""
    text = text.strip()
    for rung in (_characters, _markup, _numbers, _punctuation, _articles_and_spaces):
        text = " ".join(rung(text).split()) or text
    return text


def _characters(text: str) -> str:
    return unicodedata.normalize("NFC", plain(text).casefold())


def _markup(text: str) -> str:
    for pattern, instead in _MARKUP:
        text = pattern.sub(instead, text)
    return text


def _numbers(text: str) -> str:
    for pattern, instead in _NUMBERS:
        text = pattern.sub(instead, text)
    return text


def _punctuation(text: str) -> str:
    text = _ABBREVIATION.sub(lambda match: match[0].replace(".", ""), text)
    text = _ELLIPSIS.sub(" ", text)
    return "".join(sign if _stays(text, place) else " " for place, sign in enumerate(text))


def _stays(text: str, place: int) -> bool:
    """Whether a sign at its place says something: what stands directly before and behind it decides."""
    sign, before, after = text[place], text[place - 1 : place], text[place + 1 : place + 2]
    if not unicodedata.category(sign).startswith("P") or sign in _MEANING:
        return True
    inside = _word(before) and _word(after)
    match sign:
        case "-":
            return _dash_stays(text, place)
        case ".":  # example.com, 3.5, .NET
            return _word(after)
        case ",":
            return after.isdigit() and (before.isdigit() or not _word(before))
        case ":":
            return bool(before.strip() and after.strip())
        case "!":  # !x, a != b, 5!
            return _word(after) or after == "=" or before.isdigit()
        case "'" | '"':  # it's, 6'2"
            return inside or before.isdigit()
        case "(" | "[" | "{":  # f(x), 2*(3+4)
            return _word(before) or before in _OPERATORS
        case ")" | "]" | "}":
            return _word(after) or after in _OPERATORS
        case _:
            return inside and sign not in _SEPARATORS


def _dash_stays(text: str, place: int) -> bool:
    """Minus signs, ranges, dates, ``A-`` and ``-x`` stay; a hyphen beside a word of two letters is a space."""
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if not after.strip():
        return _word(before) or (place == 0 and text[2:3].isdigit())
    if not (_word(before) and _word(after)):
        return True
    left, right = text[max(0, place - 2) : place], text[place + 1 : place + 3]
    return not any(len(side) == 2 and all(_word(sign) and not sign.isdigit() for sign in side) for side in (left, right))


def _word(sign: str) -> bool:
    """Whether a character belongs to words and numbers: letters, marks (vowel signs of India too) and digits."""
    return sign != "" and unicodedata.category(sign)[0] in "LMN"


def _articles_and_spaces(text: str) -> str:
    return _SPACES.sub("", _ARTICLES.sub("", text))
