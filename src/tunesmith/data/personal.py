"""Secrets and personal data that a model would learn by heart and tell to anybody.

A tuned model repeats rare strings of its training data word for word, so a key or a telephone number in one row is a
leak, not noise. The search is by pattern and by checksum: API keys of the large vendors have fixed prefixes, bank and
card numbers carry check digits. A batch is first asked one question, by one regular expression in RE2 (linear time,
about 2.5 microseconds a kilobyte): could there be anything in this row? Python looks closely at those rows only.

What is not found: names, postal addresses, dates of birth, passwords and other words without a form; keys of vendors
that are not listed; national telephone numbers without a country code outside North America; numbers written in words or
broken over lines; anything encoded. A four-part version number reads like an IPv4 address, and one digit string in ten
passes a card's checksum by chance (hence the known prefixes and lengths). Addresses at reserved domains (``example.com``)
and private or documentation networks are no one's and are left out. Presidio-like named entity recognition was refused:
it costs milliseconds a row, a model download, and finds every Washington.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.messages import Message
from tunesmith.rundir.rows import Row

_SHOWN = 20  # rows listed for one kind

# Anything that one of the patterns below could begin with; read by RE2, so without look-around.
_PERHAPS = (
    r"sk-[A-Za-z0-9]|A[KS]IA[0-9A-Z]|gh[pousr]_[A-Za-z0-9]|github_pat_|xox[abeoprs]-|AIza|hf_[A-Za-z0-9]"
    r"|[sr]k_(?:live|test)_|PRIVATE KEY|eyJ[A-Za-z0-9]|[A-Za-z0-9._%+-]@[A-Za-z0-9-]"
    r"|\+[0-9][0-9 ().-]{6}|[0-9]{3}[-. )]{1,2}[0-9]{3}[-. ][0-9]{4}|[0-9]{3}-[0-9]{2}-[0-9]{4}"
    r"|[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4} ?[A-Z0-9]{4}|[0-9]{4}[ -]?[0-9]{4}[0-9 -]{5}|[0-9]{4}[ -]?[0-9]{6}"
    r"|[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"
)

# Length of an IBAN by country (ISO 13616 registry): without it a word after the number would be read into it.
_IBAN_REGISTRY = (
    "AD:24 AE:23 AL:28 AT:20 AZ:28 BA:20 BE:16 BG:22 BH:22 BR:29 BY:28 CH:21 CR:22 CY:28 CZ:24 DE:22 DK:18 DO:28 EE:20 "
    "EG:29 ES:24 FI:18 FO:18 FR:27 GB:22 GE:22 GI:23 GL:18 GR:27 GT:28 HR:21 HU:28 IE:22 IL:23 IQ:23 IS:26 IT:27 JO:30 "
    "KW:30 KZ:20 LB:28 LC:32 LI:21 LT:20 LU:20 LV:21 MC:27 MD:24 ME:22 MK:19 MR:27 MT:31 MU:30 NL:18 NO:15 PK:24 PL:28 "
    "PS:29 PT:25 QA:29 RO:24 RS:22 SA:24 SC:31 SE:24 SI:19 SK:24 SM:27 ST:25 SV:28 TL:23 TN:24 TR:26 UA:29 VA:22 VG:24 "
    "XK:20"
)
_IBAN_LENGTHS = {pair[:2]: int(pair[3:]) for pair in _IBAN_REGISTRY.split()}

_RESERVED_DOMAIN = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|org|net))?|invalid|test|localhost|local)$")


def _valid_email(text: str) -> str:
    return "" if _RESERVED_DOMAIN.search(text.rpartition("@")[2].lower()) else text


def _valid_phone(text: str) -> str:
    digits = sum(character.isdigit() for character in text)
    return text.rstrip(" .-(") if 10 <= digits <= 15 else ""


def _valid_iban(text: str) -> str:
    """The part of ``text`` that is an IBAN by length and ISO 7064 checksum, or nothing."""
    wanted = _IBAN_LENGTHS.get(text[:2], 0)
    letters = ""
    for end, character in enumerate(text, 1):
        letters += character.strip()
        if wanted and len(letters) == wanted:
            followed = end < len(text) and text[end].isalnum()
            number = int("".join(str(int(digit, 36)) for digit in letters[4:] + letters[:4]))
            return text[:end] if number % 97 == 1 and not followed else ""
    return ""


def _valid_card(text: str) -> str:
    """The part of ``text`` that is a card number, or nothing: a security code may have been read into it."""
    return next((number for number in (text, re.sub(r"[ -][0-9]{3}$", "", text)) if _is_card(number)), "")


def _is_card(text: str) -> bool:
    """Whether prefix and length are a card network's and the Luhn digit is right."""
    digits = re.sub(r"[ -]", "", text)
    prefix = int(digits[:4])
    known = {
        13: 4000 <= prefix < 5000,
        14: 3000 <= prefix < 3060 or 3600 <= prefix < 3700 or 3800 <= prefix < 4000,
        15: 3400 <= prefix < 3500 or 3700 <= prefix < 3800,
        16: 2221 <= prefix <= 2720
        or 3528 <= prefix <= 3589
        or 4000 <= prefix < 5600
        or prefix == 6011
        or 6440 <= prefix < 6600,
        19: 4000 <= prefix < 5000,
    }
    total = sum(int(digit) for digit in digits[-1::-2])
    total += sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return known.get(len(digits), False) and len(set(digits)) > 1 and total % 10 == 0


