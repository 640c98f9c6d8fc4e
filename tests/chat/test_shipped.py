"""The templates that tunesmith brings, against the official ones."""

import importlib.util
from pathlib import Path

import families
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import write_recipe
from tunesmith.chat.render import Renderer
from tunesmith.chat.template_choice import SHIPPED, template_text, with_thinking
from tunesmith.errors import DataError, ModelError
from tunesmith.recipe import load_recipe

USER, SAID = {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"city": "Rome", "days": [1, None]}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "sunny"}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def tokenizer4(tokenizer_dir):
    return families.make("gemma4", tokenizer_dir)


@pytest.fixture(scope="module")
def renderers4(tokenizer4):
    """With thinking as the template has it, on, and off."""
    return {switch: Renderer(tokenizer4, template_text(Path("gemma4")), switch) for switch in (None, True, False)}


def _official(name: str) -> str:
    trl = importlib.util.find_spec("trl")
    if trl is None or not trl.submodule_search_locations:
        pytest.skip("TRL carries the official templates")
    return (Path(trl.submodule_search_locations[0]) / "chat_templates" / f"{name}.jinja").read_text()


THOUGHT = {**SAID, "reasoning_content": "R"}
GEMMA4 = [  # (thinking, tools, messages, what the official revision writes)
    (None, None, [SYSTEM, USER, SAID], "<bos><|turn>system\nS<turn|>\n<|turn>user\nU<turn|>\n<|turn>model\nA<turn|>\n"),
    (False, None, [USER, SAID], "<bos><|turn>user\nU<turn|>\n<|turn>model\nA<turn|>\n"),
    (
        True,
        None,
        [SYSTEM, USER, THOUGHT],
        "<bos><|turn>system\n<|think|>\nS<turn|>\n<|turn>user\nU<turn|>\n<|turn>model\n<|channel>thought\nR\n<channel|>A<turn|>\n",
    ),
    (
        None,
        [TOOL],
        [USER, CALL, RESULT, SAID],
        '<bos><|turn>system\n<|tool>declaration:f{description:<|"|>d<|"|>,parameters:{type:<|"|>OBJECT<|"|>}}<tool|><turn|>\n'
        '<|turn>user\nU<turn|>\n<|turn>model\n<|tool_call>call:f{city:<|"|>Rome<|"|>,days:[1,null]}<tool_call|>'
        '<|tool_response>response:f{value:<|"|>sunny<|"|>}<tool_response|>A<turn|>\n',
    ),
]


@pytest.mark.parametrize(("thinking", "tools", "messages", "expected"), GEMMA4)
def test_gemma4_is_written_as_published(renderers4, thinking, tools, messages, expected):
    renderer = renderers4[thinking]
    assert renderer.text(messages, tools) == expected
    ids = renderer.render(messages, tools).ids
    bos = renderer.tokenizer.bos_token_id
    assert ids[0] == bos and ids.count(bos) == 1
    assert ids == renderer.tokenizer.encode(expected, add_special_tokens=False)


def test_gemma4_teaches_thought_calls_text_and_ends_and_nothing_else(renderers4):
    messages = [
        USER,
        SAID,
        USER,
        {**CALL, "reasoning_content": "W"},
        RESULT,
        {**SAID, "content": "B", "reasoning_content": "R"},
    ]
    renderer = renderers4[True]
    pieces = renderer.pieces(messages, [TOOL])
    stretches = [""]
    for before, piece in zip([pieces[0], *pieces], pieces, strict=False):
        stretches += [""] if before.supervised != piece.supervised else []
        stretches[-1] += piece.text
    call = '<|channel>thought\nW\n<channel|><|tool_call>call:f{city:<|"|>Rome<|"|>,days:[1,null]}<tool_call|><|tool_response>'
    # Handing over to the tool is the model's token; what the tool says and the cue of the thought after it are not.
    assert stretches[1::2] == ["A<turn|>", call, "R\n<channel|>B<turn|>"]
    assert stretches[4] == 'response:f{value:<|"|>sunny<|"|>}<tool_response|><|channel>thought\n'
    ends = renderer.tokenizer.convert_tokens_to_ids(["<turn|>", "<|tool_response>"])
    assert {*ends, renderer.tokenizer.eos_token_id} <= {*renderer.stop_ids}


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co", "Cc"], include_characters="\n"), max_size=12)
said = texts.map(lambda text: f" w{text}")
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("aBc"), inner, max_size=2),
    max_leaves=4,
)
scalars = st.fixed_dictionaries(
    {"type": st.sampled_from(["string", "integer", "boolean", "number"])},
    optional={"description": texts, "nullable": st.booleans(), "enum": st.lists(texts, max_size=2)},
)
schemas = st.recursive(
    scalars | st.just({"type": "object"}) | st.just({}),
    lambda inner: (
        st.fixed_dictionaries(
            {"type": st.just("array")},
            optional={"description": texts, "items": inner},
        )
        | st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from(["x", "Y", "items"]), inner, max_size=2)},
            optional={"required": st.just(["x"]), "description": texts},
        )
    ),
    max_leaves=4,
)
tools_ = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["f", "g"])},
        optional={
            "description": texts,
            "parameters": st.fixed_dictionaries(
                {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from("pQr"), schemas, max_size=3)},
                optional={"required": st.just(["p"])},
            ),
        },
    ).map(lambda function: {"type": "function", "function": function}),
    min_size=1,
    max_size=2,
)


