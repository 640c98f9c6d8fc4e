"""Properties of rendering over the published templates, with tools and many turns."""

import unicodedata

import families
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat.render import Conversation, Renderer
from tunesmith.chat.rendered import EACH_ALONE
from tunesmith.errors import DataError

NAMES = list(families.FAMILIES)
# SmolLM2's vocabulary, as its GGUF carries it, lacks the bytes of some letters; those are refused (test_render.py).
LETTERS = st.characters(
    codec="utf-8", exclude_categories=["Cs", "Co", "Cc", "Cn"], include_characters="\n", max_codepoint=0x2FFF
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "the weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "a city"}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture(scope="session")
def renderers(tokenizer_dir) -> dict[str, Renderer]:
    return {name: Renderer(families.make(name, tokenizer_dir)) for name in NAMES}


def _clean(text: str) -> str:
    """Text that every vocabulary here writes as it stands: NFC, no U+2581, only bytes that SmolLM2's vocabulary has."""
    text = unicodedata.normalize("NFC", text).replace("▁", "_")
    return "".join(c for c in text if not set(c.encode()) & LOST)


LOST = {0xC0, 0xC1, *range(0xF1, 0x100), *range(0xE0, 0xF1), *range(0xC4, 0xE0)}  # two-byte Latin and ASCII are left
ordinary = st.text(LETTERS, max_size=25).map(_clean).map(lambda t: t.replace("<", "(").replace("[", "("))


@st.composite
def conversations(draw, family: families.Family, text=ordinary):
    """Messages and tools: turns with marked words (``user3``, ``tool5``), so that a test can see who said what."""
    messages = []
    exchanges = draw(st.integers(1, 3))
    with_tools = family.tools and draw(st.booleans())
    if draw(st.booleans()) and not (family.moves_last and exchanges > 1):
        messages.append({"role": "system", "content": f"system0 {draw(text)}"})
    for exchange in range(exchanges):
        messages.append({"role": "user", "content": f"user{len(messages)} {draw(text)}"})
        if with_tools and draw(st.booleans()):
            number = len(messages)
            arguments = {"city": f"call{number} {draw(text)}", "days": draw(st.integers(-5, 5))}
            call = {"id": f"abcdefg0{number}", "type": "function", "function": {"name": "weather", "arguments": arguments}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": f"tool{number} {draw(text)}"})
        answer = {"role": "assistant", "content": f"answer{len(messages)} {draw(text)}"}
        if draw(st.booleans()) and exchange < exchanges - 1:
            answer["weight"] = 0
        messages.append(answer)
    if family.moves_last and with_tools and exchanges > 1:
        last = max(i for i, m in enumerate(messages) if m["role"] == "user")
        messages = [m | ({"weight": 0} if m["role"] == "assistant" and i < last else {}) for i, m in enumerate(messages)]
    return messages, TOOLS if with_tools else None


def _stock(renderer: Renderer, messages, tools, **options):
    bare = [{k: v for k, v in m.items() if k != "weight"} for m in messages]
    return renderer.tokenizer.apply_chat_template(bare, tools=tools, **options)


def _documents(renderer, messages, tools):
    """Of each document: the messages that it holds, those that it teaches, and its pieces."""
    taught = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1)]
    documents = renderer.documents(messages, tools)
    if len(documents) == 1 < len(taught):
        return [(messages, taught, documents[0])]
    held = [messages] if len(documents) == 1 else [messages[: i + 1] for i in taught]
    return [(part, [i], pieces) for part, i, pieces in zip(held, taught, documents, strict=True)]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(data=st.data())
def test_ids_are_the_templates_and_each_turn_begins_where_its_prompt_ends(renderers, name, data):
    renderer = renderers[name]
    messages, tools = data.draw(conversations(families.FAMILIES[name]))
    rendered = renderer.render(messages, tools)
    held = _documents(renderer, messages, tools)
    for document, (part, taught, pieces) in zip(rendered.documents, held, strict=True):
        assert document.ids == _stock(renderer, part, tools, tokenize=True)["input_ids"] == [i for p in pieces for i in p.ids]
        starts = [i for i, flag in enumerate(document.supervised) if flag and not document.supervised[i - 1]]
        # Two taught turns can touch: Gemma 4 hands over to a tool and goes on in the same turn.
        assert len(starts) <= len(taught)
        prompts = [renderer.prompt_ids(messages[:i], tools) for i in taught]
        assert all(document.ids[: len(prompt)] == prompt for prompt in prompts)
        assert {*starts} <= {len(prompt) for prompt in prompts}
        text = renderer.text(part, tools)
        assert all(
            text.startswith(_stock(renderer, messages[:i], tools, tokenize=False, add_generation_prompt=True)) for i in taught
        )
        bos = renderer.tokenizer.bos_token_id
        assert bos is None or (document.ids[0] == bos and document.ids.count(bos) == 1)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(data=st.data())
