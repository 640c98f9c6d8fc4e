"""Plain texts that hold a conversation which some template has rendered already.

Notebooks write a column ``text`` of ``<|im_start|>user ...``, since their trainers take nothing else. Here text is never a
control token, so such a row would teach the letters ``<|im_start|>``, the user's words with them, and no end of turn. The
way back is asked for (``convert --parse-template``) and whole or not at all: every letter of a text belongs to a turn or to
a mark of one known form, or the row is refused; only the white space around turns goes, as templates trim it themselves.

The forms are those that published data sets are written in, named by their marks, with Alpaca's (``### Instruction:``) and
Guanaco's (``### Human:``). Tool calls within a text are words of one model's template: such a row is refused, not read.
Reasoning within a turn is ``data/reasoning.py``'s.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.data.finding import SHOWN, Example, Finding, excerpt
from tunesmith.data.problems import RowError
from tunesmith.messages import Message
from tunesmith.rundir.rows import Row

_ROLES = {"human": "user", "model": "assistant", "prompter": "user", "bot": "assistant", "gpt": "assistant"}
_CALLS = re.compile(r"<tool_call>|</tools>|\[TOOL_CALLS\]|<\|python_tag\|>|\[AVAILABLE_TOOLS\]")
_AROUND = re.compile(
    r"\A\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>)*"
    r"|(?:</s>|<eos>|<\|endoftext\|>|<\|end_of_text\|>|<\|im_end\|>|<\|eot_id\|>|\s)+\Z"  # whatever eos was put there
)
_INST = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=</s>|<s>|\[INST\]|\Z)", re.DOTALL)
_SYS = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>(.*)", re.DOTALL)
_ALPACA = re.compile(
    r"(?P<system>.*?)### Instruction:(?P<instruction>.*?)(?:### Input:(?P<input>.*?))?### Response:(?P<response>.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Form:
    """How a template writes a conversation.

    Attributes:
        name: for people.
        mark: what stands in every text of it.
        read: the turns of a text as (role, words), None where it is not of this form.
    """

    name: str
    mark: re.Pattern[str]
    read: Callable[[str], list[tuple[str, str]] | None]


def _framed(turn: str) -> Callable[[str], list[tuple[str, str]] | None]:
    """A form whose turns follow one another, each matched by ``turn`` with the groups ``role`` and ``words``."""
    pattern = re.compile(turn + r"\s*", re.DOTALL)

    def read(text: str) -> list[tuple[str, str]] | None:
        turns, position = [], 0
        while position < len(text):
            match = pattern.match(text, position)
            if match is None or not match.end() > position:
                return None
            turns.append((match["role"], match["words"]))
            position = match.end()
        return turns

    return read


def _instructions(text: str) -> list[tuple[str, str]] | None:
    """``[INST] question [/INST] answer</s>``, the system text between ``<<SYS>>`` marks."""
    turns: list[tuple[str, str]] = []
    rest = text
    for match in _INST.finditer(text):
        rest = rest.replace(match[0], "", 1)
        asked = match[1]
        if not turns and (system := _SYS.fullmatch(asked)) is not None:
            turns.append(("system", system[1]))
            asked = system[2]
        turns += [("user", asked), ("assistant", match[2])]
    return turns if turns and not re.sub(r"</?s>", "", rest).strip() else None


def _alpaca(text: str) -> list[tuple[str, str]] | None:
    if any(text.count(mark) > 1 for mark in ("### Instruction:", "### Input:", "### Response:")):
        return None
    match = _ALPACA.fullmatch(text)
    if match is None:
        return None
    asked = "\n".join(part.strip() for part in (match["instruction"], match["input"] or "") if part.strip())
    system = [("system", match["system"])] if match["system"].strip() else []
    return [*system, ("user", asked), ("assistant", match["response"])]


_SPEAKERS = r"### (?P<role>Human|Assistant|System|User):(?P<words>(?:(?!### (?:Human|Assistant|System|User):).)*)"
FORMS = (
    Form(
        "ChatML",
        re.compile(r"<\|im_start\|>"),
        _framed(r"<\|im_start\|>(?P<role>\w+)(?:\n|\Z)(?P<words>(?:(?!<\|im_start\|>|<\|im_end\|>).)*)(?:<\|im_end\|>|\Z)"),
    ),
    Form(
        "<|start_header_id|>",
        re.compile(r"<\|start_header_id\|>"),
        _framed(
            r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>(?P<words>(?:(?!<\|start_header_id\|>|<\|eot_id\|>).)*)"
            r"(?:<\|eot_id\|>|\Z)"
        ),
    ),
    Form(
        "<start_of_turn>",
        re.compile(r"<start_of_turn>"),
        _framed(r"<start_of_turn>(?P<role>\w+)(?:\n|\Z)(?P<words>(?:(?!<start_of_turn>|<end_of_turn>).)*)(?:<end_of_turn>|\Z)"),
    ),
    Form("[INST]", re.compile(r"\[INST\]"), _instructions),
    Form(
        "<|user|>",
        re.compile(r"<\|(?:user|assistant)\|>"),
        _framed(
            r"<\|(?P<role>system|user|assistant)\|>(?P<words>(?:(?!<\|(?:system|user|assistant|end)\|>|</s>).)*)"
            r"(?:<\|end\|>|</s>|\Z|(?=<\|))"
        ),
    ),
    Form(
        "<｜User｜>",
        re.compile(r"<｜(?:User|Assistant)｜>"),
        _framed(
            r"<｜(?P<role>User|Assistant)｜>(?P<words>(?:(?!<｜(?:User|Assistant|end▁of▁sentence)｜>).)*)(?:<｜end▁of▁sentence｜>)?"
        ),
    ),
    Form("Alpaca", re.compile(r"^### (?:Instruction|Response):", re.MULTILINE), _alpaca),
    Form("Guanaco", re.compile(r"### (?:Human|Assistant):"), _framed(_SPEAKERS)),
)
_TRACES = (
    *(b"<|im_start|>", b"<|start_header_id|>", b"<start_of_turn>", b"[INST]", b"<|user|>", b"<|assistant|>", b"### "),
    "<｜".encode(),
)


def may_hold(texts: bytes) -> bool:
    """Whether a mark could stand anywhere in many texts joined."""
    return any(trace in texts for trace in _TRACES)


def form_of(text: str) -> Form | None:
    """The form whose marks stand in a text; None for ordinary words."""
    return next((form for form in FORMS if form.mark.search(text)), None)


def parsed(text: str, path: str = "$.text") -> tuple[list[Message], str]:
    """The conversation that a text holds, and the name of its form.

    Args:
        path: where the text stands.

    Raises:
        RowError: ``no-template`` where no known form fits, ``template-not-parsed`` where the text is not one of its form to
            the letter, or holds tool calls.
    """
    form = form_of(text)
    known = ", ".join(form.name for form in FORMS)
    if form is None:
        raise RowError(path, "no-template", f"no marks of a template in {text!r:.60}", f"known are {known}")
    if _CALLS.search(text):
        hint = "write its rows as messages with tools and tool_calls, from where the text was made"
        raise RowError(path, "template-not-parsed", f"the text holds tools or calls in the form of {form.name}", hint)
    turns = form.read(_AROUND.sub("", text))
    if turns is None:
        hint = "mend the row, or remove it; rows of several templates cannot be told apart"
        raise RowError(path, "template-not-parsed", f"not a whole conversation in the form of {form.name}", hint)
    named = [(_ROLES.get(role.lower(), role.lower()), words.strip()) for role, words in turns]
    return [
        {"role": role, "content": words} for role, words in named if words or role not in ("system", "assistant")
    ], form.name


class RenderedTexts:
    """Collects the plain texts that hold marks of a template; ``finding`` names them."""

    def __init__(self) -> None:
        self._rows = 0
        self._forms: dict[str, int] = {}
        self._examples: list[Example] = []

    def add(self, rows: Sequence[Row], first: int) -> None:
        """Look at rows in some of which a mark stands; ``first`` is the number of the first one."""
        for number, row in enumerate(rows, first):
            if row.kind != "text" or (form := form_of(row.messages[0]["content"])) is None:
                continue
            self._rows += 1
            self._forms[form.name] = self._forms.get(form.name, 0) + 1
            if len(self._examples) < SHOWN:
                self._examples.append(Example(number, excerpt(row.messages[0]["content"])))

    def finding(self, of: int) -> list[Finding]:
        """The finding, where there is one."""
        if not self._rows:
            return []
        hint = (
            "As plain texts the marks are letters, and what was asked is trained too. Write them as messages again: tunesmith "
            "convert DATA rows.jsonl --parse-template"
        )
        text = f"plain texts that hold a rendered template or marks of speakers ({', '.join(self._forms)})"
        return [Finding("rendered-template", "wrong", text, self._rows, of, hint, self._examples)]
