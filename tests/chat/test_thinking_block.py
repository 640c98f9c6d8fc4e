"""Templates whose prompt ends with an empty thinking block that a turn in the conversation has not."""

from pathlib import Path

import families
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.chat.render import Renderer
from tunesmith.chat.template_choice import template_text
from tunesmith.errors import DataError

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
    """(context, taught) of each supervised stretch."""
    parts = [["", ""]]
    for piece in renderer.pieces(messages, tools):
        if parts[-1][1] and not piece.supervised:
            parts.append(["", ""])
        parts[-1][piece.supervised] += piece.text
    return [tuple(part) for part in parts]


def test_one_supervised_turn_is_trained_as_it_is_asked(large, qwen):
    for renderer, block, end in ((large[None], EMPTY, "<turn|>"), (qwen, "<think>\n\n</think>\n\n", "<|im_end|>")):
        for messages in ([USER, SAID], [USER, {**SAID, "weight": 0}, USER, SAID], [USER, {**SAID, "content": "a < b"}]):
            prompt = renderer.text(messages[:-1], generate=True)
            assert prompt.endswith(block)
            rendered = renderer.render(messages)
            expected = renderer.tokenizer.encode(f"{prompt}{messages[-1]['content']}{end}\n", add_special_tokens=False)
            ids = renderer.prompt_ids(messages[:-1])
            assert rendered.ids == expected and rendered.ids[: len(ids)] == ids and rendered.notes == ()
            assert _parts(renderer, messages)[0] == (prompt, f"{messages[-1]['content']}{end}")
            assert not any(rendered.supervised[: len(ids)]) and rendered.supervised[len(ids)]


def test_several_supervised_turns_each_stand_behind_the_block_and_the_row_says_so(large, qwen):
    for renderer, block in ((large[None], EMPTY), (qwen, "<think>\n\n</think>\n\n")):
        for last in ("a", "a < b"):  # the quick way and the long one
            messages = [USER, SAID, USER, {**SAID, "content": last}]
            parts = [part for part in _parts(renderer, messages) if part[1]]
            assert [context.endswith(block) for context, _ in parts] == [True, True]
            rendered = renderer.render(messages)
            assert len(rendered.notes) == 1 and "stands before every supervised turn" in rendered.notes[0]
            assert rendered.ids == [i for piece in renderer.pieces(messages) for i in piece.ids]


def test_a_call_stands_behind_the_block_and_what_follows_the_result_does_not(large, qwen):
    messages = [USER, CALL, RESULT, SAID]
    first, second, *_ = _parts(large[None], messages, [TOOL])
    assert first[0].endswith(f"<|turn>model\n{EMPTY}") and first[1].startswith("<|tool_call>call:f{")
    assert second == ('response:f{value:<|"|>sunny<|"|>}<tool_response|>', "a<turn|>")
    first, second, *_ = _parts(qwen, messages, [TOOL])
    assert first[0].endswith("assistant\n<think>\n\n</think>\n\n") and first[1].startswith("<tool_call>")
    assert second[0].endswith("<think>\n\n</think>\n\n") and second[1] == "a<|im_end|>"


def test_a_thought_is_refused_where_thinking_is_off_and_taught_where_it_is_on(large, qwen):
    messages = [USER, {**SAID, "reasoning_content": "why"}]
    for renderer in (large[None], qwen):
        with pytest.raises(DataError, match=r"\$.messages\[1\] has reasoning_content.*thinking switched off") as caught:
            renderer.render(messages)
        assert "chat.enable_thinking: true" in caught.value.hint
    [part, *_] = _parts(large[True], messages)
    assert part[0].endswith("<|turn>model\n") and part[1] == "<|channel>thought\nwhy\n<channel|>a<turn|>"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["a", "b <c", " d\n"]), st.booleans()), min_size=1, max_size=4))
def test_whatever_is_taught_nothing_else_changes(large, turns):
    renderer = large[None]
    messages = [m for said, weight in turns for m in (USER, {"role": "assistant", "content": said, "weight": int(weight)})]
    if not any(weight for _, weight in turns):
        return
    taught = [(context, said) for context, said in _parts(renderer, messages) if said]
    assert [said for _, said in taught] == [f"{said.strip()}<turn|>" for said, weight in turns if weight]
    assert all(context.endswith(EMPTY) for context, _ in taught)
    whole = "".join(piece.text for piece in renderer.pieces(messages))
    assert whole.count(EMPTY) == len(taught) and whole.replace(EMPTY, "") == renderer.text(messages)
    rendered = renderer.render(messages)
    assert bool(rendered.notes) == (len(taught) > 1)
    if len(taught) == 1:
        last = max(n for n, m in enumerate(messages) if m.get("weight"))
        prompt = renderer.prompt_ids(messages[:last])
        assert rendered.ids[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("cue", "head"),
    [
        ("<|im_start|>assistant\n<think>\n", "<|im_start|>assistant\n"),  # opened, not closed: the answer would be a thought
        ("<|im_start|>assistant<think></think>", "<|im_start|>assistant\n"),  # another head
        ("<|im_start|><think>", "<|fim_prefix|>"),  # the cue is the two tokens
    ],
)
def test_other_differences_between_prompt_and_turn_are_refused(tokenizer_dir, cue, head):
    source = (
        "{% for m in messages %}{{ HEAD if m.role == 'assistant' and not loop.last else CUE if m.role == 'assistant' else "
        "'<|im_start|>user\n' }}{{ m.content }}<|im_end|>\n{% endfor %}{{ CUE if add_generation_prompt }}"
    )
    source = source.replace("CUE", repr(cue)).replace("HEAD", repr(head))
    renderer = Renderer(families.make("qwen3", tokenizer_dir), source)
    assert renderer.render([USER, SAID]).ids
    with pytest.raises(DataError, match="rewrites earlier turns"):
        renderer.render([USER, SAID, USER, SAID])