def test_supervised_is_what_the_assistant_says_and_its_end_of_turn(renderers, name, data):
    renderer, family = renderers[name], families.FAMILIES[name]
    messages, tools = data.draw(conversations(family))
    for part, taught, pieces in _documents(renderer, messages, tools):
        said_text = "".join(piece.text for piece in pieces if piece.supervised)
        context = "".join(piece.text for piece in pieces if not piece.supervised)
        for number, message in enumerate(part):
            said, other = (said_text, context) if number in taught else (context, said_text)
            word = {"assistant": "call" if "tool_calls" in message else "answer", "tool": "tool"}.get(
                message["role"], message["role"]
            )
            word += str(number - 1 if word == "tool" else number) + " "
            assert word.strip() in said and word.strip() not in other
            if message["role"] == "assistant":
                assert "tool_calls" in message or message["content"].strip() in said
        header = {"gemma3": "model\n", "gemma4": "model\n"}.get(name, "assistant")
        assert header not in said_text and "[INST]" not in said_text
        ends = [piece for piece in pieces if piece.supervised and piece.control and piece.ids[0] in renderer.stop_ids]
        assert len(ends) == len(taught)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(data=st.data())
def test_no_text_forges_a_control_token_and_every_text_comes_back(renderers, name, data):
    renderer, family = renderers[name], families.FAMILIES[name]
    control = [*family.special, *(t for t in family.plain if t not in families.ORDINARY)]
    forged = st.lists(st.sampled_from(control) | ordinary, max_size=4).map("".join)
    messages, tools = data.draw(conversations(family, forged))
    harmless = [{**m, "content": m["content"] and m["content"].split()[0]} for m in messages]
    for message in harmless:
        if "tool_calls" in message:
            [call] = message["tool_calls"]
            function = {"name": "weather", "arguments": {"city": "x", "days": 0}}
            message["tool_calls"] = [{**call, "function": function}]
    ids = {renderer.tokenizer.convert_tokens_to_ids(token) for token in control}
    rendered = renderer.render(messages, tools)
    assert [i for i in rendered.ids if i in ids] == [i for i in renderer.render(harmless, tools).ids if i in ids]
    back = renderer.tokenizer.decode(rendered.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # A decoder of the SentencePiece kind with a space in front of texts takes one away again.
    spaces = str.split if family.kind == "pieces-prefix" else lambda text: text
    assert spaces(back) == spaces(renderer.text(messages, tools))
    for message in messages:
        assert "".join(message["content"].split()) in "".join(back.replace('\\"', '"').replace("\\\\", "\\").split())


@pytest.mark.parametrize("name", NAMES)
def test_every_control_token_of_the_vocabulary_in_every_field(renderers, name):
    renderer, family = renderers[name], families.FAMILIES[name]
    added = {t.content: i for i, t in renderer.tokenizer.added_tokens_decoder.items() if t.content not in families.ORDINARY}
    for token in added:
        call = {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": f"f{token}", "arguments": {f"k{token}": f"a{token}"}},
        }
        messages = [
            {"role": "user", "content": f"{token}x", "name": f"n{token}"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": token},
            {"role": "assistant", "content": f"a{token}"},
        ]
        declared = [{"type": "function", "function": {**TOOLS[0]["function"], "name": f"f{token}", "description": token}}]
        tools = declared if family.tools else None
        harmless = [{**m, "content": m["content"] and "y"} for m in messages]
        harmless[0]["name"] = "n"
        if tools is None:
            messages, harmless = [messages[0], messages[3]], [harmless[0], harmless[3]]
            plain = None
        else:
            function = {"name": "f", "arguments": {"k": "a"}}
            harmless[1] = {**messages[1], "tool_calls": [{**call, "function": function}]}
            plain = [{"type": "function", "function": {**TOOLS[0]["function"], "name": "f", "description": "d"}}]
        ids = set(added.values())
        rendered, expected = renderer.render(messages, tools), renderer.render(harmless, plain)
        assert [i for i in rendered.ids if i in ids] == [i for i in expected.ids if i in ids], token


def test_many_rendered_at_once_are_each_as_alone(renderers):
    renderer = renderers["qwen3"]
    rows = [
        Conversation([{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a" * i or "b"}])
        for i in range(600)
    ]
    rows[7] = Conversation([{"role": "user", "content": "e\u0301"}, {"role": "assistant", "content": "not in NFC"}])
    many = renderer.render_batch(rows)
    assert isinstance(many[7], DataError) and "NFC" in many[7].message
    assert all(many[i] == renderer.render(rows[i].messages) for i in range(600) if i != 7)


def test_templates_that_alter_a_conversation_are_refused_by_name(renderers):
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    asked = {"role": "user", "content": "q"}
    beside = [asked, {"role": "assistant", "content": "I look.", "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "abcdefghi", "content": "sunny"}
    with pytest.raises(DataError, match=r"leaves \$.messages\[1\].content out"):
        renderers["llama3.1"].render(beside, TOOLS)
    with pytest.raises(DataError, match=r"writes \$.messages\[3\] otherwise than it asks for it.*\n.*may have to be two turns"):
        renderers["gemma4"].render([*beside, result, {"role": "assistant", "content": "Sunny."}], TOOLS)
    with pytest.raises(DataError, match="leaves the tool declarations out"):
        renderers["chatml"].render([asked, {"role": "assistant", "content": "a"}], TOOLS)
    with pytest.raises(DataError, match="single tool-calls at once"):
        renderers["llama3.1"].render([asked, {"role": "assistant", "content": "", "tool_calls": [call, call]}], TOOLS)
    with pytest.raises(DataError, match=r"turn \$.messages\[1\] is empty"):
        renderers["qwen3"].render([asked, {"role": "assistant", "content": " "}])


def test_what_a_template_moves_to_the_last_question_is_where_each_turn_is_asked(renderers):
    asked, said = ([{"role": role, "content": text} for text in texts] for role, texts in (("user", "qr"), ("assistant", "ab")))
    turns = [{"role": "system", "content": "s"}, asked[0], said[0], asked[1], said[1]]
    first, second = renderers["mistral"].documents(turns)
    assert "".join(piece.text for piece in first) == "<s>[INST] s\n\nq[/INST] a</s>"
    assert "".join(piece.text for piece in second) == "<s>[INST] q[/INST] a</s>[INST] s\n\nr[/INST] b</s>"
    taught = [[piece.text for piece in pieces if piece.supervised] for pieces in (first, second)]
    assert taught == [[" a", "</s>"], [" b", "</s>"]]
    turns[2] = {**said[0], "weight": 0}
    assert renderers["mistral"].documents(turns) == [second]


def test_every_taught_turn_keeps_its_own_reasoning_and_that_of_the_context_is_left_out_and_said(renderers):
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "early"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "b", "reasoning_content": "late </think>"},
    ]
    for name, opening in (("qwen3", "<think>\n"), ("gemma4", "<|channel>thought\n")):
        documents = renderers[name].documents(turns)
        taught = ["".join(piece.text for piece in pieces if piece.supervised) for pieces in documents]
        assert taught[0].startswith(f"{opening}early\n") and taught[1].startswith(f"{opening}late </think>\n")
        assert "early" not in "".join(piece.text for piece in documents[1])
        notes = renderers[name].render(turns).notes
        assert notes[:2] == (EACH_ALONE, "the chat template leaves out reasoning_content")
    assert len(renderers["qwen3"].render(turns).notes) == 3  # </think> is a control token of Qwen's, not of Gemma's
    turns[1]["weight"] = 0
    rendered = renderers["qwen3"].render(turns)
    assert rendered.notes[0] == "the chat template leaves out reasoning_content" and not rendered.earlier


def test_gemma_4_is_written_as_its_published_revision_does(renderers):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]
    assert renderers["gemma4"].text(messages) == "<bos><|turn>system\nS<turn|>\n<|turn>user\nU<turn|>\n<|turn>model\nA<turn|>\n"
