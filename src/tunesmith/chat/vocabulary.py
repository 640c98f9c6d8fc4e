"""Control tokens, and the encoding of text that must never become one.

A control token is a token that steers: end of turn, a role header, ``<think>``, an image slot. Written in a user's
text, the same letters are only letters. Stock tokenization does not know the difference: whatever stands in a message,
``<|im_end|>`` becomes the token that ends a turn, and who writes a message can write the other turns too (forging).

Here control tokens come from the template alone. Text is encoded by a second tokenizer: the same model, normaliser and
pre-tokenizer, with the control tokens taken out of the list of added tokens. It cannot produce one, which is checked
for every control token when a vocabulary is made. ``encode_special_tokens`` of the library was refused: it leaves added
tokens that are not flagged special (``<think>``, ``<tool_call>``) as they are.

Two further duties. *Places*: a template may look for control tokens in a message (many split at ``</think>``), so
before it runs each of them is replaced by one private-use character, and put back before encoding. *Loss*: text that
does not survive encoding (a byte that the vocabulary lacks, a normaliser that rewrites) is refused by name.

Cost: making the second tokenizer takes 0.4 s for 49 k tokens, 4.5 s for 262 k, once a process; encoding costs what it did.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NotRequired, TypedDict, cast

from pydantic import JsonValue
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from tunesmith.checkpoints.tokenizer_class import TEXT_TOKENS
from tunesmith.errors import DataError, ModelError

PLACE = 0xF0000  # first of the characters that stand for control tokens; one plane of 65,534
MARK = 0x100000  # first of the characters that mark where a template puts a text (chat/layout.py)
BREAK = "\U0010fffd"  # the last mark: put inside a text that could become a control token together with its neighbour
_PRIVATE = re.compile(f"[{chr(PLACE)}-\U0010ffff]")
_ANCHOR = "\U000ffffd"  # a control token of the second tokenizer alone: what follows it is encoded as after any other
# Control tokens have one of these forms almost always, and neither form can hide the other. A vocabulary can hold
# thousands; one alternation of all of them, needed where a token has another form, is slow.
_COMMON = re.compile(r"<[^<>\[\]]*>|\[[^<>\[\]]*\]")
# HTML tags that some vocabularies have as single tokens; they steer nothing. A closed list: ``<think>`` and ``<mask>``
# look the same and steer.
_TAGS = (
    *("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote"),
    *("strong", "em", "b", "i", "u", "s", "sub", "sup", "code", "a", "html", "body", "img", "span", "bbox", "ul", "li"),
    *("div", "iframe", "footer"),
)
_HTML = frozenset(f"<{slash}{tag}>" for slash in ("", "/") for tag in _TAGS)
_REMEMBERED = 32  # characters up to which the ids of a text are remembered
# How the beginning of a text is encoded: at the very start, after a control token, or in the middle of text.
START, AFTER, MIDDLE = "start", "after", "middle"


class Vocabulary:
    """What a tokenizer does with text, and which of its tokens steer.

    Attributes:
        control: text of each control token -> id. Special added tokens, and the others except runs of white space
            (written as such or as U+2581), the HTML tags that the chat template does not write itself, and the tokens that
            the tokenizer's configuration lists as text.
        bracketed: whether every control token is something in angle or square brackets.

    Raises:
        ModelError: not a fast tokenizer, or a control token that plain text can produce.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str):
        if not tokenizer.is_fast:
            raise ModelError(f"{tokenizer.name_or_path}: no tokenizer.json", "convert the tokenizer to its fast form")
        stock = tokenizer.backend_tokenizer
        assert isinstance(stock, Tokenizer)
        self._stock = stock
        added = tokenizer.added_tokens_decoder
        words = frozenset(tokenizer.init_kwargs.get(TEXT_TOKENS, ()))
        self.control = {
            token.content: index
            for index, token in added.items()
            if token.special or (token.content not in words and _steers(token.content, template))
        }
        self.control_ids = frozenset(self.control.values())
        self._strips = {
            token.content: (token.lstrip, token.rstrip) for token in added.values() if token.content in self.control
        }
        self._place = {text: chr(PLACE + number) for number, text in enumerate(self.control)}
        self._control_of = {place: text for text, place in self._place.items()}
        self._find = _COMMON
        self.bracketed = all(_COMMON.fullmatch(text) for text in self.control)
        if not self.bracketed:
            self._find = re.compile("|".join(re.escape(text) for text in sorted(self.control, key=len, reverse=True)))
        plain = _plain_text(self._stock.to_str(), frozenset(self.control))
        self._after, self._middle = plain.after, plain.middle
        self._missing_bytes, self._unknown, self._metaspace = plain.missing_bytes, plain.unknown, plain.metaspace
        self._cache: dict[tuple[str, str], list[int]] = {}
        self._refuse_moved([text for text in (token.content for token in added.values()) if text not in self.control])
        self._refuse_forgeable()

    def hide_controls(self, text: str) -> str:
        """``text`` with each control token in it replaced by its private-use character.

        Raises:
            DataError: the text holds characters of the private-use planes 15 or 16, or half a surrogate pair.
        """
        if not text.isascii():
            try:
                raw = text.encode()
            except UnicodeEncodeError as error:
                half = text[error.start]
                message = f"the text holds {half!r}, half a surrogate pair, which is no character"
                raise DataError(message, "remove it") from None
            # Planes 12 to 16 begin with these bytes; searching all text for the characters takes ten times as long.
            if (b"\xf3" in raw or b"\xf4" in raw) and _PRIVATE.search(text):
                raise DataError(
                    "the text holds characters of the private-use planes 15 or 16, which are reserved for marks",
                    "no font and no vocabulary knows them; remove them",
                )
        return text if self.bracketed and "<" not in text and "[" not in text else self._find.sub(self._placed, text)

    def _placed(self, match: re.Match[str]) -> str:
        return self._place.get(match.group(), match.group())

    def restore_controls(self, text: str) -> str:
        """The opposite of ``hide_controls``."""
        return text if text.isascii() else _PRIVATE.sub(lambda match: self._control_of[match.group()], text)

    def split(self, text: str) -> list[tuple[str, int | None]]:
        """A template's text as (piece, id of the control token or None for plain text), in order, nothing lost."""
        pieces: list[tuple[str, int | None]] = []
        cursor = 0
        for match in self._find.finditer(text):
            index = self.control.get(match.group())
            if index is not None:
                if match.start() > cursor:
                    pieces.append((text[cursor : match.start()], None))
                pieces.append((match.group(), index))
                cursor = match.end()
        if cursor < len(text):
            pieces.append((text[cursor:], None))
        return pieces

    def tokens(self, text: str) -> list[str]:
        """The control tokens in a template's text, in order."""
        return [piece for piece, control in self.split(text) if control is not None]

    def split_controls(self, text: str) -> str:
        """``text`` with a mark at its end if that is how a control token begins, at its beginning if that is how one ends."""
        core = text.strip()
        heads, tails, longest = self._fragments
        lengths = range(1, min(len(core), longest) + 1)
        first = BREAK if any(core[:n] in tails for n in lengths) else ""
        last = BREAK if any(core[-n:] in heads for n in lengths) else ""
        if not (first or last):
            return text
        start = text.index(core)
        return f"{text[:start]}{first}{core}{last}{text[start + len(core) :]}"

    @cached_property
    def _fragments(self) -> tuple[frozenset[str], frozenset[str], int]:
        """Proper beginnings and ends of the control tokens, and the length of the longest."""
        heads = frozenset(text[:n] for text in self.control for n in range(1, len(text)))
        tails = frozenset(text[n:] for text in self.control for n in range(1, len(text)))
        return heads, tails, max(map(len, heads), default=0)

    def strips(self, control: list[str]) -> bool:
        """Whether one of these control tokens takes white space beside it with it."""
        return any(True in self._strips[text] for text in control)

    def stripped_by_neighbours(self, text: str, before: str | None, after: str | None) -> str:
        """``text`` without the white space that the control tokens around it take with them (their lstrip, rstrip)."""
        if before is not None and self._strips[before][1]:
            text = text.lstrip()
        if after is not None and self._strips[after][0]:
            text = text.rstrip()
        return text

    def encode(self, texts: list[tuple[str, str]]) -> list[list[int]]:
        """Token ids of plain texts, none of them a control token.

        Args:
            texts: (text, where it begins: ``START``, ``AFTER`` or ``MIDDLE``). Short ones are remembered: headers and
                line breaks come back in every row.

        Raises:
            ModelError: the tokenizer makes a control token of plain text.
        """
        encoded_texts = [self._cache.get(key) if len(key[0]) <= _REMEMBERED else None for key in texts]
        missing = [number for number, ids in enumerate(encoded_texts) if ids is None]
        for place, tokenizer, anchor in self._ways:
            numbers = [n for n in missing if self._prefix_free or texts[n][1] == place]
            encoded = tokenizer.encode_batch_fast([anchor + texts[n][0] for n in numbers], add_special_tokens=False)
            for number, encoding in zip(numbers, encoded, strict=True):
                ids = encoding.ids
                encoded_texts[number] = ids = ids[1:] if anchor else ids
                if len(texts[number][0]) <= _REMEMBERED and len(self._cache) < 4096:
                    self._cache[texts[number]] = ids
            if self._prefix_free:
                break
        every = [ids for ids in encoded_texts if ids is not None]
        if not all(map(self.control_ids.isdisjoint, every)):
            raise ModelError("plain text became a control token", "use the tokenizer as its authors published it")
        return every

    @cached_property
    def _ways(self) -> list[tuple[str, Tokenizer, str]]:
        return [(MIDDLE, self._middle, ""), (START, self._after, ""), (AFTER, self._after, _ANCHOR)]

    @cached_property
    def _prefix_free(self) -> bool:
        """Whether a text is encoded the same wherever it begins, as in every byte-level vocabulary."""
        encoded = [t.encode(anchor + "a b", add_special_tokens=False).ids for _, t, anchor in self._ways]
        return encoded[0] == encoded[1] == encoded[2][1:]

    def refuse_lost(self, text: str) -> None:
        """Refuse text that would not come back from its token ids.

        Raises:
            DataError: half a character (a surrogate, which a template may write), a byte without a token (byte-level
                vocabularies drop it in silence), a character that becomes the unknown token, or a normaliser that writes it
                differently.
        """
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{text[error.start]!r} is half a character, which no text may hold", "remove it from the row, or the template"
            ) from error
        if self._missing_bytes and len(raw.translate(None, self._missing_bytes)) < len(raw):
            letter = next(c for c in text if any(byte in self._missing_bytes for byte in c.encode()))
            raise DataError(f"the tokenizer cannot represent {letter!r}; it would be lost", "remove it from the row")
        if self._unknown is not None and self._unknown in self._middle.encode(text, add_special_tokens=False).ids:
            letter = next((c for c in text if self._unknown in self._middle.encode(c, add_special_tokens=False).ids), "")
            raise DataError(f"the tokenizer has no token for {letter!r}; it would be lost", "remove it from the row")
        if self._metaspace and "▁" in text:
            raise DataError("the tokenizer rewrites '▁' (U+2581) as ' '", "write the row as the tokenizer does")
        if self._normalizer is None or (text.isascii() and self._spares_ascii):
            return
        normal = self._normalizer.normalize_str(text)
        back = normal.replace("▁", " ") if " " not in normal else normal
        if back != text:
            place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
            form = "" if unicodedata.is_normalized("NFC", text) else " (the text is not in Unicode's NFC form)"
            raise DataError(
                f"the tokenizer rewrites {text[place : place + 2]!r} as {back[place : place + 2]!r}{form}",
                "write the row as the tokenizer does",
            )

    @cached_property
    def _normalizer(self) -> Any:
        return self._middle.normalizer

    @cached_property
    def _spares_ascii(self) -> bool:
        sample = "".join(map(chr, range(128))) + " a  b   c\r\n\r\n\n\n\t\td \n e  "
        return self._normalizer.normalize_str(sample).replace("▁", " ") == sample

    def _refuse_moved(self, ordinary: list[str]) -> None:
        for text in ordinary:
            if self._middle.token_to_id(text) != self._stock.token_to_id(text):
                raise ModelError(f"the added token {text!r} has no place in the model's vocabulary", "use another tokenizer")

    def _refuse_forgeable(self) -> None:
        for tokenizer in (self._middle, self._after):
            encoded = tokenizer.encode_batch_fast(list(self.control), add_special_tokens=False)
            for text, encoding in zip(self.control, encoded, strict=True):
                if not self.control_ids.isdisjoint(encoding.ids):
                    raise ModelError(
                        f"plain text {text!r} becomes a control token in this vocabulary, so turns could be forged",
                        "use the tokenizer as its authors published it",
                    )


