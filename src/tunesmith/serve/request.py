"""A chat request and a text completion, read whole: what the engine is asked, and what the answer is made of.

Chat is rendered by the renderer of the training and goes on as token ids, so what was trained is what is asked, and no text of
a user becomes a control token. A request that has no system turn gets the one that the model was trained and measured with.

A text completion is text that nobody renders. Text is encoded without control tokens there too; whoever wants one sends ids.
"""

from dataclasses import dataclass

from pydantic import JsonValue

from tunesmith.chat.render import with_system
from tunesmith.chat.vocabulary import AFTER, START
from tunesmith.data.conversation import SYSTEM
from tunesmith.errors import DataError, ModelError
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.asking import Ask, Served
from tunesmith.serve.chat_reply import ChatReply
from tunesmith.serve.fields import Fields, unsupported_value, wrong_type, wrong_value
from tunesmith.serve.generation import Generation, budget, read_generation, too_long
from tunesmith.serve.habits import habits_of
from tunesmith.serve.reply import Reply
from tunesmith.serve.request_messages import read_messages
from tunesmith.serve.request_tools import read_format, read_tools
from tunesmith.serve.text_reply import TextReply

TOP_CHAT, TOP_TEXT = 20, 5  # likeliest tokens that may be asked for


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a request wants.

    Attributes:
        asks: one for each answer.
        generation: what it says of all answers.
        reply: what they are written into.
    """

    asks: tuple[Ask, ...]
    generation: Generation
    reply: Reply


def chat_request(body: Fields, served: Served, choices: int) -> Wanted:
    """The body of ``/v1/chat/completions``, whose ``model`` has been read.

    Args:
        choices: the most that one request may ask for.

    Raises:
        ApiError: something is wrong with it, or cannot be done here.
    """
    generation = read_generation(body, served, choices)
    messages = read_messages(body)
    calling = read_tools(body, served.renderer)
    grammar = read_format(body, calling)
    wants_tokens, top = body.flag("logprobs"), body.whole("top_logprobs", 0, TOP_CHAT)
    if top is not None and not wants_tokens:
        raise wrong_value("top_logprobs", "it is only allowed when 'logprobs' is true.")
    body.finish()
    if len(messages) >= served.context:  # each has a token at least; so many are not rendered to learn that
        raise too_long(served, f"at least {len(messages)}", "messages")
    if served.system is not None and messages[0]["role"] not in SYSTEM:
        messages = with_system(messages, served.system)
    try:
        prompt = tuple(served.renderer.prompt_ids(messages, calling.tools))
    except (DataError, ModelError) as error:
        raise ApiError(400, f"Invalid 'messages': {error.message:.400}", "invalid_value", "messages") from None
    forced = calling.forced
    if forced is not None:
        prompt, grammar = (*prompt, *forced.ids), forced.grammar
    thinking = habits_of(served.renderer).thinking if grammar is None else None  # a format holds from the first token on
    most = budget(generation, served, len(prompt), "messages")
    asks = tuple(
        Ask(
            prompt=prompt,
            max_tokens=most,
            sampling=generation.sampling_of(choice),
            stop=generation.stop,
            logprobs=(top or 0) if wants_tokens else None,
            grammar=grammar,
            show_control=calling.form is not None or thinking is not None,
        )
        for choice in range(generation.n)
    )
    counted = generation.include_usage
    reply = ChatReply(served, generation.n, calling, thinking, logprobs=bool(wants_tokens), counted=counted)
    return Wanted(asks=asks, generation=generation, reply=reply)


def text_request(body: Fields, served: Served, choices: int) -> Wanted:
    """The body of ``/v1/completions``, whose ``model`` has been read.

    Args:
        choices: the most answers that one request may ask for, those to all its prompts together.

    Raises:
        ApiError: something is wrong with it, or cannot be done here.
    """
    generation = read_generation(body, served, choices)
    top = body.whole("logprobs", 0, TOP_TEXT)
    best = body.whole("best_of", 1, choices)
    if best is not None and best != generation.n:
        raise unsupported_value("best_of", "every answer is given; leave it out, or set it to n.")
    if body.flag("echo"):
        raise unsupported_value("echo", "the prompt is not repeated.")
    if body.text("suffix"):
        raise unsupported_value("suffix", "text is only written at the end.")
    prompts = _prompts(body, served)
    body.finish()
    answers = len(prompts) * generation.n
    if answers > choices:
        said = f"{len(prompts)} prompts with n = {generation.n} are {answers} answers; a request has at most {choices}."
        raise wrong_value("prompt", said)
    asks = tuple(
        Ask(
            prompt=prompt,
            max_tokens=budget(generation, served, len(prompt), "prompt"),
            sampling=generation.sampling_of(choice),
            stop=generation.stop,
            logprobs=top,
        )
        for prompt in prompts
        for choice in range(generation.n)
    )
    reply = TextReply(served, answers, len(prompts), logprobs=top is not None, counted=generation.include_usage)
    return Wanted(asks=asks, generation=generation, reply=reply)


def _prompts(body: Fields, served: Served) -> list[tuple[int, ...]]:
    value = body.needed("prompt")
    if value in ("", []):
        raise wrong_value("prompt", "it is empty.")
    if not isinstance(value, list):
        return [_prompt(value, served, "prompt")]
    if isinstance(value[0], int):
        return [_prompt(value, served, "prompt")]
    return [_prompt(entry, served, f"prompt[{number}]") for number, entry in enumerate(value)]


def _prompt(value: JsonValue, served: Served, where: str) -> tuple[int, ...]:
    """The token ids of one prompt: text, or ids already."""
    renderer = served.renderer
    if isinstance(value, str) and value:
        begin = renderer.text_begin
        try:
            renderer.vocabulary.refuse_lost(value)
            return (*begin, *renderer.vocabulary.encode([(value, AFTER if begin else START)])[0])
        except (DataError, ModelError) as error:
            raise ApiError(400, f"Invalid '{where}': {error.message:.400}", "invalid_value", where) from None
    if not isinstance(value, list) or not value:
        raise wrong_type(where, "a text that is not empty, or an array of token ids", value)
    size = len(renderer.tokenizer)
    ids: list[int] = []
    for token in value:
        if isinstance(token, bool) or not isinstance(token, int):
            raise wrong_type(where, "token ids, which are integers", token)
        if not 0 <= token < size:
            raise wrong_value(where, f"{token!s:.24} is no token id of this model, a number below {size}.")
        ids.append(token)
    return tuple(ids)
