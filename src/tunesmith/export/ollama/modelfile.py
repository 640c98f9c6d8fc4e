r"""An Ollama Modelfile whose prompts are those that the model was trained with.

Ollama writes prompts with a Go template, not with the model's Jinja template, and a template that is nearly right is the first
reason why an exported model is worse than the trained one. So the Go template is not picked from a list: the Jinja template is
asked what it writes between the turns. Conversations of marked texts are rendered, and the text between two marks is what
stands between two roles; a conversation's end is its generation prompt. The Go template keeps the role of the turn before and
writes what was learnt for each pair. Texts that Jinja writes without the white space around them go through a recursive trim
in Go, which has none built in. Then both templates are run on a set of conversations (white space, empty texts, control
tokens, unicode, long ones), the Go one by ``export/ollama/go_template.py``: one difference, and nothing is written.

What Ollama does, and what follows:

- It puts the beginning-of-text token in front where the GGUF says so, even if the prompt has one. Where that is so, the
  template leaves it out; where the tokenizer puts one and training had none, the template is refused.
- It sends the SYSTEM text as the first turn unless the request has a system turn of its own.
- It reads a Modelfile rune by rune and drops what is not printable. Constants of the template escape it; a SYSTEM text or a
  stop that holds such a character, or three quotes in a row, is refused.
- Its default sampling (temperature 0.8, repeat penalty 1.1) is not what was measured, so the Modelfile says greedy.
- When a conversation outgrows num_ctx it drops the oldest turns, so that an answer may come first. A Jinja template that
  refuses this has that answer left out; any other order that Jinja refuses is refused with a message here too.
- A conversation that ends with an answer is continued: the generation prompt and what was given of the answer.

Refused: the published Modelfile of a family (it differs from the Jinja template in its defaults, its white space or its
thinking), and ``{{ .Response }}``, which a template over ``.Messages`` does not need.

Sources: docs.ollama.com (Modelfile, Template); Ollama ``parser/parser.go``, ``template/template.go``, ``server/prompt.go``
and the runner's ``inputs`` (``Tokenize(part, i == 0, true)``). Cost: some two hundred runs of the Jinja template, a second.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from transformers import PreTrainedTokenizerBase

from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.errors import ExportError
from tunesmith.export.ollama.go_template import constant, execute, values
from tunesmith.rundir import write_text

Turns = list[dict[str, str]]
START, SYSTEM, USER, ASSISTANT = "start", "system", "user", "assistant"
_LETTERS = {"s": SYSTEM, "u": USER, "a": ASSISTANT}
# Orders that a client sends; their texts must stand in this order, and always between the same strings.
_USUAL = ("u", "uau", "uauau", "su", "suau", "suauau")
# Orders that templates may refuse or take otherwise: an answer first, a system turn later on.
_ANSWER_FIRST = ("au", "auau", "sau")
_LATE_SYSTEM = ("usu", "uasu", "us", "uas")
_REFUSED = (jinja2.TemplateError, TypeError, LookupError, ValueError, AttributeError, ArithmeticError, RecursionError)
_HINT = "serve the GGUF with llama-server, which runs the Jinja template, or name another chat.template"
_MARK = re.compile(r"Qx\d+xQ")
_PAST_THE_END = 99999999  # index that makes Go's slice fail, with the sliced text in the message
# Python's str.strip by bytes: ASCII, then the characters of two and of three bytes in UTF-8.
_ASCII_SPACE = "9 10 11 12 13 28 29 30 31 32"
_SPACE = {
    2: "\u0085\u00a0",
    3: "\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
}
_TRIMMED = "trimmed"

Render = Callable[[Turns], str]


@dataclass(frozen=True)
class Layout:
    """What a chat template writes around plain texts.

    Attributes:
        before: (role of the turn before or ``start``, role) -> text between the two.
        end: role of the last turn -> the generation prompt after it.
        trimmed: roles whose texts lose the white space around them.
        system_last: text between the system text and the last user turn, where the system text stands there; else None.
        answer_refused: roles after which the template refuses an answer although a truncated conversation has one there.
        empty_system: an empty system text counts as none.
    """

    before: dict[tuple[str, str], str]
    end: dict[str, str]
    trimmed: frozenset[str]
    system_last: str | None
    answer_refused: tuple[str, ...]
    empty_system: bool


def write_modelfile(
    target: Path,
    gguf: str,
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    system: str | None,
    stops: Sequence[str],
    num_ctx: int,
    adapter: str | None = None,
) -> None:
    """Write a Modelfile, whole or not at all.

    Args:
        target: the Modelfile.
        gguf: the model's file, relative to the Modelfile's directory or absolute; of the base where there is an adapter.
            Where it is there already, it decides whether Ollama puts the beginning-of-text token, else the tokenizer.
        template: Jinja text that the model was trained with.
        system: system text that the model was trained with, the recipe's ``task.short_prompt``; None for none.
        stops: texts of the tokens that end an answer (``stop_texts``).
        num_ctx: tokens of context.
        adapter: GGUF of an adapter, applied to ``gguf``.

    Raises:
        ExportError: the template, the system text or a stop cannot be expressed; nothing is written.
    """
    if not stops:
        raise ExportError("no stop text, so that Ollama would never end an answer", "name a tokenizer with an end of turn")
    written = ollama_template(template, tokenizer, adds_bos(target.parent / gguf, tokenizer), system)
    lines = [
        "# Made by tunesmith. A request with a system turn of its own replaces SYSTEM; put SYSTEM's text in front of it.",
        f"FROM {quoted(gguf, 'the path of the GGUF')}",
        *([f"ADAPTER {quoted(adapter, 'the path of the adapter')}"] if adapter else []),
        f'TEMPLATE """{written}"""',
        *([f"SYSTEM {quoted(system, 'the system text')}"] if system else []),
        *(f"PARAMETER stop {quoted(stop, 'the stop')}" for stop in dict.fromkeys(stops)),
        f"PARAMETER num_ctx {num_ctx}",
        "# Greedy, as the model was measured.",
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
    ]
    write_text(target, "\n".join(lines) + "\n")


def stop_texts(tokenizer: PreTrainedTokenizerBase, stop_ids: Iterable[int]) -> list[str]:
    """The texts of the tokens that end an answer, without special treatment of any of them.

    Args:
        stop_ids: token ids, as ``export.companions.stop_ids`` or ``Renderer.stop_ids``.
    """
    return [str(tokenizer.decode([token], skip_special_tokens=False)) for token in stop_ids]


def quoted(text: str, what: str) -> str:
    """A value of a Modelfile.

    Raises:
        ExportError: three quotes in a row, which would end it, or a character that Ollama drops, with ``what`` in the message.
    """
    lost = next((c for c in text if not c.isprintable() and c not in "\t\r\n"), None)
    if lost is not None:
        raise ExportError(f"{what} holds U+{ord(lost):04X}, which Ollama's Modelfile reader drops: {text!r}", "remove it")
    if '"""' in text:
        raise ExportError(f"{what} holds three quotes in a row, which would end it in a Modelfile: {text!r}", "change it")
    return f'"""{text}"""'


