"""One spelling for characters that a careful reader takes for the same: the floor of ``exact_match`` and ``numeric``.

Unicode's NFKC is the idea, and three of its changes are refused since they alter what is said: it writes ``10⁵`` as 105,
``x²`` as x2 and ``1½`` as 11/2. Here a superscript becomes a power (``10^5``), a subscript a digit unless it would join a
number (``H2O``, and ``log₂8`` as it is), a fraction stands apart (``1 1/2``). Digits of every script are the digits 0 to 9,
dashes up to the en dash and the minus U+2212 are ``-``, quotation marks ``'`` and ``"``. What has no shape (soft hyphen,
byte-order mark, marks of direction, joiners) goes, and so do spaces without a break between thousands.

Cost: ASCII passes untouched; else a table look-up a character.
Sources: Unicode Annexes 15 (NFKC) and 31 (default ignorables).
"""

import re
import unicodedata
from functools import lru_cache

HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff々"
KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
INDOCHINA = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
SPACELESS = HAN + KANA + INDOCHINA  # for a class of a regular expression: scripts that write no spaces between words

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_QUOTES = {**dict.fromkeys("‘’‚‛´ʼ", "'"), **dict.fromkeys("“”„‟", '"')}
_POWER = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_INDEX = re.compile(rf"(?<!\d)[{''.join(_SUBSCRIPTS)}]+(?!\d)", re.ASCII)
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:[\u00a0\u2007\u2009\u202f]\d{3})+)(?!\d)")


def plain(text: str) -> str:
    """A text in one spelling of its characters, in NFC."""
    if text.isascii():
        return text
    text = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[1]), text)
    text = "".join(map(_character, text))
    text = _POWER.sub(lambda match: "^" + "".join(_SUPERSCRIPTS[sign] for sign in match[0]), text)
    text = _INDEX.sub(lambda match: "".join(_SUBSCRIPTS[sign] for sign in match[0]), text)
    text = re.sub(r"(?<=\d)\u2044(?=\d)", "/", text)
    return unicodedata.normalize("NFC", re.sub(r" +(?=\d/)", " ", text))


@lru_cache(maxsize=4096)
def _character(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Cf" or "\ufe00" <= character <= "\ufe0f":
        return ""
    if character in _QUOTES:
        return _QUOTES[character]
    if (category == "Pd" and character not in "—―") or character == "\u2212":
        return "-"
    kind, _, codes = unicodedata.decomposition(character).partition("> ")
    if not kind.startswith("<") or kind in ("<super", "<sub"):
        return character
    inner = "".join(_character(chr(int(code, 16))) for code in codes.split())
    return f" {inner}" if kind == "<fraction" else inner