@st.composite
def conversations(draw):
    messages = []
    if draw(st.booleans()):
        messages.append({"role": draw(st.sampled_from(["system", "developer"])), "content": draw(said)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(said)})
        for step in range(draw(st.integers(0, 2))):
            names = draw(st.lists(st.sampled_from("fg"), min_size=1, max_size=2))
            arguments = st.dictionaries(st.sampled_from("aBc"), values, max_size=2)
            calls = [
                {"id": f"{step}{n}", "type": "function", "function": {"name": name, "arguments": draw(arguments)}}
                for n, name in enumerate(names)
            ]
            reasons = {"reasoning_content": draw(said)} if draw(st.booleans()) else {}
            messages.append({"role": "assistant", "content": "", "tool_calls": calls, **reasons})
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": draw(said)} for call in calls]
        messages.append({"role": "assistant", "content": draw(said)})
        if draw(st.booleans()):
            messages[-1]["reasoning_content"] = draw(said)
    return messages


@settings(max_examples=150)
@given(conversations(), st.none() | tools_, st.sampled_from([None, True, False]), st.integers(0, 3))
def test_gemma4_is_the_official_revision_byte_for_byte(tokenizer4, messages, tools, thinking, left):
    official = _official("gemma4_v5")
    options = {} if thinking is None else {"enable_thinking": thinking}
    source = template_text(Path("gemma4")) if thinking is None else with_thinking(template_text(Path("gemma4")), thinking)
    part = messages[: max(1, len(messages) - left)]  # also prompts, and conversations that wait for a tool
    for generate in (False, True):
        common = {"tools": tools, "tokenize": False, "add_generation_prompt": generate}
        ours = tokenizer4.apply_chat_template(part, chat_template=source, **common)
        assert ours == tokenizer4.apply_chat_template(part, chat_template=official, **common, **options)


def test_gemma4_takes_results_inside_the_message_that_called(tokenizer4):
    # So llama.cpp rewrites tool turns for this family.
    results = [{"name": "f", "response": "sunny"}, {"response": {"b": 1, "A": [True]}}]
    called = {**CALL, "tool_responses": results}
    for messages in ([USER, called], [USER, called, SAID], [USER, {**called, "content": "A"}, USER]):
        ours, theirs = (
            tokenizer4.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)
            for source in (template_text(Path("gemma4")), _official("gemma4_v5"))
        )
        assert ours == theirs


def test_a_template_that_drops_a_thought_is_refused_and_one_that_drops_those_of_the_context_says_so(tokenizer4, renderers4):
    for messages in ([USER, THOUGHT], [USER, THOUGHT, USER, SAID]):
        with pytest.raises(DataError, match=r"leaves \$.messages\[1\].reasoning_content out"):
            Renderer(tokenizer4, _official("gemma4_v4")).render(messages)
    rendered = renderers4[None].render([USER, {**THOUGHT, "weight": 0}, USER, SAID])
    assert rendered.notes == ("the chat template leaves out reasoning_content",) and not rendered.earlier


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("messages", [[USER], [SYSTEM, USER, SAID], [USER, SAID, {**USER, "content": " é \n"}, SAID]])
def test_gemma3_is_the_official_one_byte_for_byte(tokenizer_dir, messages, generate):
    tokenizer = families.make("gemma3", tokenizer_dir)
    ours = Renderer(tokenizer, template_text(Path("gemma3")))
    assert ours.text(messages, generate=generate) == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generate
    )
    assert ours.text([SYSTEM, USER], generate=True) == "<bos><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\n"