def _valid_ipv4(text: str) -> str:
    try:
        return text if ipaddress.IPv4Address(text).is_global else ""
    except ipaddress.AddressValueError:
        return ""


class Pattern(NamedTuple):
    """One kind of secret: its code, what it is called, its form, and the check that the form alone cannot do."""

    code: str
    name: str
    form: re.Pattern[str]
    valid: Callable[[str], str] | None = None


_KEY_START = r"(?<![A-Za-z0-9_-])"
PATTERNS = (
    Pattern("anthropic-key", "Anthropic API key", re.compile(_KEY_START + r"sk-ant-[A-Za-z0-9_-]{20,}")),
    Pattern(
        "openai-key",
        "OpenAI API key",
        re.compile(_KEY_START + r"sk-(?!ant-)(?:(?:proj|svcacct|admin)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9]{20,})"),
    ),
    Pattern("aws-key", "AWS access key id", re.compile(_KEY_START + r"A[KS]IA[0-9A-Z]{16}(?![0-9A-Za-z])")),
    Pattern(
        "github-token",
        "GitHub token",
        re.compile(_KEY_START + r"(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})"),
    ),
    Pattern("slack-token", "Slack token", re.compile(_KEY_START + r"xox[abeoprs]-[A-Za-z0-9-]{10,}")),
    Pattern("google-key", "Google API key", re.compile(_KEY_START + r"AIza[0-9A-Za-z_-]{35}(?![0-9A-Za-z_-])")),
    Pattern("hugging-face-token", "Hugging Face token", re.compile(_KEY_START + r"hf_[A-Za-z0-9]{30,}")),
    Pattern("stripe-key", "Stripe key", re.compile(_KEY_START + r"[sr]k_(?:live|test)_[0-9a-zA-Z]{16,}")),
    Pattern(
        "private-key",
        "private key (PEM)",
        re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]{0,40}-----|\Z)"),
    ),
    Pattern(
        "jwt",
        "JSON Web Token",
        re.compile(_KEY_START + r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    ),
    Pattern(
        "iban",
        "bank account (IBAN)",
        re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?"),
        _valid_iban,
    ),
    Pattern(
        "card",
        "payment card number",
        re.compile(
            r"(?<![0-9.-])[2-6][0-9]{3}[ -]?(?:[0-9]{4}[ -]?[0-9]{4}[ -]?[0-9]{1,4}(?:[ -]?[0-9]{3})?|[0-9]{6}[ -]?[0-9]{4,5})"
            r"(?![0-9]|[.-][0-9])"
        ),
        _valid_card,
    ),
    Pattern(
        "us-ssn",
        "US social security number",
        re.compile(r"(?<![0-9-])(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?![0-9-])"),
    ),
    Pattern(
        "email",
        "e-mail address",
        re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}"),
        _valid_email,
    ),
    Pattern(
        "phone",
        "telephone number",
        re.compile(
            r"(?<![0-9A-Za-z+.])(?:\+[1-9](?:[ .()-]{0,2}[0-9]){7,14}|(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[-.])"
            r"[2-9][0-9]{2}[-.][0-9]{4})(?![0-9]|[-.][0-9])"
        ),
        _valid_phone,
    ),
    Pattern(
        "ipv4",
        "public IPv4 address",
        re.compile(r"(?<![0-9.A-Za-z])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z]|\.[0-9])"),
        _valid_ipv4,
    ),
)
SECRETS = frozenset(pattern.code for pattern in PATTERNS[:10])  # credentials; the others are personal data


