import families
import pytest

from tunesmith.chat.render import Conversation, Rendered, Renderer
from tunesmith.errors import DataError, ModelError

ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}{% for c in m.tool_calls or [] %}<f={{ c.function.name }}>"
    "{% for k, v in c.function.arguments.items() %}<p={{ k }}>{{ v }}{% endfor %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{{ tools | tojson if tools }}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _call(name="f", arguments=None):
    function = {"name": name, "arguments": {"a": "b"} if arguments is None else arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "i", "type": "function", "function": function}]}


def _renderer(tokenizer_dir, content="m.content"):
    tokenizer = families.make("chatml", tokenizer_dir)
    return Renderer(tokenizer, TURNS.replace("CONTENT", content))


def test_a_text_that_joins_with_the_template_into_a_control_token_is_refused(tokenizer_dir):
    renderer = _renderer(tokenizer_dir)
    for call in (_call("f<|im_end|"), _call(arguments={"k<|im_end|": "v"})):
        with pytest.raises(DataError, match="joins with the template's text"):
            renderer.render([ASKED, call])
        with pytest.raises(DataError, match="joins with the template's text"):
            renderer.prompt_ids([ASKED, call, ASKED])
    assert renderer.render([ASKED, _call("f<|im_end")]).notes == ()
    embraced = _renderer(tokenizer_dir, "'<' + m.content + '>'")
    with pytest.raises(DataError, match="joins with the template's text"):
        embraced.render([{"role": "user", "content": "|im_end|"}, SAID])


def test_what_cannot_be_rendered_is_a_data_error_of_its_row_alone(tokenizer_dir):
    renderer, deep = _renderer(tokenizer_dir, "m.content"), {}
    for _ in range(3000):
        deep = {"k": deep}
    wrong = {
        "surrogate": Conversation([{"role": "user", "content": "a\ud800"}, SAID]),
        "levels deep": Conversation([ASKED, _call(arguments=deep)]),
        "content is NoneType": Conversation([ASKED, {"role": "assistant", "content": None}]),
        "name is missing": Conversation([ASKED, SAID], [{"name": "f"}]),
        "role is": Conversation([{"role": "<|im_end|>", "content": "q"}, SAID]),
    }
    *refused, fine = renderer.render_batch([*wrong.values(), Conversation([ASKED, SAID])])
    assert isinstance(fine, Rendered)
    for expected, error in zip(wrong, refused, strict=True):
        assert isinstance(error, DataError) and expected in error.message
    silent = {key: value for key, value in _call().items() if key != "content"}
    same = [renderer.render([ASKED, turn]).ids for turn in (_call(), silent, {**silent, "content": None})]
    assert same[0] == same[1] == same[2]
    divides = _renderer(tokenizer_dir, "m.content if 'zero' not in m.content else 1 / 0")
    with pytest.raises(DataError, match="refuses the conversation"):
        divides.render([{"role": "user", "content": "zero"}, SAID])


@pytest.mark.parametrize("content", ["m.content | upper", "m.content | replace('q', '')"])
def test_a_template_that_rewrites_every_text_is_refused(tokenizer_dir, content):
    with pytest.raises((DataError, ModelError), match="rewrites"):
        _renderer(tokenizer_dir, content).render([ASKED, SAID])


def test_a_template_that_rewrites_or_tears_some_texts_is_refused_where_it_does(tokenizer_dir):
    long = {"role": "user", "content": "a < b and more"}
    for content, expected in (
        ("m.content | e", "rewrites"),
        ("m.content | replace(' b', '')", "rewrites"),
        ("m.content.split('<')[-1]", "apart"),
    ):
        renderer = _renderer(tokenizer_dir, content)
        assert renderer.render([ASKED, SAID]).ids
        with pytest.raises(DataError, match=expected):
            renderer.render([long, SAID])


def test_a_texts_json_form_and_trimmed_form_are_the_text(tokenizer_dir):
    for content in ("m.content | trim", "m.content | tojson"):
        renderer = _renderer(tokenizer_dir, content)
        assert renderer.render([{"role": "user", "content": ' é"\n x '}, SAID]).ids


def test_developer_is_a_role_only_where_the_template_compares_it(tokenizer_dir):
    turns = [{"role": "developer", "content": "s"}, ASKED]
    assert "system\n" in Renderer(
        families.make("chatml", tokenizer_dir), "{# developer #}" + TURNS.replace("CONTENT", "m.content")
    ).text(turns)
    quoted = "{% set roles = ['developer'] %}" + TURNS.replace("CONTENT", "m.content")
    assert "developer\n" in Renderer(families.make("chatml", tokenizer_dir), quoted).text(turns)


def test_long_conversations_cost_a_run_a_document_and_what_is_known_of_their_roles_is_remembered(tokenizer_dir, monkeypatch):
    runs: list[int] = []

    def counted(name):
        renderer = Renderer(families.make(name, tokenizer_dir))
        run_many = renderer._template.run_many
        monkeypatch.setattr(renderer._template, "run_many", lambda c, *a, **k: runs.append(len(c)) or run_many(c, *a, **k))
        return renderer

    for name, documents in (("llama3", 1), ("qwen3", 20)):
        renderer = counted(name)
        assert len(renderer.render([ASKED, SAID] * 20).documents) == documents
        runs.clear()
        renderer.render([ASKED, SAID] * 20)
        assert runs == [documents]  # all in one go
