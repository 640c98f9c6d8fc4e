"""Templates whose prompt ends with a thinking block, closed or open, that a turn in the conversation has not."""

from pathlib import Path

import families
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat.render import Renderer
from tunesmith.chat.rendered import EACH_ALONE
from tunesmith.chat.template_choice import template_text
from tunesmith.errors import DataError, ModelError

USER, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"city": "Rome"}}}],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "sunny"}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}
EMPTY = "<|channel>thought\n<channel|>"
CUE = "{{- seen.cue if add_generation_prompt }}"
LARGE = "{%- if add_generation_prompt %}{{- seen.cue + (BLOCK if 'model' in seen.cue and not thinking else '') }}{%- endif %}"


@pytest.fixture(scope="module")
def large(tokenizer_dir):
    """The large variants' template: as the small ones', but for the block after the cue."""
    source = template_text(Path("gemma4"))
    assert source.endswith(CUE)
    source = source.removesuffix(CUE) + LARGE.replace("BLOCK", repr(EMPTY))
    tokenizer = families.make("gemma4", tokenizer_dir)
    return {switch: Renderer(tokenizer, source, switch) for switch in (None, True)}


@pytest.fixture(scope="module")
def qwen(tokenizer_dir):
    return Renderer(families.make("qwen3", tokenizer_dir), enable_thinking=False)


def _parts(renderer, messages, tools=None):
    """(context, taught) of each document, which has one supervised turn."""
    return [
        tuple("".join(piece.text for piece in pieces if piece.supervised is taught) for taught in (False, True))
        for pieces in renderer.documents(messages, tools)
    ]


def test_one_supervised_turn_is_trained_as_it_is_asked(large, qwen):
    for renderer, block, end in ((large[None], EMPTY, "<turn|>"), (qwen, "<think>\n\n</think>\n\n", "<|im_end|>")):
        for messages in ([USER, SAID], [USER, {**SAID, "weight": 0}, USER, SAID], [USER, {**SAID, "content": "a < b"}]):
            prompt = renderer.text(messages[:-1], generate=True)
            assert prompt.endswith(block)
            rendered = renderer.render(messages)
            expected = renderer.tokenizer.encode(f"{prompt}{messages[-1]['content']}{end}\n", add_special_tokens=False)
            ids = renderer.prompt_ids(messages[:-1])
            assert rendered.ids == expected and rendered.ids[: len(ids)] == ids and rendered.notes == ()
            [(context, said)] = _parts(renderer, messages)
            assert context == prompt + "\n" and said == f"{messages[-1]['content']}{end}"
            assert not any(rendered.supervised[: len(ids)]) and rendered.supervised[len(ids)]


def test_several_supervised_turns_are_each_asked_behind_the_block_and_remembered_without_it(large, qwen):
    for renderer, block in ((large[None], EMPTY), (qwen, "<think>\n\n</think>\n\n")):
        for last in ("a", "a < b"):  # the quick way and the long one
            messages = [USER, SAID, USER, {**SAID, "content": last}]
            prompts = [renderer.text(messages[:n], generate=True) for n in (1, 3)]
            assert [context for context, _ in _parts(renderer, messages)] == [prompt + "\n" for prompt in prompts]
            assert [prompt.count(block) for prompt in prompts] == [1, 1]
            rendered = renderer.render(messages)
            assert rendered.notes == (EACH_ALONE,)
            assert [document.ids for document in rendered.documents] == [
                [i for piece in pieces for i in piece.ids] for pieces in renderer.documents(messages)
            ]


def test_a_call_stands_behind_the_block_and_what_follows_the_result_does_not(large, qwen):
    messages = [USER, CALL, RESULT, SAID]
    (first, call), (second, said) = _parts(large[None], messages, [TOOL])
    assert first.endswith(f"<|turn>model\n{EMPTY}") and call.startswith("<|tool_call>call:f{")
    assert EMPTY not in second and second.endswith('response:f{value:<|"|>sunny<|"|>}<tool_response|>\n') and said == "a<turn|>"
    (first, call), (second, said) = _parts(qwen, messages, [TOOL])
    assert first.endswith("assistant\n<think>\n\n</think>\n\n\n") and call.startswith("<tool_call>")
    assert second.endswith("<think>\n\n</think>\n\n\n") and second.count("<think>") == 1 and said == "a<|im_end|>"


