"""Tool calls: every template's own calls are read back, every form finds its own, and what is broken is counted as such."""

import importlib.util
import json
from pathlib import Path

import families
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from tunesmith.chat.calls.forms import FORMS, read_calls
from tunesmith.chat.calls.probe import CALLS, TOOLS, call_form, check_call_form
from tunesmith.chat.render import Renderer
from tunesmith.errors import ModelError
from tunesmith.rundir.records.calls import Call, Calls

BY_NAME = {form.name: form for form in FORMS}
EXPECTED = {"llama3.1": "bare", "qwen2.5": "hermes", "qwen3": "hermes", "gemma4": "braces", "mistral": "brackets"}
TRL = importlib.util.find_spec("trl")
assert TRL is not None and TRL.submodule_search_locations
PUBLISHED = Path(TRL.submodule_search_locations[0]) / "chat_templates"
# What else is published; the date and single calls of Llama keep it to the probe above, R1's drops calls.
FORM_OF = {
    "deepseekv3_training": "deepseek",
    "diffusion_gemma": "braces",
    "gemma4": "braces",
    "glm4moe": "keys",
    "gptoss": "harmony",
    "lfm2_2_5": "python",
    "muse_glimmer": "invoke",
    "nemotron_3_nano": "function",
    "qwen3_5_think": "function",
    "qwen3_instruct_2507": "hermes",
}
words = st.text(st.characters(exclude_categories=["C"]), max_size=12)
names = st.from_regex(r"[a-z]{1,5}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | words,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def renderers(tokenizer_dir):
    return {name: Renderer(families.make(name, tokenizer_dir)) for name in families.FAMILIES}


def functions(calls: Calls) -> list[dict[str, object]]:
    return [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls.calls]


def test_a_template_that_knows_tools_has_a_form_and_another_is_refused(renderers):
    for name, renderer in renderers.items():
        if name in EXPECTED:
            assert check_call_form(renderer, shown=False).name == EXPECTED[name]
        else:
            assert call_form(renderer) is None
            with pytest.raises(ModelError, match="cannot be scored"):
                check_call_form(renderer, shown=False)


def test_a_template_that_wants_a_result_behind_every_call_shows_no_examples(tokenizer_dir):
    tokenizer = families.make("qwen2.5", tokenizer_dir)
    strict = (
        "{% for m in messages %}{% if m.role == 'user' and loop.index0 and messages[loop.index0 - 1].tool_calls %}"
        "{{ raise_exception('a result is missing') }}{% endif %}{% endfor %}"
    )
    renderer = Renderer(tokenizer, strict + tokenizer.chat_template)
    check_call_form(renderer, shown=False)
    with pytest.raises(ModelError, match="a result is missing"):
        check_call_form(renderer, shown=True)


@pytest.mark.parametrize("name", EXPECTED)
@settings(max_examples=25, deadline=None)
@given(arguments=st.dictionaries(names, values, max_size=3))
def test_any_arguments_come_back_from_what_the_model_is_trained_to_write(renderers, name, arguments):
    """As decoded from the token ids that a generation would consist of."""
    renderer = renderers[name]
    call = {"id": "call00000", "type": "function", "function": {"name": "first_one", "arguments": arguments}}
    tools = [{"type": "function", "function": {"name": "first_one", "description": "d", "parameters": {"type": "object"}}}]
    rendered = renderer.render(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}], tools
    )
    ids = [i for i, on in zip(rendered.ids, rendered.supervised, strict=True) if on]
    while ids[-1] in renderer.stop_ids:
        ids.pop()
    text = renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert functions(read_calls(text, call_form(renderer), tools)) == [call["function"]]


@pytest.mark.parametrize(("template", "form"), FORM_OF.items())
def test_published_templates_are_read_by_one_form_alone(template, form):
    count = 1 if template == "gptoss" else 2  # it writes the first
    turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "", "tool_calls": CALLS[:count]}]
    source = (PUBLISHED / f"{template}.jinja").read_text()
    text = render_jinja_template([turns], tools=TOOLS, chat_template=source, bos_token="<s>", eos_token="</s>")[0][0]
    answer = text[text.rindex("Q?") + 2 :]
    readers = {
        name
        for name, entry in BY_NAME.items()
        if functions(entry.calls(answer, TOOLS)) == [c["function"] for c in CALLS[:count]]
    }
    assert readers == {form}
    lost = read_calls(answer, BY_NAME["brackets"], TOOLS)
    assert (lost.calls, lost.malformed, lost.lost) == ((), 0, count)


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("bare", '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}};{"name":"f", "parameters": {"a":1}}'),
        ("brackets", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": 1}}]'),
        ("brackets args", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]f{"a": 1}'),
        ("list", '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": 1}}]<|/tool_call|>'),
        ("escapes", "<start_function_call>call:f{a:1}<end_function_call>" * 2),
        ("harmony", 'analysis<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}'
         '<|call|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a": 1}'),
        ("deepseek", "<｜tool▁calls▁begin｜>" + '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>' * 2),
        ("deepseek", '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>' * 2),
        ("hermes", '<think>I could <tool_call> here</think>\nWell: <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
         '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'),
        ("loose", '```json\n[{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": 1}}]\n```'),
    ],
)  # fmt: skip
def test_forms_in_the_wild(form, answer):
    assert BY_NAME[form].calls(answer, None) == Calls(calls=(Call(name="f", arguments='{"a": 1}'),) * 2)


@pytest.mark.parametrize(
    "broken",
    [
        '{"name": "f", "arguments": {"a": 1}',  # no end
        '{"name": "f", "arguments": "{}"}',
        '{"name": "f", "arguments": {"a": 1, "a": 2}}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"arguments": {}}',
        "f(a=1)",
        '{"name": "f", "arguments": {"a": ' + "[" * 5000 + "]" * 5000 + "}}",
    ],
)
def test_what_begins_as_a_call_and_is_none_is_malformed(broken):
    answer = f'<tool_call>{broken}</tool_call><tool_call>{{"name": "g", "arguments": {{}}}}</tool_call>'
    read = read_calls(answer, BY_NAME["hermes"], None)
    assert (read.calls, read.malformed, read.lost) == ((Call(name="g", arguments="{}"),), 1, 0)


def test_numbers_stay_as_they_were_written_and_plain_text_calls_nothing():
    read = read_calls('{"name": "f", "parameters": {"a": 9007199254740993.0, "b": 1e400}}', BY_NAME["bare"], None)
    assert read.calls[0].arguments == '{"a": 9007199254740993.0, "b": 1e400}'
    for text in ("", "No function fits.", '{"city": "Rome"}', 'Use {"name": "f"}', "```json\n[1]\n```", "[f(a=1)]"):
        for form in (None, *FORMS):
            assert read_calls(text, form, None) == Calls()


def test_text_between_tags_has_the_type_that_the_schema_declares():
    arguments = "<parameter=zip>\n007\n</parameter>\n<parameter=n>\n7\n</parameter>\n"
    answer = f"<tool_call>\n<function=f>\n{arguments}</function>\n</tool_call>"
    properties = {"zip": {"type": "string"}, "n": {"type": "integer"}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": properties}}}]
    assert functions(BY_NAME["function"].calls(answer, tools)) == [{"name": "f", "arguments": {"zip": "007", "n": 7}}]
