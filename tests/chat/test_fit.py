import families
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat.fit import fit
from tunesmith.chat.render import Conversation, Renderer

SYSTEM = {"role": "system", "content": "Be short."}


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(tokenizer)


def _conversation(exchanges, weights=None):
    turns = [SYSTEM]
    for number, words in enumerate(exchanges):
        turns += [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a " * words + "end"}]
        if weights:
            turns[-1]["weight"] = weights[number]
    return Conversation(turns)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(20, 120))
def test_oldest_exchanges_go_until_the_rest_fits(renderer, exchanges, limit):
    conversation = _conversation(exchanges)
    [fitted] = fit(renderer, [conversation], limit, "drop_oldest_turns")
    whole = renderer.render(conversation.messages)
    assert fitted.tokens == len(whole.ids)
    suffixes = [renderer.render([SYSTEM, *conversation.messages[1 + 2 * n :]]) for n in range(len(exchanges))]
    fits = [n for n, rendered in enumerate(suffixes) if len(rendered.ids) <= limit]
    if fits:
        assert fitted.rendered == suffixes[fits[0]] and fitted.dropped_turns == 2 * fits[0]
    else:
        assert fitted.rendered is None
    for policy in ("refuse", "drop"):
        [kept] = fit(renderer, [conversation], limit, policy)
        assert kept.rendered == (whole if len(whole.ids) <= limit else None) and kept.dropped_turns == 0


def test_a_row_is_not_shortened_to_one_without_a_supervised_token(renderer):
    [fitted] = fit(renderer, [_conversation([5, 5], weights=[1, 0])], 30, "drop_oldest_turns")
    assert fitted.rendered is None and fitted.refused is None and fitted.tokens > 30


def test_a_question_after_a_result_begins_no_exchange(tokenizer_dir):
    qwen = Renderer(families.make("qwen3", tokenizer_dir))
    call = {"type": "function", "function": {"name": "tide", "arguments": {}}}
    asked, result = {"role": "user", "content": "q " * 30}, {"role": "tool", "content": "low"}
    turns = [
        asked,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        result,
        asked,
        {"role": "assistant", "content": "a"},
    ]
    [fitted] = fit(qwen, [Conversation(turns)], qwen.render(turns).longest - 1, "drop_oldest_turns")
    assert fitted.rendered is None and fitted.dropped_turns == 0


def test_every_document_of_a_row_has_to_fit(tokenizer_dir):
    qwen = Renderer(families.make("qwen3", tokenizer_dir))
    thought = {"role": "assistant", "content": "a", "reasoning_content": "long " * 40}
    asked = {"role": "user", "content": "q"}
    conversation = Conversation([SYSTEM, asked, thought, asked, {"role": "assistant", "content": "b"}])
    rendered = qwen.render(conversation.messages)
    first, last = (len(document.ids) for document in rendered.documents)
    assert rendered.longest == first > last and rendered.supervised_tokens < rendered.tokens < first + last
    for policy in ("refuse", "drop"):
        assert [kept.rendered for kept in fit(qwen, [conversation], first - 1, policy)] == [None]
    [fitted] = fit(qwen, [conversation], first, "refuse")
    assert fitted.rendered == rendered and fitted.tokens == first
    [shortened] = fit(qwen, [conversation], last, "drop_oldest_turns")
    assert shortened.dropped_turns == 2 and shortened.rendered == qwen.render([SYSTEM, *conversation.messages[3:]])
