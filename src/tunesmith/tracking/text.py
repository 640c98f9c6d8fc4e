"""Other people's text, fit to be shown: what cannot be seen is written out."""

import re

# Joiners (U+200C, U+200D) stay: Persian, Indic scripts and emoji are wrong without them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """Other people's text for a terminal or a page: unseen characters and lone surrogates written as escapes."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
