"""Exact match, on a ladder: equal to the byte, and equal after what two careful people would not call a difference.

The headline strips, folds case, removes sentence punctuation, articles before a word, and doubled white space, in that
order (the ladder of SQuAD and HELM); ``strict`` is equality to the byte, and is printed beside it. Three changes to
SQuAD's rules, each because the original calls a wrong answer right: signs that carry meaning stay (``C#`` is not ``C``,
``-5`` is not ``5``, ``3.5`` is not ``35``); an article goes only before another word (``vitamin A`` is not ``vitamin``);
a rung that would leave nothing is not taken (the class ``A`` is not ``The``). A comma between groups of three digits goes.

Sources: Rajpurkar et al. 2016 (SQuAD, evaluation script); HELM's ``quasi_exact_match``.
"""

import re
import unicodedata
from functools import lru_cache

from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.recipe import Task

_ARTICLE = re.compile(r"\b(?:a|an|the)\s+(?=\S)")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MEANING = frozenset("#%&*@/\\_")  # punctuation by Unicode's book, and yet what tells two answers apart


def exact_match(task: Task) -> Metric:
    """The metric; it has no keys."""
    return Metric(name="exact_match", score=match, tie_break="strict", binary=True)


def match(answer: str, reference: str) -> Score:
    """``score``: equal on the top of the ladder; ``strict``: equal to the byte."""
    return {"score": float(normalise(answer) == normalise(reference)), "strict": float(answer == reference)}


@lru_cache(maxsize=65536)
def normalise(text: str) -> str:
    """A text on the top of the ladder; never empty unless the text is blank."""
    text = " ".join(text.split()).casefold()
    for rung in (_without_punctuation, _without_articles):
        text = " ".join(rung(text).split()) or text
    return text


def _without_punctuation(text: str) -> str:
    text = _THOUSANDS.sub("", text)
    signs = []
    for index, sign in enumerate(text):
        category = unicodedata.category(sign)
        before, after = text[index - 1 : index], text[index + 1 : index + 2]
        if not category.startswith("P") or sign in _MEANING:
            signs.append(sign)
        elif category == "Pd":  # a minus before a number, else a hyphen between words
            signs.append(sign if after.isdigit() and not before.isalnum() else " ")
        elif sign in ".,:" and before.isdigit() and after.isdigit():
            signs.append(sign)
    return "".join(signs)


def _without_articles(text: str) -> str:
    return _ARTICLE.sub("", text)
