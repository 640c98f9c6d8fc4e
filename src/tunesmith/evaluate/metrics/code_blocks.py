"""What of an answer is the program: for the metric ``code``.

Prompted models write a program among explanations, with the command that installs a package, an example session, the output
it gives. A tuned model writes the program alone. What is counted against the first and not against the second flatters
tuning, so the program is taken out as a reader would:

- *In fences* (``fences.py``: any spelling): blocks that say Python, and those that name no language and are Python by their
  grammar and more than an expression. Blocks of another language (``bash``, ``text``, ``json``) are not the program.
- *A session* (``>>> add(2, 3)``) is an example beside a program, and the program itself where there is no other.
- *Without a fence*, an answer that is no Python as a whole is cut to what lies between its first line that begins like a
  program and the last line up to which it is one.

What then does not compile fails its tests. Refused: mending indentation or names; trying every range of lines, as evalplus
does, for a cost that is quadratic in the lines.

Source: Liu et al. 2023 (evalplus, ``sanitize``).
"""

import ast
import re
import textwrap
import warnings

from tunesmith.evaluate.metrics.fences import blocks

_PYTHON = frozenset(("python", "python2", "python3", "py", "py2", "py3", "ipython", "ipython3"))
_SESSION = frozenset(("pycon", "python-repl", "doctest"))
_PROMPT = re.compile(r"(?:>>>|\.\.\.)(?: |$)")
_BEGINS = re.compile(r"(?:async def|def|class|from|import|if __name__)\b|@\w|[A-Za-z_]\w*\s*(?::[^=]+)?=(?!=)")

_BEGINNINGS = 100  # of a program that are tried among words


def extract_code(answer: str) -> str:
    """The program of an answer; all of it where nothing in it can be told to be one."""
    fenced = blocks(answer)
    programs: list[str] = []
    sessions: list[str] = []
    others: list[str] = []
    for block in fenced:
        text = textwrap.dedent(block.text)
        if block.language in _SESSION or _PROMPT.match(text.lstrip()):
            sessions.append(_typed(text))
        elif block.language in _PYTHON:
            programs.append(_before_a_session(text))
        elif not block.language:
            (programs if _does_something(text) else others).append(_before_a_session(text))
    for kind in (programs, sessions, others):
        if kind:
            return "\n\n".join(kind)
    return _between_words(_outside(answer) if fenced else answer)


def _typed(session: str) -> str:
    """What was typed in a session, without prompts and output."""
    lines = session.splitlines()
    return "\n".join(_PROMPT.sub("", line, count=1) for line in lines if _PROMPT.match(line))


def _before_a_session(text: str) -> str:
    """A program without the session that follows it in its block; docstrings keep theirs."""
    before = text.partition("\n>>> ")[0]
    return text if before == text or not _wrong_line(text) else before


def _does_something(text: str) -> bool:
    """Whether a text is Python and more than expressions, as output of a program may be one."""
    return not _wrong_line(text) and any(not isinstance(line, ast.Expr) for line in _parsed(text).body)


def _outside(answer: str) -> str:
    """An answer without its fenced blocks."""
    for block in blocks(answer):
        answer = answer.replace(block.text, "")
    return re.sub(r"(?m)^[ \t]*(?:`{3,}|~{3,}).*$", "", answer)


def _between_words(answer: str) -> str:
    """The program in an answer without fences: from the first line that begins like one as far as it is Python."""
    if not _wrong_line(answer):
        return answer
    lines = answer.splitlines()
    for start in [place for place, line in enumerate(lines) if _BEGINS.match(line)][:_BEGINNINGS]:
        end = len(lines)
        while end > start:
            wrong = _wrong_line("\n".join(lines[start:end]))
            if not wrong:
                return "\n".join(lines[start:end])
            end = min(end - 1, start + wrong - 1)
    return answer


def _wrong_line(text: str) -> int:
    """The line, from 1, where a text stops to be Python; 0 where it is Python."""
    try:
        _parsed(text)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
    return 0


def _parsed(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in strings, which the program may have
        return ast.parse(text)