def test_gemma3_refuses_what_it_has_no_form_for(tokenizer_dir):
    renderer = Renderer(families.make("gemma3", tokenizer_dir), template_text(Path("gemma3")))
    with pytest.raises(DataError, match="take turns"):
        renderer.render([USER, USER, SAID])
    with pytest.raises(DataError, match="leaves the tool declarations out"):
        renderer.render([USER, SAID], [TOOL])


def test_chatml_is_the_plain_form(tokenizer):
    renderer = Renderer(tokenizer, template_text(Path("chatml")))
    messages = [SYSTEM, USER, SAID, USER, {**SAID, "content": " two\n"}]
    for generate in (False, True):  # that of the tokenizer invents a system turn where there is none
        text = renderer.text(messages, generate=generate)
        assert text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    assert renderer.text([USER, SAID]) == "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    with pytest.raises(DataError, match=r"leaves .*tool_calls.* out"):
        renderer.render([USER, CALL, RESULT, SAID])


def test_shipped_templates_know_text_alone(tokenizer4):
    shown = [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "image"}]}]
    for name in ("gemma3", "gemma4"):
        with pytest.raises(Exception, match="text alone, found a part of type image"):
            tokenizer4.apply_chat_template(shown, chat_template=template_text(Path(name)), tokenize=False)
        parts = [{"role": "user", "content": [{"type": "text", "text": "U"}]}]
        source = template_text(Path(name))
        assert tokenizer4.apply_chat_template(parts, chat_template=source, tokenize=False) == (
            tokenizer4.apply_chat_template([USER], chat_template=source, tokenize=False)
        )


def test_a_name_is_one_of_ours_and_everything_else_a_file(tmp_path, tiny_dir):
    with pytest.raises(ModelError, match="no chat template of that name") as caught:
        template_text(Path("gemma5"))
    assert "chatml, gemma3, gemma4" in caught.value.hint
    with pytest.raises(ModelError, match=r"none.jinja: the chat template cannot be read"):
        template_text(tmp_path / "none.jinja")
    (tmp_path / "mine.jinja").write_text("x\n")
    assert template_text(tmp_path / "mine.jinja") == "x"
    named = load_recipe(write_recipe(tmp_path, tiny_dir, {"chat.template": "chatml"})).chat.template
    assert named == Path("chatml") and template_text(named).startswith("{#- ChatML") and (SHIPPED / "chatml.jinja").exists()
    filed = load_recipe(write_recipe(tmp_path, tiny_dir, {"chat.template": "mine.jinja"})).chat.template
    assert filed == tmp_path / "mine.jinja"


def test_the_switch_of_thinking_is_part_of_the_text(tokenizer4, tokenizer, tokenizer_dir):
    source = with_thinking(template_text(Path("gemma4")), True)
    asked = tokenizer4.apply_chat_template([USER], chat_template=source, tokenize=False, enable_thinking=False)
    assert asked.startswith("<bos><|turn>system\n<|think|>\n<turn|>\n")  # whoever passes the variable
    # Not told, the template does what it did; what that is stands in the text all the same.
    for name, by_default in (("gemma4", False), ("qwen3", True), ("llama3.1", None)):
        renderer = Renderer(families.make(name, tokenizer_dir))
        assert renderer.enable_thinking is by_default
        for told in ({}, {"enable_thinking": not by_default}):
            text = renderer.tokenizer.apply_chat_template([USER], chat_template=renderer.template, tokenize=False, **told)
            assert text == renderer.tokenizer.apply_chat_template([USER], tokenize=False)
        for told in (None, renderer.enable_thinking):  # as a run directory keeps it, it is opened again unchanged
            again = Renderer(renderer.tokenizer, renderer.template, told)
            assert (again.template, again.enable_thinking) == (renderer.template, renderer.enable_thinking)
    assert with_thinking(source, False) == with_thinking(template_text(Path("gemma4")), False)
    with pytest.raises(ModelError, match="no enable_thinking"):
        Renderer(tokenizer, enable_thinking=False)
