"""What chat and plain completions ask alike: how tokens are drawn, how many, what ends them, how the answer comes.

A field that a request leaves out is what the gate measured with, temperature 0 before all, and not what OpenAI or llama.cpp
take for it. ``top_k`` and ``min_p`` are no fields of OpenAI's; vLLM and llama.cpp know them by these names. Choice number i of
several is drawn from the seed plus i, since the same seed would say the same again.
"""

from dataclasses import dataclass, replace

from pydantic import JsonValue

from tunesmith.serve.api_error import ApiError
from tunesmith.serve.asking import Sampling, Served
from tunesmith.serve.fields import Fields, unsupported, unsupported_value, wrong_type, wrong_value

STOPS, METADATA = 4, 16  # at most
_SEEDS = 2**32 - 1  # llama.cpp takes the number after the last for "another one each time"
NO_EFFECT = ("user", "safety_identifier", "prompt_cache_key")  # read, and of no consequence here
NOT_HERE = {
    "audio": "this server answers in text.",
    "functions": "it is OpenAI's form of 2023; declare tools.",
    "function_call": "it is OpenAI's form of 2023; use tool_choice.",
    "moderation": "this server has no moderation.",
    "prediction": "answers are not speculated.",
    "reasoning_effort": "whether a model thinks was settled by its training.",
    "web_search_options": "this server reaches no web.",
}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What an answer is made with.

    Attributes:
        sampling: how tokens are drawn.
        stop: texts that end the answer.
        max_tokens: the most that the client wants; None: it did not say.
        n: choices.
        stream: whether the answer comes in pieces.
        include_usage: whether a stream ends with the count of its tokens.
    """

    sampling: Sampling
    stop: tuple[str, ...]
    max_tokens: int | None
    n: int
    stream: bool
    include_usage: bool

    def sampling_of(self, choice: int) -> Sampling:
        """How the tokens of a choice are drawn."""
        seed = self.sampling.seed
        return self.sampling if seed is None or choice == 0 else replace(self.sampling, seed=(seed + choice) % _SEEDS)


def read_generation(body: Fields, served: Served, choices: int) -> Generation:
    """The fields that both kinds of completion have.

    Args:
        choices: the most that one request may ask for.

    Raises:
        ApiError: one of them is wrong.
    """
    body.refuse(NOT_HERE)
    _read_what_has_no_effect(body)
    stream = bool(body.flag("stream"))
    options = body.inner("stream_options")
    include_usage = False
    if options is not None:
        if not stream:
            raise wrong_value("stream_options", "it is only allowed when 'stream' is true.")
        include_usage = bool(options.flag("include_usage"))
        if options.flag("include_obfuscation"):
            raise unsupported_value("stream_options.include_obfuscation", "chunks are not padded here.")
        options.finish()
    return Generation(
        sampling=_sampling(body, served),
        stop=_stop(body),
        max_tokens=_max_tokens(body),
        n=body.whole("n", 1, choices) or 1,
        stream=stream,
        include_usage=include_usage,
    )


def budget(generation: Generation, served: Served, prompt: int, field: str) -> int:
    """The most tokens that an answer may have: what was asked for, and what the context leaves.

    Args:
        prompt: tokens of the prompt.
        field: of the request that it comes of.

    Raises:
        ApiError: it leaves none.
    """
    wanted = served.max_new_tokens if generation.max_tokens is None else generation.max_tokens
    if prompt >= served.context:
        raise too_long(served, f"{prompt}", field)
    return min(wanted, served.context - prompt)


def too_long(served: Served, prompt: str, field: str) -> ApiError:
    """The error of a prompt that leaves no token for an answer."""
    said = (
        f"This model's maximum context length is {served.context} tokens. However, your {field} resulted in {prompt} "
        f"tokens. Please reduce the length of the {field}."
    )
    return ApiError(400, said, "context_length_exceeded", field)


def _sampling(body: Fields, served: Served) -> Sampling:
    default = served.sampling
    asked = {
        "temperature": body.number("temperature", 0, 2),
        "top_p": body.number("top_p", 0, 1),
        "min_p": body.number("min_p", 0, 1),
        "presence_penalty": body.number("presence_penalty", -2, 2),
        "frequency_penalty": body.number("frequency_penalty", -2, 2),
    }
    bias = body.take("logit_bias")
    top_k, seed = body.whole("top_k", 0, 1_000_000), body.whole("seed", -(2**63), 2**63 - 1)
    return replace(
        default,
        **{name: value for name, value in asked.items() if value is not None},
        top_k=default.top_k if top_k is None else top_k,
        seed=default.seed if seed is None else seed % _SEEDS,
        logit_bias=default.logit_bias if bias is None else _bias(bias, len(served.renderer.tokenizer)),
    )


def _bias(bias: JsonValue, vocabulary: int) -> dict[int, float]:
    if not isinstance(bias, dict):
        raise wrong_type("logit_bias", "an object of token ids and numbers", bias)
    biases: dict[int, float] = {}
    for token, value in bias.items():
        if not (token.isascii() and token.isdecimal() and len(token) < 10 and int(token) < vocabulary):
            raise wrong_value("logit_bias", f"{token!r:.40} is no token id of this model, a number below {vocabulary}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type("logit_bias", "numbers", value)
        if not -100 <= value <= 100:
            raise wrong_value("logit_bias", f"a bias is a number from -100 to 100, found {value!s:.24}.")
        biases[int(token)] = float(value)
    return biases


def _stop(body: Fields) -> tuple[str, ...]:
    value = body.take("stop")
    texts = [] if value is None else value if isinstance(value, list) else [value]
    if len(texts) > STOPS:
        raise wrong_value("stop", f"at most {STOPS} texts, found {len(texts)}.")
    for text in texts:
        if not isinstance(text, str):
            raise wrong_type("stop", "a string or an array of strings", text)
        if not text:
            raise wrong_value("stop", "a text that ends an answer cannot be empty.")
    return tuple(str(text) for text in texts)


def _max_tokens(body: Fields) -> int | None:
    limits = [body.whole(name, 1, 2**31 - 1) for name in ("max_tokens", "max_completion_tokens")]
    named = {limit for limit in limits if limit is not None}
    if len(named) > 1:
        raise wrong_value("max_tokens", "it differs from 'max_completion_tokens', which takes its place; send one of them.")
    return named.pop() if named else None


def _read_what_has_no_effect(body: Fields) -> None:
    """Fields that mean nothing here; wrong ones are still wrong, and wishes that cannot be met are refused.

    Raises:
        ApiError: one of them is wrong.
    """
    for name in NO_EFFECT:
        body.text(name)
    if body.flag("store"):
        raise unsupported_value("store", "answers are not kept here.")
    for name, harmless in (
        ("service_tier", ("auto", "default")),
        ("verbosity", ("medium",)),
        ("prompt_cache_retention", ("in_memory",)),
    ):
        value = body.text(name)
        if value not in (None, *harmless):
            raise unsupported_value(name, f"known here: {', '.join(map(repr, harmless))}.")
    if body.take("modalities") not in (None, ["text"]):
        raise unsupported_value("modalities", "this server answers in text: ['text'].")
    if "prompt_cache_options" in body:
        raise unsupported("prompt_cache_options", "prompts are cached while their slot holds them.")
    metadata = body.take("metadata")
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise wrong_type("metadata", "an object", metadata)
    if len(metadata) > METADATA:
        raise wrong_value("metadata", f"at most {METADATA} keys, found {len(metadata)}.")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise wrong_type("metadata", "values that are strings", value)
        if len(key) > 64 or len(value) > 512:
            raise wrong_value("metadata", "keys have at most 64 characters and values 512.")