class AddedToken(TypedDict):
    """An entry of ``added_tokens`` in a ``tokenizer.json``."""

    id: int
    content: str
    special: bool
    normalized: bool
    single_word: bool
    lstrip: bool
    rstrip: bool


class TokenModel(TypedDict):
    """The ``model`` of a ``tokenizer.json``, as far as it is looked at here; a unigram model has pairs for a vocabulary."""

    vocab: dict[str, int] | list[tuple[str, float]]
    byte_fallback: NotRequired[bool]
    unk_token: NotRequired[str | None]


Step = dict[str, JsonValue]  # a normaliser, pre-tokenizer or decoder: its ``type``, and what that type takes


class TokenizerFile(TypedDict):
    """A ``tokenizer.json``."""

    model: TokenModel
    added_tokens: list[AddedToken]
    normalizer: Step | None
    pre_tokenizer: Step | None
    decoder: Step | None
    post_processor: Step | None
    truncation: Step | None
    padding: Step | None


def _steers(text: str, template: str) -> bool:
    """Whether an added token that is not flagged special is a control token all the same.

    A run of line breaks is not, although every template writes line breaks.
    """
    return not text.replace("▁", " ").isspace() and (text in template or text not in _HTML)


@dataclass(frozen=True)
class _PlainText:
    """How a tokenizer encodes text that holds no control token.

    Attributes:
        after: the tokenizer at the start of a text, and behind an anchor after a control token.
        middle: the one in the middle of text.
        missing_bytes: those without a token.
        unknown: id that stands for what the vocabulary does not know.
        metaspace: whether a space is written as U+2581.
    """

    after: Tokenizer
    middle: Tokenizer
    missing_bytes: bytes
    unknown: int | None
    metaspace: bool


