"""English numbers in words, where they are all of a text: "five", "minus twenty-one", "two hundred and five thousand".

Inside a sentence they are not read: "one" is seldom a number there, and the last number of an answer would change.
"""

import re

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def number_in_words(text: str) -> int | None:
    """The number that a whole text spells, or None."""
    words = re.sub(r"[-,.!\s*\"']+", " ", text.lower()).split()
    sign = -1 if words[:1] in (["minus"], ["negative"]) else 1
    words = words[1:] if sign < 0 else words
    if not words or words[0] == "and" or words[-1] == "and":
        return None
    total, part, last = 0, 0, 10**15  # each word must be smaller than the one before, or multiply what came before
    for word in words:
        if word in _ONES and last >= (20 if _ONES.index(word) < 10 else 100) and (word != "zero" or len(words) == 1):
            part, last = part + _ONES.index(word), 1
        elif word in _TENS and last >= 100:
            part, last = part + 20 + 10 * _TENS.index(word), 20
        elif word == "hundred" and 0 < part < 10:
            part, last = part * 100, 100
        elif word in _LARGE and part and (not total or total % (_LARGE[word] * 1000) == 0):
            total, part, last = total + part * _LARGE[word], 0, _LARGE[word]
        elif word != "and" or last < 100:
            return None
    return sign * (total + part)
