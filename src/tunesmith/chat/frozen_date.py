"""A chat template that writes today's date, made to write one date for good.

``strftime_now`` is a function that every engine gives to templates; it reads the clock. So a prompt of tomorrow is another
prompt than the one that was trained: rows rendered before and after midnight differ, and every later stage takes the run for
another one. llama.cpp passes two variables beside it, ``date_string`` and ``datetime``, to every template; transformers passes
neither, so a template with a default of its own writes that default here and today's date there.

Both are settled in the template's text, where every engine finds it: a first line shadows the function by a macro that knows
one moment, and sets the variables to undefined, so that the template's own default is what all of them write. The macro
replaces the directives that occur in the template's strings, one after another, by what they are on that day; formats that a
template puts together from parts work as well.

Refused: replacing the calls in the text (a template may keep the function or its format in a variable); passing another
function along, which each engine would have to be told; a variable set to the date (``is defined`` would choose the other
branch). Cost: the template is read once, by Jinja's lexer.

Source: ``_cached_compile_jinja_template`` in transformers 5.23; ``common_chat_extra_context`` in ``common/chat.cpp`` of
llama.cpp b10605.
"""

import re
from dataclasses import dataclass
from datetime import datetime

import jinja2

from tunesmith.errors import ModelError

CLOCK = "strftime_now"
PASSED = ("date_string", "datetime")  # variables that llama.cpp passes to every template
_DIRECTIVE = re.compile(r"%[-_0^#EO]?[A-Za-z]")


@dataclass(frozen=True)
class FrozenTemplate:
    """A template that no longer depends on the clock or on dates that an engine passes.

    Attributes:
        text: the Jinja text.
        date: the date that is written into it, ``2026-11-28``; None where the template asks for no clock and only its own
            default was fixed.
    """

    text: str
    date: str | None


def freeze_date(template: str, moment: datetime) -> FrozenTemplate | None:
    """The template as it writes on one day, whenever and wherever it runs; None where it has no date.

    Args:
        template: Jinja text.
        moment: what its clock shows for good.

    Raises:
        ModelError: the text is no Jinja, or a format of it cannot be frozen (a percent sign before a directive).
    """
    if CLOCK not in template and not any(name in template for name in PASSED):
        return None
    names, strings = _tokens(template)
    lines = [line for name in PASSED if name in names and (line := f"{{% set {name} = undefined %}}") not in template]
    if reads_clock := CLOCK in names:
        lines.append(_macro(strings, moment))
    if not lines:
        return None
    # Jinja drops the line break after a block, so nothing is written (trim_blocks, as every engine sets it).
    text = "".join(f"{line}\n" for line in lines) + template
    return FrozenTemplate(text, moment.date().isoformat() if reads_clock else None)


def _tokens(template: str) -> tuple[set[str], list[str]]:
    """Names that a template knows from outside or sets (no attributes, none of its macros), and its strings with quotes."""
    names: set[str] = set()
    macros: set[str] = set()
    strings: list[str] = []
    before = ""
    try:
        for _, kind, text in jinja2.Environment().lex(template):
            if kind == "whitespace":
                continue
            if kind == "name" and before != ".":
                (macros if before == "macro" else names).add(text)
            elif kind == "string":
                strings.append(text)
            before = text
    except jinja2.TemplateError as error:
        raise ModelError(f"the chat template is no Jinja: {error}", "name another chat.template") from error
    return names - macros, strings


def _macro(strings: list[str], moment: datetime) -> str:
    """The macro that takes the clock's place: a replacement for every directive in the strings.

    Raises:
        ModelError: replacing them one after another is not what ``strftime`` does with one of the strings.
    """
    directives = {directive: moment.strftime(directive) for text in strings for directive in _DIRECTIVE.findall(text)}
    for text in strings:
        replaced, stock = text, moment.strftime(text)
        for directive, value in directives.items():
            replaced = replaced.replace(directive, value)
        if replaced != stock and _DIRECTIVE.search(text):
            raise ModelError(
                f"the chat template writes a date as {text}, which cannot be frozen: {replaced} in the place of {stock}",
                "name another chat.template",
            )
    chain = "".join(f'|replace("{directive}", "{value}")' for directive, value in directives.items())
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{chain} }}}}{{% endmacro %}}"