@lru_cache(maxsize=4)  # each stage of a run makes a renderer of one tokenizer
def _plain_text(tokenizer: str, control: frozenset[str]) -> _PlainText:
    """Of a ``tokenizer.json``, without its control tokens."""
    description: TokenizerFile = json.loads(tokenizer)
    prefix_free: TokenizerFile = {
        **description,
        "normalizer": _no_prefix(description["normalizer"]),
        "pre_tokenizer": _no_prefix(description["pre_tokenizer"]),
    }
    after = _without(description, control)
    return _PlainText(
        after=after,
        middle=after if prefix_free == description else _without(prefix_free, control),
        missing_bytes=_missing_bytes(description),
        unknown=_unknown_token(description),
        metaspace='"Metaspace"' in json.dumps(description["pre_tokenizer"]),
    )


def _without(description: TokenizerFile, control: frozenset[str]) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json`` that knows no control token.

    Ids of added tokens that are not in the model's vocabulary follow from their order in the list. Such control tokens
    stay in it under a private name, so that the others keep their ids.
    """
    vocabulary = description["model"]["vocab"]
    known = set(vocabulary) if isinstance(vocabulary, dict) else {entry[0] for entry in vocabulary}
    remaining: list[AddedToken] = []
    for token in description["added_tokens"]:
        if token["content"] not in control:
            remaining.append(token)
        elif token["content"] not in known:
            remaining.append({**token, "content": f"{_ANCHOR}{token['id']}"})
    last = max([len(known) - 1, *(token["id"] for token in description["added_tokens"])])
    anchor: AddedToken = {
        "id": last + 1,
        "content": _ANCHOR,
        "special": True,
        "normalized": False,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
    }
    remaining.append(anchor)
    plain_description = {**description, "added_tokens": remaining, "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(plain_description))


def _no_prefix(step: Step | None) -> Step | None:
    """A normaliser or pre-tokenizer that puts nothing in front of the text."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        steps = [changed for part in cast("list[Step]", step[key]) if (changed := _no_prefix(part)) is not None]
        return cast("Step", {**step, key: steps})
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {**step, "add_prefix_space": False} if "add_prefix_space" in step else step


def _missing_bytes(description: TokenizerFile) -> bytes:
    """Bytes that a byte-level vocabulary has no token for (some published ones lack a few)."""
    if "ByteLevel" not in json.dumps([description["pre_tokenizer"], description["decoder"]]):
        return b""
    # GPT-2's table: printable bytes are written as themselves, the others as letters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + n) for n, byte in enumerate(others)}}
    return bytes(byte for byte, letter in letters.items() if letter not in description["model"]["vocab"])


def _unknown_token(description: TokenizerFile) -> int | None:
    """Id that stands for what a vocabulary without byte fallback does not know."""
    model = description["model"]
    unknown, vocabulary = model.get("unk_token"), model["vocab"]
    if model.get("byte_fallback") or not unknown or not isinstance(vocabulary, dict):
        return None
    return vocabulary.get(unknown)