def ollama_template(template: str, tokenizer: PreTrainedTokenizerBase, adds_bos: bool, system: str | None = None) -> str:
    """The Go template that writes what a Jinja template writes, held against it.

    Args:
        template: Jinja text.
        adds_bos: Ollama puts the beginning-of-text token in front by itself.
        system: the system text that will be sent, compared too.

    Raises:
        ExportError: it cannot be expressed: the reason, or the first conversation that differs, with both texts.
    """
    _refuse_dates(template, tokenizer)
    render = _renderer(template, tokenizer, adds_bos)
    if system:
        render([{"role": SYSTEM, "content": system}, {"role": USER, "content": "x"}])
    conversations = _conversations(template, tokenizer, render, system)
    written = go_source(learn(render, late_system=True))
    if _difference(written, render, [(order, turns) for order, turns in conversations if order in _LATE_SYSTEM]):
        written = go_source(learn(render, late_system=False))
    difference = _difference(written, render, conversations)
    if difference:
        raise _inexpressible(difference)
    return written


def _difference(written: str, render: Render, conversations: list[tuple[str, Turns]]) -> str:
    """The first conversation on which the Go template differs from Jinja, with both texts; empty if there is none."""
    accepted = {order: _accepts(render, order) for order in {order for order, _ in conversations}}
    for order, turns in conversations:
        if not accepted[order]:
            continue  # what Jinja refuses has no right text
        expected = render(turns)
        try:
            text = execute(written, values(turns))
        except ExportError as error:
            if order not in _USUAL:
                continue  # a refusal is no wrong text
            text = f"an error: {error.message}"
        if text != expected:
            order_text = ", ".join(f"{turn['role']} {turn['content'][:40]!r}" for turn in turns)
            texts = f"Jinja writes {_around(expected, text)}, the Go template {_around(text, expected)}"
            return f"on the conversation [{order_text}] {texts}"
    return ""


