"""Whether a chat template and a tokenizer belong together.

A template of another model still renders: ``<|im_start|>`` becomes six ordinary tokens, the loss falls, and the tuned
model answers in a dialect that no engine speaks. The renderer refuses what would corrupt a row (no end of turn, a doubled
beginning of text, tokens that plain text can forge); here the rest is looked at once, before a run, on conversations of a
few letters: one exchange, two, a system turn, reasoning, a tool call, as far as the template has them.

Text with a pipe in angle brackets is meant as a control token in every published template. ``<tools>`` or ``[INST]`` can be
meant as plain text, and is not judged.
"""

import contextlib
import re

from tunesmith.chat.render import Piece, Renderer
from tunesmith.errors import DataError, ModelError
from tunesmith.messages import Message, Tool, ToolCall, Tools

_ANOTHER = "the template belongs to another model: name another chat.template"
_MEANT = re.compile(r"<[|｜][^<>\s]*>|<[^<>\s]*[|｜]>")
_QUESTION: Message = {"role": "user", "content": "a"}
_ANSWER: Message = {"role": "assistant", "content": "b"}
_CALL: ToolCall = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}
_TOOL: Tool = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
}


def check_template(renderer: Renderer, vocab_size: int | None = None) -> list[str]:
    """Check that a template fits its tokenizer.

    Args:
        renderer: the tokenizer and the template.
        vocab_size: rows of the model's embedding, which every control token must have one of.

    Returns:
        What there is, a sentence each, for people.

    Raises:
        ModelError: a control token that is not exactly one id, or has no row in the embedding; a beginning-of-text token
            that does not stand once and first; a supervised turn that does not end with a stop token.
    """
    probes = _probes(renderer)
    probe_tokens = {piece.text for pieces in probes for piece in pieces if piece.control}
    for pieces in probes:
        for piece in pieces:
            match = None if piece.control else _MEANT.search(piece.text)
            if match:
                tokens = renderer.tokenizer.tokenize(match.group())
                message = (
                    f"the chat template writes {match.group()!r}, which is {len(tokens)} tokens of this tokenizer, not one"
                )
                add = f"or make it one, whose row is trained: chat.new_tokens: [{match.group()!r}]"
                raise ModelError(message, f"{_ANOTHER}; {add}")
    in_template = {text for text in renderer.vocabulary.control if text in renderer.template}
    _check_ids(renderer, probe_tokens | in_template, vocab_size)
    sentences = [f"the chat template has {len(probe_tokens | in_template)} control tokens, one id each"]
    if renderer.enable_thinking is not None:
        sentences.append(f"thinking is {'on' if renderer.enable_thinking else 'off'}")
    return [*sentences, _check_bos(renderer, probes), _check_end(renderer, probes[0])]


def _probes(renderer: Renderer) -> list[list[Piece]]:
    """Small conversations of every form that the template has; the first two are one exchange and two."""
    probes = [renderer.pieces([_QUESTION, _ANSWER]), renderer.pieces([_QUESTION, {**_ANSWER, "weight": 0}, _QUESTION, _ANSWER])]
    forms: list[tuple[list[Message], Tools]] = [
        ([{"role": "system", "content": "s"}, _QUESTION, _ANSWER], None),
        ([_QUESTION, {**_ANSWER, "reasoning_content": "r"}], None),
        ([_QUESTION, {"role": "assistant", "content": "", "tool_calls": [_CALL]}], [_TOOL]),
    ]
    for messages, tools in forms:
        # What the template has no form for is refused row by row; there is nothing to check in it.
        with contextlib.suppress(DataError):
            probes.append(renderer.pieces(messages, tools))
    return probes


def _check_ids(renderer: Renderer, texts: set[str], vocab_size: int | None) -> None:
    for text in sorted(texts):
        index = renderer.vocabulary.control[text]
        ids = renderer.tokenizer.encode(text, add_special_tokens=False)
        if ids != [index]:
            raise ModelError(f"the control token {text!r} has id {index}, and is encoded as {ids}", _ANOTHER)
        if vocab_size is not None and index >= vocab_size:
            message = f"the control token {text!r} has id {index}, and the model's embedding has {vocab_size} rows"
            raise ModelError(message, "use the tokenizer that was published with the model")


def _check_bos(renderer: Renderer, probes: list[list[Piece]]) -> str:
    text = renderer.tokenizer.bos_token
    if not isinstance(text, str):
        return "the tokenizer has no beginning-of-text token"
    bos = renderer.vocabulary.control[text]
    once, twice = ([index for piece in pieces for index in piece.ids] for pieces in probes[:2])
    if once.count(bos) < twice.count(bos):
        return f"{text} begins every turn"  # one token for both, where nothing begins the text
    if bos not in once:
        return f"no {text} is written"
    if once.index(bos) or once.count(bos) > 1:
        raise ModelError(f"{text} stands {once.count(bos)} times in a row, not once and first", _ANOTHER)
    return f"{text} once, first"


def _check_end(renderer: Renderer, pieces: list[Piece]) -> str:
    last = [piece for piece in pieces if piece.supervised][-1]
    if not last.control or last.ids[0] not in renderer.stop_ids:
        raise ModelError(f"a supervised turn ends with {last.text!r}, which is no stop token", _ANOTHER)
    return f"{last.text} ends a supervised turn, and is trained on"
