"""Markdown code fences of an answer, as CommonMark reads them: three or more backticks or tildes, any info string.

Prompted models write JSON and programs into fences, in every spelling; a model that was tuned on bare answers does not. To
count the fence against an answer would flatter the tuned model, so metrics look inside. Laxer than CommonMark in three
things that models do: a fence may be indented, may close at the end of a line of its content, and may stand in one line with
its content. A fence that nothing closes reaches to the end, as an answer that was cut.

Source: CommonMark 0.31, section 4.5 (fenced code blocks).
"""

import re
from dataclasses import dataclass

_OPEN = re.compile(r"[ \t]*(`{3,}|~{3,})(?P<info>[^`\n]*)")
_ONE_LINE = re.compile(r"\s*(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[A-Za-z][\w+-]*(?=\s))?(?P<text>[^\n]+?)(?P=fence)\s*")
_LANGUAGE = re.compile(r"[{.\s]*([\w+#-]*)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """What stands in one fence.

    Attributes:
        language: first word of the info string in small letters; empty where there is none.
        text: its content.
    """

    language: str
    text: str


def blocks(answer: str) -> list[Block]:
    """The fenced blocks of an answer, in order."""
    if one := _ONE_LINE.fullmatch(answer):
        return [Block(language=(one["language"] or "").lower(), text=one["text"].strip())]
    result: list[Block] = []
    fence, language, lines = "", "", list[str]()
    for line in answer.splitlines():
        if not fence:
            if opening := _OPEN.fullmatch(line):
                fence, lines = opening[1], []
                language = _LANGUAGE.match(opening["info"])[1].lower()  # pyright: ignore[reportOptionalSubscript]
            continue
        content, closes = _until(line, fence)
        if content or not closes:
            lines.append(content)
        if closes:
            result.append(Block(language=language, text="\n".join(lines)))
            fence = ""
    return [*result, Block(language=language, text="\n".join(lines))] if fence else result


def _until(line: str, fence: str) -> tuple[str, bool]:
    """A line of a block without the fence at its end, and whether that fence closes the block."""
    text = line.rstrip()
    content = text.rstrip(fence[0])
    closes = len(text) - len(content) >= len(fence)
    return (content.rstrip() if closes else line), closes
