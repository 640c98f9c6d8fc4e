"""What answers may be constrained to: a JSON schema, or a list of labels; as a grammar of llguidance, for any engine.

**A schema that cannot be enforced is refused before the first token.** llguidance names what it does not know (``not``, a
remote ``$ref``). llama.cpp's own check of it only writes to its log and then answers freely, so it is not relied upon. A
keyword that llguidance only warns about is refused too: it would be ignored.

White space between tokens of JSON is what llama.cpp's own grammars allow: one blank, or one or two line breaks and up to 20
characters of indentation. Unbounded white space lets a weak model fill its budget with nothing; none at all forces
a tuned model out of the layout that it learned. The copy of llguidance inside llama.cpp does not know this option: there
white space has no bound, and an untrained model may spend its budget on it.

Refused: Outlines and xgrammar, which cover 3 and 28 % of the hard schemas of JSONSchemaBench where llguidance covers 41, and
a converter of schemas to grammars of our own.

Source: llguidance 1.x (``LLMatcher``, ``JsonCompileOptions``); llama.cpp ``common/llguidance.cpp`` for the text form.
"""

import functools
import json
from typing import Any

from tunesmith.engines.engine import Constraint
from tunesmith.errors import MissingPackage, RecipeError

WHITESPACE = r"( |\n{1,2}[ \t]{0,20})?"
OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}


def as_text(allowed: Constraint) -> str:
    """The grammar of what is allowed as llama.cpp takes it in ``grammar``.

    Raises:
        RecipeError: it cannot be enforced whole: a schema's keyword that is not known, a reference that leads nowhere, a
            schema that nothing meets.
        MissingPackage: llguidance is not installed.
    """
    compiled(allowed)
    if isinstance(allowed, tuple):
        return f"%llguidance {{}}\n{_alternatives(allowed)}\n"
    return f"%llguidance {{}}\nstart: %json {json.dumps({**allowed, 'x-guidance': OPTIONS})}\n"


def check_constraint(allowed: Constraint) -> None:
    """Whether answers can be constrained to it at all, before a model is loaded.

    Raises:
        MissingPackage: the extra is not installed.
        RecipeError: it cannot be enforced.
    """
    compiled(allowed)


def fits(allowed: Constraint, text: str) -> bool:
    """Whether an answer is one that is allowed, to the last character; raises as ``check_constraint``."""
    if isinstance(allowed, tuple):
        return text in allowed
    import llguidance

    matcher = llguidance.LLMatcher(_of_bytes(), compiled(allowed))
    given = list(text.encode())
    return matcher.try_consume_tokens(given) == len(given) and matcher.is_accepting()


def compiled(allowed: Constraint) -> str:
    """The grammar as llguidance holds it.

    Raises:
        MissingPackage: the extra is not installed.
        RecipeError: it cannot be enforced.
    """
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "constrained decoding needs the package llguidance", "run: pip install 'tunesmith[constrained]'"
        ) from error
    if isinstance(allowed, tuple):
        grammar = llguidance.LLMatcher.grammar_from_lark(_alternatives(allowed))
    else:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(allowed, overrides=OPTIONS)  # type: ignore[arg-type]
    wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong or messages:
        raise RecipeError(
            f"{'the list of labels' if isinstance(allowed, tuple) else 'the JSON schema'} cannot be enforced token by token: "
            f"{messages[0].strip()}",
            "simplify the schema, or decode freely and let the metric check the answers",
        )
    return grammar


@functools.cache
def _of_bytes() -> Any:
    """A vocabulary whose tokens are the bytes."""
    import llguidance

    return llguidance.LLTokenizer("byte")


def _alternatives(labels: tuple[str, ...]) -> str:
    """Labels in the grammar language of llguidance, whose strings are those of JSON."""
    return "start: " + " | ".join(json.dumps(label, ensure_ascii=False) for label in labels)
