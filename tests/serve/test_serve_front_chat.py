"""Chat and completions through HTTP, as the official client asks and reads them."""

import json

import httpx2
import llguidance
import openai
import pytest
from fake_engine import FakeModels, running, said, served, with_tokens

from tunesmith.chat.render import Renderer
from tunesmith.serve.asking import End, EngineGone, EngineStarting, Piece

HELLO = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
THINKING = """{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>
{{ {"name": c.function.name, "arguments": c.function.arguments} | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(tokenizer)


@pytest.fixture(scope="module")
def models(renderer, tokenizer):
    thinks = served(Renderer(tokenizer, THINKING), "thinks")
    return FakeModels(
        served(renderer), served(renderer, "tuned", system="Be brief."), thinks, served(renderer, "small", context=40)
    )


@pytest.fixture(scope="module")
def server(models):
    with running(models) as server:
        yield server


@pytest.fixture
def client(server, models):
    models.script, models.asks = said(lambda ask, model: f"said by {model.name}"), []
    with server.client() as client:
        yield client


def test_an_answer_is_one_object_or_chunks_with_the_same_text(client, models):
    reply = client.chat.completions.create(model="tuned", messages=HELLO)
    choice = reply.choices[0]
    assert (reply.object, reply.model, reply.system_fingerprint) == ("chat.completion", "tuned", "version of tuned")
    assert (choice.message.content, choice.finish_reason, choice.logprobs) == ("said by tuned", "stop", None)
    prompt = len(models.asks[0].prompt)
    assert reply.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": prompt,
        "completion_tokens": 13,
        "total_tokens": prompt + 13,
        "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
    }
    stream = client.chat.completions.create(model="tuned", messages=HELLO, stream=True, stream_options={"include_usage": True})
    *chunks, last = stream
    assert {chunk.id for chunk in chunks} == {last.id} and {chunk.model for chunk in chunks} == {"tuned"}
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert last.choices == [] and last.usage == reply.usage and all(chunk.usage is None for chunk in chunks)


def test_the_prompt_is_what_the_renderer_makes_with_the_models_own_system_turn(client, models, renderer):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": parts}])
    client.chat.completions.create(model="tuned", messages=[{"role": "developer", "content": "Shout."}, *HELLO])
    client.chat.completions.create(model="base", messages=HELLO)
    own, other = {"role": "system", "content": "Be brief."}, {"role": "system", "content": "Shout."}
    expected = [[own, *HELLO], [other, *HELLO], HELLO]
    assert [list(ask.prompt) for ask in models.asks] == [renderer.prompt_ids(messages) for messages in expected]


def test_every_setting_reaches_the_engine_and_the_default_is_what_the_gate_measured(client, models):
    client.chat.completions.create(model="base", messages=HELLO)
    client.chat.completions.create(
        model="base",
        messages=HELLO,
        n=2,
        seed=2**40,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"7": -100},
        stop=["x", "y"],
        max_completion_tokens=5,
        logprobs=True,
        top_logprobs=2,
        user="u",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        extra_body={"top_k": 3, "min_p": 0.1},
    )
    plain, first, second = models.asks
    assert (plain.sampling.temperature, plain.sampling.seed, plain.max_tokens, plain.logprobs) == (0, None, 64, None)
    assert (first.max_tokens, first.stop, first.logprobs) == (5, ("x", "y"), 2)
    drawn = first.sampling
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.min_p) == (0.5, 0.9, 3, 0.1)
    assert (drawn.presence_penalty, drawn.frequency_penalty, drawn.logit_bias) == (1, -1, {7: -100})
    assert second.sampling.seed == drawn.seed + 1 and second.prompt == first.prompt


def test_probabilities_come_with_the_bytes_of_their_tokens(client, models):
    models.script = with_tokens
    reply = client.chat.completions.create(model="base", messages=HELLO, logprobs=True, top_logprobs=2)
    first, second, third = reply.choices[0].logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("a", [97], -0.5)
    assert [top.logprob for top in first.top_logprobs] == [-0.5, -9999.0]
    assert second.bytes + third.bytes == list("\u00e9".encode())
    chunks = list(client.chat.completions.create(model="base", messages=HELLO, logprobs=True, top_logprobs=2, stream=True))
    streamed = [token for chunk in chunks for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])]
    assert [token.bytes for token in streamed] == [[97], [0xC3], [0xA9]]
    text = client.completions.create(model="base", prompt="hi", logprobs=1).choices[0]
    assert (text.text, text.logprobs.token_logprobs, text.logprobs.text_offset) == ("a\u00e9", [-0.5, -1.0, -2.0], [0, 1, 2])


def test_a_format_goes_to_the_engine_as_a_grammar(client, models):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    given = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    client.chat.completions.create(model="base", messages=HELLO, response_format=given)
    client.chat.completions.create(model="base", messages=HELLO, response_format={"type": "json_object"})
    client.chat.completions.create(model="base", messages=HELLO, response_format={"type": "text"})
    grammars = [ask.grammar for ask in models.asks]
    assert '"additionalProperties": false' in grammars[0] and '{"type": "object",' in grammars[1] and grammars[2] is None


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    ("text", "reasoning", "content", "calls"),
    [
        ("<think>\nSo < that\n</think>\n\nIt is <b>.", "So < that", "It is <b>.", []),
        ("It is.", "", "It is.", []),
        ("  no <th", "", "  no <th", []),
        ("<think>never closed", "never closed", "", []),
        ('Look:\n<tool_call>\n{"name": "find", "arguments": {"q": 1}}\n</tool_call>', "", "Look:", ['{"q": 1}']),
        ('<think>a</think><tool_call>{"name": "find", "arguments": {}}</tool_call>', "a", None, ["{}"]),
        ('<tool_call>{"name": "find", ', "", '<tool_call>{"name": "find", ', []),
        ("a < b and [c]", "", "a < b and [c]", []),
    ],
)
def test_an_answer_is_taken_apart_the_same_whole_and_streamed(client, models, text, reasoning, content, calls, size):
    models.script = said(text, size=size)
    asked = {"model": "thinks", "messages": HELLO, "tools": TOOLS}
    choice = client.chat.completions.create(**asked).choices[0]
    whole = choice.message
    assert (whole.content, (whole.model_extra or {}).get("reasoning_content", "")) == (content, reasoning)
    assert [call.function.arguments for call in whole.tool_calls or []] == calls
    assert choice.finish_reason == ("tool_calls" if calls else "stop")
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(delta.content or "" for delta in deltas) == (content or "")
    assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == reasoning
    streamed = [call for delta in deltas for call in delta.tool_calls or []]
    assert [call.function.arguments for call in streamed] == calls and models.asks[0].show_control


def test_a_call_and_its_result_go_back_into_the_conversation(client, models):
    models.script = said('<tool_call>{"name": "find", "arguments": {"q": "x"}}</tool_call>' * 2)
    one = client.chat.completions.create(model="thinks", messages=HELLO, tools=TOOLS, parallel_tool_calls=False)
    (call,) = one.choices[0].message.tool_calls
    assert len(call.id) == 9
    turns = [*HELLO, one.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "found"}]
    client.chat.completions.create(model="thinks", messages=turns, tools=TOOLS)
    history = models.models["thinks"].renderer.tokenizer.decode(models.asks[1].prompt)
    assert '<tool_call>\n{"name": "find", "arguments": {"q": "x"}}' in history and "found" in history
    client.chat.completions.create(model="thinks", messages=HELLO, tools=TOOLS, tool_choice="none")
    assert "find" not in models.models["thinks"].renderer.tokenizer.decode(models.asks[2].prompt)


@pytest.mark.parametrize(
    ("choice", "begins", "text", "call"),
    [
        ({"type": "function", "function": {"name": "find"}}, '<tool_call>\n{"name": "find", "arguments":', ' {"q": 1}', "find"),
        ("required", '<tool_call>\n{"name": "', 'count", "arguments": {}', "count"),
    ],
)
def test_a_call_that_is_demanded_is_begun_for_the_model(client, models, choice, begins, text, call):
    models.script = said(text)
    schema = {"type": "object", "properties": {"q": {"type": "integer"}}, "required": ["q"]}
    tools = [{"type": "function", "function": {"name": "find", "parameters": schema, "strict": True}}]
    tools += [{"type": "function", "function": {"name": "count"}}]
    asked = {"model": "thinks", "messages": HELLO, "tools": tools, "tool_choice": choice}
    reply = client.chat.completions.create(**asked).choices[0]
    assert (reply.message.content, reply.finish_reason) == (None, "tool_calls")
    assert [(c.function.name, c.function.arguments) for c in reply.message.tool_calls] == [(call, text[text.index("{") :])]
    renderer, ask = models.models["thinks"].renderer, models.asks[0]
    assert renderer.tokenizer.decode(ask.prompt).endswith(f"<|im_start|>assistant\n{begins}")
    turn = {"id": "1", "type": "function", "function": {"name": call, "arguments": {"q": 1}}}
    trained = renderer.render([*HELLO, {"role": "assistant", "content": "", "tool_calls": [turn]}], tools).ids
    assert list(ask.prompt) == trained[: len(ask.prompt)]  # to the token
    grammar = llguidance.LLMatcher.grammar_from_lark(ask.grammar.partition("\n")[2])
    for given, allowed in ((text, True), (text.replace("1", '"x"').replace("{}", '{"q": 1}'), False)):
        matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar)
        taken = matcher.try_consume_tokens(list(given.encode()))
        assert (taken == len(given) and matcher.is_accepting()) is allowed
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True)]
    assert [c.function.name for delta in deltas for c in delta.tool_calls or []] == [call]
    with pytest.raises(openai.BadRequestError, match="demand the call") as error:
        client.chat.completions.create(**asked | {"tool_choice": "auto"})
    assert error.value.param == "tools[0].function.strict"


def test_text_completions_take_texts_and_ids(client, models, renderer):
    reply = client.completions.create(model="base", prompt=["hello", "good day"], n=2, max_tokens=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3] and reply.choices[3].text == "said by base"
    ids = renderer.tokenizer("hello", add_special_tokens=False).input_ids
    assert [len(models.asks), list(models.asks[0].prompt)] == [4, ids]
    client.completions.create(model="base", prompt=[1, 2, 3])
    assert models.asks[4].prompt == (1, 2, 3)
    chunks = list(client.completions.create(model="base", prompt="hello", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "said by base"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_answer_is_cut_to_what_the_context_leaves(client, models):
    client.chat.completions.create(model="small", messages=HELLO, max_tokens=1000)
    assert models.asks[0].max_tokens == 40 - len(models.asks[0].prompt)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 40 tokens") as error:
        client.chat.completions.create(model="small", messages=[{"role": "user", "content": "hello " * 60}])
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="at least 40 tokens"):
        client.chat.completions.create(model="small", messages=HELLO * 40)


def test_models_are_listed_and_a_name_that_is_not_there_is_told_the_near_ones(client):
    assert [model.id for model in client.models.list()] == ["base", "tuned", "thinks", "small"]
    assert client.models.retrieve("tuned").model_extra["tunesmith"]["system"] == "Be brief."
    for ask in (
        lambda: client.chat.completions.create(model="tuned2", messages=HELLO),
        lambda: client.models.retrieve("tuned2"),
    ):
        with pytest.raises(openai.NotFoundError, match="There is: 'tuned'") as error:
            ask()
        assert error.value.code == "model_not_found" and error.value.request_id.startswith("req_")


@pytest.mark.parametrize(
    ("script", "kind", "code"),
    [
        ([EngineGone("it was killed")], openai.InternalServerError, "engine_gone"),
        ([EngineStarting("it is loading", 3.0)], openai.InternalServerError, "engine_starting"),
        ([], openai.InternalServerError, "engine_gone"),
    ],
)
def test_a_fault_before_the_first_word_has_a_status_streamed_or_not(client, models, script, kind, code):
    models.script = lambda ask, model: iter(script)
    for stream in (False, True):
        with pytest.raises(kind) as error:
            client.chat.completions.create(model="base", messages=HELLO, stream=stream)
        assert error.value.code == code
    if code == "engine_starting":
        assert (error.value.status_code, error.value.response.headers["retry-after"]) == (503, "3")


def test_a_fault_in_the_middle_is_an_event_and_no_end(server, models):
    models.script = lambda ask, model: iter([Piece("a"), EngineGone("it was killed")])
    body = {"model": "base", "messages": HELLO, "stream": True}
    text = httpx2.post(f"{server.url}/v1/chat/completions", json=body).text
    assert json.loads(text.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "engine_gone"
    assert "[DONE]" not in text and 'finish_reason":"' not in text
    with server.client() as client, pytest.raises(openai.APIError, match="it was killed"):
        list(client.chat.completions.create(**body))


def test_the_parsing_helpers_of_the_client_work(client, models):
    models.script = said('{"a": 3}')

    class Answer(openai.BaseModel):
        a: int

    assert client.chat.completions.parse(model="base", messages=HELLO, response_format=Answer).choices[0].message.parsed.a == 3
    with client.chat.completions.stream(model="base", messages=HELLO) as stream:
        assert stream.get_final_completion().choices[0].message.content == '{"a": 3}'


def test_an_end_by_length_says_so(client, models):
    models.script = lambda ask, model: iter([Piece("a"), End("length", 3, 0, 1)])
    assert client.chat.completions.create(model="base", messages=HELLO).choices[0].finish_reason == "length"
