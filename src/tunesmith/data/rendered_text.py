"""Plain texts that hold a conversation which some template has rendered already.

Notebooks write a column ``text`` of ``<|im_start|>user ...``, since their trainers take nothing else. Here text is never a
control token, so such a row would teach the letters ``<|im_start|>``, the user's words with them, and no end of turn. The
way back is asked for (``convert --parse-template``) and whole or not at all: every letter of a text belongs to a turn or to
a mark of one known form, or the row is refused; only the white space around turns goes, as templates trim it themselves.

A prompt that some template has rendered (``<|im_start|>user ... <|im_start|>assistant``) and an answer that ends with its end
of turn are the same mistake in two columns, found where a mark begins or ends a turn: within a turn it is a word. The way
back joins the two. The forms are those that published data sets are written in, named by their marks, with Alpaca's (``###
Instruction:``) and Guanaco's (``### Human:``). Tool calls within a text are words of one model's template: such a row is
refused, not read. Reasoning within a turn is ``data/reasoning.py``'s.
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
    Form(
        "Human and Assistant",
        re.compile(r"\A\s*Human:.*\n\s*Assistant:", re.DOTALL),
        _framed(r"\s*(?P<role>Human|Assistant):(?P<words>(?:(?!\n\s*(?:Human|Assistant):).)*)"),
    ),
)
_START = r"(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>|\s)*"
_BEGINS = re.compile(
    rf"\A{_START}(?:<\|im_start\|>\w|<\|start_header_id\|>\w|<start_of_turn>\w|\[INST\]|<\|(?:system|user|assistant)\|>"
    r"|<｜(?:User|Assistant)｜>|### (?:Instruction|Human):)|\A\s*Human:.*\n\s*Assistant:\s*\Z",
    re.DOTALL,
)
_ASKS = re.compile(  # how a prompt ends whose template waits for the answer
    r"(?:<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model|\[/INST\]|<\|assistant\|>"
    r"|<｜Assistant｜>|^### (?:Response|Assistant):)\s*\Z",
    re.MULTILINE,
)
_ENDS = re.compile(
    r"\s*(?:</s>|<eos>|<\|im_end\|>|<\|eot_id\|>|<\|endoftext\|>|<\|end_of_text\|>|<end_of_turn>|<\|end\|>|<｜end▁of▁sentence｜>)+\s*\Z"
)
# By their first letter, because searching a batch for one letter that is not there costs next to nothing.
_TRACES = {
    b"<": (
        *(b"<|im_start|>", b"<|start_header_id|>", b"<start_of_turn>", b"<|user|>", b"<|assistant|>", "<｜".encode()),
        *(b"</s>", b"<eos>", b"<|im_end|>", b"<|eot_id|>", b"<|end", b"<end_of_turn>"),
    ),
    b"[": (b"[INST]",),
    b"#": (b"### ",),
    b"A": (b"Assistant:",),
}


def may_hold(texts: bytes) -> bool:
    """Whether a mark could stand anywhere in many texts joined."""
    return any(first in texts and any(trace in texts for trace in traces) for first, traces in _TRACES.items())


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


def in_turns(messages: Sequence[Message]) -> str | None:
    """The mark of a template with which a turn of a conversation begins or ends; None where all are words."""
    for message in messages:
        content = message["content"]
        if message["role"] == "user":
            match = _BEGINS.search(content) or _ASKS.search(content)
        elif message["role"] == "assistant":
            match = _end_of_turn(content) or _BEGINS.search(content)
        else:
            match = None
        if match is not None:
            return match[0].strip()[-40:]
    return None


def _end_of_turn(content: str) -> re.Match[str] | None:
    """The mark of the end of an answer; ``</s>`` also closes HTML, and harmony's channels are reasoning."""
    match = _ENDS.search(content)
    return None if match is None or "<s>" in content or "<|channel|>" in content else match


def parsed_turns(messages: list[Message]) -> tuple[list[Message], str] | None:
    """The conversation that the turns of a row hold, and what was read; None where they hold no marks.

    Args:
        messages: checked ones.

    Raises:
        RowError: as ``parsed``; or there are other turns than a question and its answer.
    """
    if in_turns(messages) is None:
        return None
    *before, asked, answer = messages if len(messages) > 1 else [*messages, *messages]
    marked = asked["content"] if _BEGINS.search(asked["content"]) or _ASKS.search(asked["content"]) else None
    if marked is None:
        ended: list[Message] = [
            {**turn, "content": _ENDS.sub("", turn["content"])} if turn["role"] == "assistant" else turn for turn in messages
        ]
        if in_turns(ended) is None:
            return ended, "answers without the mark of their end"
    if marked is None or [turn["role"] for turn in before] not in ([], ["system"]) or answer["role"] != "assistant":
        hint = "write its words as messages, without the template; or remove the row"
        raise RowError(
            "$.messages", "template-not-parsed", "marks of a template in turns that are not one prompt and answer", hint
        )
    turns, form = parsed(marked + answer["content"], "$.messages")
    if before and turns[0]["role"] == "system":
        raise RowError("$.messages", "two-systems", "a system turn beside a prompt that holds one", "keep one of the two")
    return [*before, *turns], f"texts in the form of {form}"


class RenderedTexts:
    """Collects rows that hold marks of a template; ``finding`` names them."""

    def __init__(self) -> None:
        self._rows = 0
        self._forms: dict[str, None] = {}
        self._chat = False
        self._examples: list[Example] = []

    def add(self, rows: Sequence[Row], first: int) -> None:
        """Look at rows in some of which a mark stands; ``first`` is the number of the first one."""
        for number, row in enumerate(rows, first):
            if row.kind == "text":
                form = form_of(row.messages[0]["content"])
                name = None if form is None else form.name
            else:
                name = in_turns(row.messages)
            if name is None:
                continue
            self._rows += 1
            if len(self._forms) < SHOWN:
                self._forms.setdefault(name)
            self._chat |= row.kind == "chat"
            if len(self._examples) < SHOWN:
                self._examples.append(Example(number, excerpt(row.messages[0]["content"])))

    def finding(self, of: int) -> list[Finding]:
        """The finding, where there is one."""
        if not self._rows:
            return []
        letters = "The template writes its own marks around these" if self._chat else "What was asked is trained too"
        hint = (
            f"As text the marks are letters. {letters}. Write them as messages again: tunesmith convert DATA rows.jsonl "
            "--parse-template"
        )
        what = "turns" if self._chat else "plain texts"
        text = f"{what} that hold a rendered template or marks of speakers ({', '.join(self._forms)})"
        return [Finding("rendered-template", "wrong", text, self._rows, of, hint, self._examples)]