def _around(text: str, other: str) -> str:
    """A text, or of a long one the place where it begins to differ from the other."""
    start = next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    return repr(text) if len(text) <= 600 else f"...{text[max(0, start - 100) : start + 100]!r}..."


def learn(render: Render, late_system: bool) -> Layout:
    """What a template writes around plain texts, from what it writes around marks.

    Args:
        render: a conversation -> the prompt, raising ExportError where the template refuses it.
        late_system: learn what it does with a system turn later on; else such a turn is refused.

    Raises:
        ExportError: the order of the texts, or what stands between two roles, is not always the same.
    """
    before: dict[tuple[str, str], str] = {}
    end: dict[str, str] = {}
    has_system = _accepts(render, "su")
    system_last = None
    for order in _USUAL:
        if SYSTEM in _roles(order) and not has_system:
            continue
        roles, gaps, between = _seen(render, _roles(order))
        system_last = between if between is not None else system_last
        _note(before, end, roles, gaps)
    for order in (*_ANSWER_FIRST, *(_LATE_SYSTEM if late_system else ())):
        if not _accepts(render, order):
            continue
        try:
            tables = dict(before), dict(end)
            roles, gaps, between = _seen(render, _roles(order))
            if between == system_last or SYSTEM not in roles:
                _note(*tables, roles, gaps)
                before, end = tables
        except ExportError:
            continue  # where turns come in such an order, the Go template refuses them
    refused = tuple(role for role, order in ((START, "au"), (SYSTEM, "sau")) if not _accepts(render, order))
    trimmed = frozenset(role for role in (SYSTEM, USER, ASSISTANT) if (has_system or role != SYSTEM) and _trims(render, role))
    question = {"role": USER, "content": "x"}
    empty = has_system and render([{"role": SYSTEM, "content": ""}, question]) == render([question])
    return Layout(before, end, trimmed, system_last, refused, empty)


def _seen(render: Render, roles: list[str]) -> tuple[list[str], list[str], str | None]:
    """The roles, what stands before, between and after their texts, and where it is so, what follows a moved system text."""
    marks = [f"Qx{number}xQ" for number in range(len(roles))]
    text = render([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)])
    order, gaps = _MARK.findall(text), _MARK.split(text)
    if order == marks:
        return roles, gaps, None
    if roles[0] == SYSTEM and len(roles) > 2 and order == [*marks[1:-1], marks[0], marks[-1]]:
        return roles[1:], [*gaps[:-2], gaps[-1]], gaps[-2]
    raise _inexpressible(f"of the turns {', '.join(roles)} it writes the texts {', '.join(order) or 'not'}, in this order")


def _note(before: dict[tuple[str, str], str], end: dict[str, str], roles: list[str], gaps: list[str]) -> None:
    """Put what stands between roles into the tables; another text than before is refused."""
    for pair, gap in zip(zip([START, *roles], roles, strict=False), gaps[:-1], strict=True):
        if before.setdefault(pair, gap) != gap:
            raise _inexpressible(f"between {pair[0]} and {pair[1]} it writes {before[pair]!r} or {gap!r}, by the turns around")
    if end.setdefault(roles[-1], gaps[-1]) != gaps[-1]:
        raise _inexpressible(f"at the end it writes {end[roles[-1]]!r} or {gaps[-1]!r}, by the turns before")


