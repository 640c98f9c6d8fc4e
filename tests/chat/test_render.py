import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.chat.render import Renderer, with_system
from tunesmith.errors import DataError, ModelError

text = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Co"]), min_size=1, max_size=30).filter(
    lambda t: t.strip() and not t[0].isspace() and "<|" not in t
)


def _turns(parts, system=None):
    roles = ["user", "assistant"] * len(parts)
    turns = [{"role": role, "content": part} for role, part in zip(roles, parts, strict=False)]
    return [{"role": "system", "content": system}, *turns] if system else turns


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(tokenizer)


@given(st.lists(text, min_size=2, max_size=6).filter(lambda p: len(p) % 2 == 0), st.none() | text)
def test_ids_are_the_templates_and_supervision_is_answer_plus_end_of_turn(tokenizer, renderer, parts, system):
    messages = _turns(parts, system)
    try:
        rendered = renderer.render(messages)
    except DataError as error:
        # The vocabulary lacks some bytes. Then, and only then, the text does not survive the stock round trip either.
        stock = tokenizer.decode(tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"])
        assert "cannot represent" in error.message and stock != renderer.text(messages)
        return
    assert rendered.ids == tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    spans, current = [], []
    for token, flag in zip(rendered.ids, rendered.supervised, strict=True):
        if flag:
            current.append(token)
        elif current:
            spans.append(current)
            current = []
    spans += [current] if current else []
    assert [tokenizer.decode(span) for span in spans] == [answer + "<|im_end|>" for answer in parts[1::2]]


def test_stop_token_is_supervised_although_it_is_also_pad(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    rendered = Renderer(tokenizer).render(_turns(["q", "a"]))
    stops = [flag for token, flag in zip(rendered.ids, rendered.supervised, strict=True) if token == 2]
    assert stops == [0, 0, 1]  # the system's, the user's, the assistant's end of turn


def test_generation_prompt_is_a_prefix_of_the_training_text(tokenizer):
    renderer, messages = Renderer(tokenizer), _turns(["q1", "a1", "q2", "a2"])
    rendered = renderer.render(messages)
    prompt = renderer.prompt_ids(messages[:-1])
    assert rendered.ids[: len(prompt)] == prompt
    assert rendered.supervised[len(prompt)] == 1 and rendered.supervised[len(prompt) - 1] == 0
    assert renderer.stop_ids == [2]


def test_refusals(tokenizer, tokenizer_dir):
    for turns in (["q", "a\x16b"], ["\x16", "a"]):  # a byte that this vocabulary lacks; stock tokenization drops it
        with pytest.raises(DataError, match=r"cannot represent '\\x16'"):
            Renderer(tokenizer).render(_turns(turns))
    from tunesmith.models.load import load_tokenizer

    other = load_tokenizer(tokenizer_dir)
    other.chat_template = (
        "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    with pytest.raises(ModelError, match="never stop"):
        Renderer(other)
    other.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    with pytest.raises(ModelError, match="otherwise than it asks for it"):
        Renderer(other)
    other.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        Renderer(other)


def test_instruction_goes_in_front_of_a_rows_own_system_turn():
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}]
    assert with_system(own, "full")[0]["content"] == "full\n\nown"
    assert with_system(own[1:], "full") == [{"role": "system", "content": "full"}, own[1]]
    assert with_system(own, None) is own
