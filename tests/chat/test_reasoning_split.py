"""Reasoning that was split from a text is rendered as the model's own template writes it; plain texts say what they hold."""

import families
import pytest

from tunesmith.chat.render import Renderer
from tunesmith.data.reasoning import settled

USER = {"role": "user", "content": "What is it?"}
TEXTS = (
    "<think>\nIt has a mast,\nso a boat.\n</think>\n\nA boat.",
    "It has a mast.\n</think>\n\nA boat.",
    "<think>\n\n</think>\n\nYes.",
)


@pytest.fixture(scope="module")
def qwen3(tokenizer_dir):
    return families.make("qwen3", tokenizer_dir)


@pytest.mark.parametrize("text", TEXTS)
def test_split_reasoning_is_what_the_stock_template_makes_of_the_text(qwen3, text):
    written = [USER, {"role": "assistant", "content": text}]
    messages, split, _ = settled(written, "split")
    rendered = Renderer(qwen3).render(messages)
    assert split == 1
    assert rendered.ids == qwen3.apply_chat_template(written, tokenize=True, return_dict=False)
    supervised = [token for token, taught in zip(rendered.ids, rendered.supervised, strict=True) if taught]
    assert qwen3.convert_tokens_to_ids("<think>") in supervised


def test_a_plain_text_says_that_its_control_tokens_are_letters(qwen3):
    renderer = Renderer(qwen3)
    texts = {"<|im_start|>user": ("text that looks like a control token is encoded as plain text",), "an oak": ()}
    assert {text: renderer.render([{"role": "assistant", "content": text}], kind="text").notes for text in texts} == texts