def go_source(layout: Layout) -> str:
    """A Go template with this layout. Every text is a constant, so that white space between actions means nothing."""
    lines = [*_trim_source()] if layout.trimmed else []
    lines += [f"$prev := {constant(START)}", "range $i, $_ := .Messages", "$rest := len (slice $.Messages $i)"]
    if layout.system_last is not None:
        lines.insert(-2, f"$system := {constant(START)}")
    keyword = "if"
    if layout.answer_refused:
        lines.append(f"if and (eq .Role {constant(ASSISTANT)}) ({_is(layout.answer_refused)})")  # left out
        keyword = "else if"
    if layout.empty_system:
        lines.append(f"{keyword} and (eq .Role {constant(SYSTEM)}) ({_is([START])}) (not .Content)")
        keyword = "else if"
    for role in (SYSTEM, USER, ASSISTANT):
        lines.append(f"{keyword} eq .Role {constant(role)}")
        keyword = "else if"
        lines += _turn_source(layout, role)
    lines += ["else", _refusal("this chat template has no form for a turn of that role"), "end", "end"]
    end = {ASSISTANT: "", START: ""} | {role: text for role, text in layout.end.items() if role != ASSISTANT}
    lines += _choice(end, {START, SYSTEM, USER, ASSISTANT}, "this chat template refuses to end with a system turn")
    return "\n".join(f"{{{{- {line} }}}}" for line in lines)


def _turn_source(layout: Layout, role: str) -> list[str]:
    """What a turn writes: the text between the turn before and itself, then its own."""
    content = f'template "{_TRIMMED}" .Content' if role in layout.trimmed else ".Content"
    refused = f"this chat template refuses a turn of role {role} in this place"
    turn = [content, f"$prev = {constant(role)}"]
    if role == SYSTEM and layout.system_last is not None:
        # Its text is written later, from .System.
        return [f"if {_is([START])}", f"$system = {constant(SYSTEM)}", "else", _refusal(refused), "end"]
    gaps = {previous: gap for (previous, following), gap in layout.before.items() if following == role}
    possible = {START, SYSTEM, USER, ASSISTANT} - {role}
    written = _choice(gaps, possible, refused)
    if role == ASSISTANT:
        begun = {previous: layout.end.get(previous, gap) for previous, gap in gaps.items()}
        if begun != gaps:
            written = ["if eq $rest 1", *_choice(begun, possible, refused), "else", *written, "end"]
    if role == USER and layout.system_last is not None:
        system = f'template "{_TRIMMED}" $.System' if SYSTEM in layout.trimmed else "$.System"
        between = [constant(layout.system_last)] if layout.system_last else []
        turn = [f"if and (eq $system {constant(SYSTEM)}) (le $rest 2)", system, *between, "end", *turn]
    return [*written, *turn]


def _choice(texts: dict[str, str], possible: set[str], refused: str) -> list[str]:
    """Write the text that belongs to the role of the turn before; equal texts share a branch."""
    by_text: dict[str, list[str]] = {}
    for role, text in texts.items():
        by_text.setdefault(text, []).append(role)
    branches = [(_is(roles), [constant(text)] if text else []) for text, roles in by_text.items()]
    if not possible - texts.keys():
        branches = [*branches[:-1], ("", branches[-1][1])]
    else:
        branches.append(("", [_refusal(refused)]))
    lines = list[str]()
    for number, (test, body) in enumerate(branches):
        if len(branches) == 1:
            return body
        lines += [("else if " if number else "if ") + test if test else "else", *body]
    return [*lines, "end"]


def _is(roles: Sequence[str]) -> str:
    """A test of the role of the turn before."""
    return f"eq $prev {' '.join(constant(role) for role in roles)}"


def _refusal(message: str) -> str:
    """An action that fails in Go, with a message that Ollama passes on."""
    return f"slice {constant(message)} {_PAST_THE_END}"


def _trim_source() -> list[str]:
    """``str.strip`` of Python: take a character from the front, else one from the end, else write what is left."""
    lines, keyword = [f'define "{_TRIMMED}"'], "if"
    sides: list[tuple[str, str]] = [(f"(ge (len .) 1) (eq (index . 0) {_ASCII_SPACE})", "slice . 1")]
    for size, characters in _SPACE.items():
        texts = " ".join(constant(character) for character in characters)
        sides.append((f"(ge (len .) {size}) (eq (slice . 0 {size}) {texts})", f"slice . {size}"))
    sides.append((f"(ge (len .) 1) (eq (index . (len (slice . 1))) {_ASCII_SPACE})", "slice . 0 (len (slice . 1))"))
    for size, characters in _SPACE.items():
        texts = " ".join(constant(character) for character in characters)
        rest = f"(len (slice . {size}))"
        sides.append((f"(ge (len .) {size}) (eq (slice . {rest}) {texts})", f"slice . 0 {rest}"))
    for test, cut in sides:
        lines += [f"{keyword} and {test}", f'template "{_TRIMMED}" ({cut})']
        keyword = "else if"
    return [*lines, "else", ".", "end", "end"]


