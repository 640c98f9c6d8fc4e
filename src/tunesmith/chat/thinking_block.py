"""The empty thinking block that a prompt ends with, and a row in training lacks.

Where thinking is switched off, many templates end a prompt with a thinking block that opens and closes at once, and leave
the block out of turns that were said. An answer is asked for behind that block, so it is put before every supervised
turn, as context. With one supervised turn the row is then, character for character, what deployment writes. With several
the earlier ones keep a block that a deployed history lacks, which the row's notes say.

Refused: to train on the answer without the block, as whoever renders the whole conversation does, because the model is
never asked so; and to refuse such rows, because with these templates it would be every row with tools.
"""

from typing import NamedTuple

Span = tuple[int, int]


class Turn(NamedTuple):
    """A supervised turn in what the template wrote.

    Attributes:
        start, end: its span.
        block: the empty thinking block that is put before it; mostly nothing.
    """

    start: int
    end: int
    block: str


def with_blocks(text: str, turns: list[Turn]) -> tuple[str, list[Span]]:
    """``text`` with the block of each turn before it, and the spans of the turns there."""
    parts, spans, cursor, shift = [], [], 0, 0
    for start, end, block in turns:
        if block:
            parts += (text[cursor:start], block)
            cursor, shift = start, shift + len(block)
        spans.append((start + shift, end + shift))
    return "".join([*parts, text[cursor:]]), spans


def block_notes(turns: list[Turn]) -> tuple[str, ...]:
    """What is to be said of a row in which a block stands that a deployed history would not have."""
    block = next((turn.block for turn in turns[:-1] if turn.block), "")
    if not block:
        return ()
    return (f"{block!r} stands before every supervised turn, as the chat template asks; it leaves it out of earlier turns",)