def test_a_thought_is_refused_where_thinking_is_off_and_taught_where_it_is_on(large, qwen):
    messages = [USER, {**SAID, "reasoning_content": "why"}]
    for renderer in (large[None], qwen):
        with pytest.raises(DataError, match=r"\$.messages\[1\] has reasoning_content.*thinking switched off") as caught:
            renderer.render(messages)
        assert "chat.enable_thinking: true" in caught.value.hint
    [part, *_] = _parts(large[True], messages)
    assert part[0].endswith("<|turn>model\n\n") and part[1] == "<|channel>thought\nwhy\n<channel|>a<turn|>"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["a", "b <c", " d\n"]), st.booleans()), min_size=1, max_size=4))
def test_whatever_is_taught_nothing_else_changes(large, turns):
    renderer = large[None]
    messages = [m for said, weight in turns for m in (USER, {"role": "assistant", "content": said, "weight": int(weight)})]
    if not any(weight for _, weight in turns):
        return
    taught = [n for n, message in enumerate(messages) if message.get("weight")]
    parts = _parts(renderer, messages)
    assert [said for _, said in parts] == [f"{messages[n]['content'].strip()}<turn|>" for n in taught]
    # Each is asked as the template asks it; after it stands at most what follows in the conversation.
    prompts = [renderer.text(messages[:n], generate=True) for n in taught]
    assert all(
        context.startswith(prompt) and prompt.endswith(EMPTY) for (context, _), prompt in zip(parts, prompts, strict=True)
    )
    assert all(context.count(EMPTY) == 1 for context, _ in parts)
    rendered = renderer.render(messages)
    assert rendered.notes == ((EACH_ALONE,) if len(taught) > 1 else ())
    for document, n in zip(rendered.documents, taught, strict=True):
        prompt = renderer.prompt_ids(messages[:n])
        assert document.ids[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("cue", "head"),
    [
        ("<|im_start|>assistant<think></think>", "<|im_start|>assistant\n"),  # another head
        ("<|im_start|><think>", "<|fim_prefix|>"),  # the cue is the two tokens
        ("<|im_start|>assistant\n<|fim_prefix|>", "<|im_start|>assistant\n"),  # a tag that nothing closes
        ("<|im_start|>assistant\n<think>", "<|im_start|>assistant\n</think>"),  # closed already
    ],
)
def test_other_differences_between_prompt_and_turn_are_refused(tokenizer_dir, cue, head):
    with pytest.raises(ModelError, match="otherwise than it asks for it"):
        Renderer(families.make("qwen3", tokenizer_dir), _asks(cue, head))


def _asks(cue, head):
    turns = "{% for m in messages %}{{ HEAD if m.role == 'assistant' else '<|im_start|>user\n' }}{{ m.content }}<|im_end|>\n"
    return (turns + "{% endfor %}{{ CUE if add_generation_prompt }}").replace("CUE", repr(cue)).replace("HEAD", repr(head))


@pytest.mark.parametrize(("opened", "closed"), [("<think>\n", "\n</think>\n\n"), ("<think>", "</think>")])
def test_an_open_tag_is_answered_with_the_reasoning_and_closed(tokenizer_dir, opened, closed):
    """DeepSeek R1 and its kin: the template asks for a thought, and writes answers alone."""
    head = "<|im_start|>assistant\n"
    renderer = Renderer(families.make("qwen3", tokenizer_dir), _asks(head + opened, head))
    thought = {**SAID, "reasoning_content": "why <think> 2 </think>"}
    for last in ("a", "a < b"):
        rows = [[USER, {**thought, "content": last}], [USER, {**SAID, "content": last}]]
        rows.append([*rows[0], *rows[1]])
        documents = [renderer.documents(row) for row in rows]
        assert [len(document) for document in documents] == [1, 1, 2]
        for row, pieces in zip((rows[0], rows[1], rows[2][:2], rows[2]), (p for d in documents for p in d), strict=True):
            text = "".join(piece.text for piece in pieces).removesuffix("\n")
            asked = renderer.text(row[:-1], generate=True)
            said = f"{row[-1].get('reasoning_content', '')}{closed}{row[-1]['content']}<|im_end|>"
            assert text == asked + said and asked.endswith(opened)
            assert "".join(piece.text for piece in pieces if piece.supervised) == said
            # A tag in the reasoning is text; the two tokens are the prompt's and the one that closes it.
            assert sum(piece.control and "think" in piece.text for piece in pieces) == 2
        for row, document in zip(rows, documents, strict=True):
            assert [d.ids for d in renderer.render(row).documents] == [
                [i for p in pieces for i in p.ids] for pieces in document
            ]
    [note] = renderer.render([USER, SAID]).notes
    assert note == f"the prompt opens {opened!r}; an answer without reasoning_content closes it at once, with {closed!r}"
    assert renderer.render([USER, {**thought, "reasoning_content": "why"}]).notes == ()