def _matches(text: str) -> Iterator[tuple[Pattern, int, int]]:
    """Every secret of ``text`` as (pattern, start, end), in the order of ``PATTERNS``."""
    for pattern in PATTERNS:
        for match in pattern.form.finditer(text):
            secret = pattern.valid(match[0]) if pattern.valid else match[0]
            if secret:
                yield pattern, match.start(), match.start() + len(secret)


def mask(secret: str) -> str:
    """What may be shown of a secret: its first 4 characters and its length."""
    return f"{secret[:4]}... ({len(secret)} characters)"


def masked(text: str) -> str:
    """``text`` with every secret replaced by its first 4 characters and ``***``."""
    parts, done = [], 0
    for start, end in sorted((start, end) for _, start, end in _matches(text)):
        if start >= done:
            parts += [text[done : start + 4], "***"]
        done = max(done, end)
    return "".join([*parts, text[done:]])


class Sightings(NamedTuple):
    """A kind of secret in the data.

    Attributes:
        rows: rows that hold at least one.
        matches: all of them.
        examples: the first rows, each (row number, role of the turn, the secret masked).
    """

    rows: int
    matches: int
    examples: list[tuple[int, str, str]]


class Personal:
    """Counts secrets over a stream of rows. ``by_code`` maps the code of a kind to what was seen of it."""

    def __init__(self) -> None:
        self.by_code: dict[str, Sightings] = {}

    def add(self, rows: Sequence[Row], texts: pa.Array, owners: np.ndarray, first: int) -> None:
        """Search one batch.

        Args:
            rows: the batch.
            texts: large_binary (what RE2 reads), all that the rows say.
            owners: int, for each of ``texts`` the position of its row in ``rows``.
            first: number of ``rows[0]`` in reading order.
        """
        perhaps = pc.call_function("match_substring_regex", [texts], pc.MatchSubstringOptions(_PERHAPS))
        for position in np.unique(owners[perhaps.to_numpy(zero_copy_only=False)]).tolist():
            self._look(rows[position], first + position)

    def _look(self, row: Row, number: int) -> None:
        seen: dict[str, list[tuple[str, str]]] = {}
        for message in row.messages:
            for text in texts_of(message):
                for pattern, start, end in _matches(text):
                    seen.setdefault(pattern.code, []).append((message["role"], mask(text[start:end])))
        for code, mentions in seen.items():
            rows, matches, examples = self.by_code.get(code, Sightings(0, 0, []))
            if len(examples) < _SHOWN:
                examples.append((number, *mentions[0]))
            self.by_code[code] = Sightings(rows + 1, matches + len(mentions), examples)


def texts_of(message: Message) -> list[str]:
    """Everything a turn says: its content, its reasoning, and the names and arguments of its tool calls."""
    texts = [message["content"]]
    if "reasoning_content" in message:
        texts.append(message["reasoning_content"])
    for call in message.get("tool_calls", ()):
        texts.append(call["function"]["name"])
        texts.extend(_strings(call["function"]["arguments"]))
    return texts


def _strings(value: Any) -> list[str]:
    """Keys and values of a parsed JSON value as strings; an explicit stack, since the nesting is the user's."""
    strings, waiting = [], [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            strings.extend(item)
            waiting.extend(reversed(item.values()))
        elif isinstance(item, list):
            waiting.extend(reversed(item))
        elif item is not None:
            strings.append(item if isinstance(item, str) else str(item))
    return strings