def _roles(order: str) -> list[str]:
    return [_LETTERS[letter] for letter in order]


def _accepts(render: Render, order: str) -> bool:
    try:
        render([{"role": role, "content": "x"} for role in _roles(order)])
    except ExportError:
        return False
    return True


def _trims(render: Render, role: str) -> bool:
    """Whether texts of a role lose the white space around them; what is lost otherwise shows when templates are compared."""
    written = " \n\tx\t\n "
    order = {SYSTEM: "su", USER: "u", ASSISTANT: "uau"}[role]
    turns = [{"role": other, "content": written if other == role else "y"} for other in _roles(order)]
    return written not in render(turns)


def _renderer(template: str, tokenizer: PreTrainedTokenizerBase, adds_bos: bool) -> Render:
    """The Jinja template as Ollama's has to write it: without the token that Ollama puts in front."""
    bos = tokenizer.bos_token if adds_bos else None

    def render(turns: Turns) -> str:
        text = _jinja(template, tokenizer, turns)
        if isinstance(bos, str):
            if not text.startswith(bos):
                raise ExportError(
                    f"Ollama puts {bos} in front of every prompt of this tokenizer, and the chat template does not", _HINT
                )
            return text.removeprefix(bos)
        return text

    return render


def _jinja(template: str, tokenizer: PreTrainedTokenizerBase, turns: Turns) -> str:
    try:
        text = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
    except _REFUSED as error:
        raise ExportError(f"the chat template refuses {[turn['role'] for turn in turns]}: {error}", _HINT) from error
    assert isinstance(text, str)
    return text


def _refuse_dates(template: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A prompt that holds the day it is written on has no constant form."""
    question = [{"role": USER, "content": "x"}]
    dated = "{%- macro strftime_now(format) -%}Qx0xQ{%- endmacro -%}" + template
    if "strftime_now" in template and _MARK.search(_jinja(dated, tokenizer, question)):
        raise _inexpressible("it writes the present date, which a Go template cannot")


def _inexpressible(reason: str) -> ExportError:
    return ExportError(f"the chat template cannot be written for Ollama: {reason}", _HINT)


def _conversations(
    template: str, tokenizer: PreTrainedTokenizerBase, render: Render, system: str | None
) -> list[tuple[str, Turns]]:
    """What the two templates are compared on: every usual and unusual order, with texts of all kinds."""
    special = " ".join(str(token) for token in tokenizer.all_special_tokens)
    kinds = [
        ("What is it?", "It is this.", system or "You answer."),
        ("", "", ""),
        (" \n edge\t\n", "\n\n a \n", "\n rules \n\n"),
        ("\u00a0\u3000中文 🙂 e\u0301\u2028", "\u2003naïve\u0085", "\ufeffÜber\u200b\x1f"),
        (f"a {special} b", special, f"{special}\n"),
        ("{{ .Content }} {{- end }}", "{% if x %}{{ messages }}{% endif %}", '"""\\n\\ {{"'),
        ("<tool_call> [INST] user\nassistant: <|im_end", "```json\n{}\n```", "## System\n\n<<SYS>>"),
        ("long " * 3000, "line\n" * 500, "rule " * 500),
    ]
    if "</think>" in template and not render([{"role": USER, "content": "x"}]).rstrip().endswith("</think>"):
        kinds.append(("Why?", "<think>\nBecause.\n</think>\n\nSo.", "Think."))  # the model writes its thoughts itself
    conversations = []
    for question, answer, rules in kinds:
        texts = {"u": (USER, question), "a": (ASSISTANT, answer), "s": (SYSTEM, rules)}
        for order in (*_USUAL, *_ANSWER_FIRST, *_LATE_SYSTEM):
            conversations.append((order, [{"role": texts[letter][0], "content": texts[letter][1]} for letter in order]))
    return conversations


def adds_bos(file: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether Ollama puts the beginning-of-text token: what the GGUF says, else what the tokenizer does."""
    if file.is_file():
        adds = GgufReader(file).value("tokenizer.ggml.add_bos_token")
        if adds is not None:
            return bool(adds)
    ids = tokenizer("a")["input_ids"]
    assert isinstance(ids, list)
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
