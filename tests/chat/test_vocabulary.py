import json

import families
import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from tunesmith.chat.render import Renderer
from tunesmith.errors import DataError


def test_line_breaks_and_html_tags_are_text_and_masks_are_control(tokenizer_dir):
    tokenizer = families.make("gemma3", tokenizer_dir)
    renderer = Renderer(tokenizer)
    said = "a\n\nb <b>x</b>\nc"
    ids = renderer.render([{"role": "user", "content": said}, {"role": "assistant", "content": said}]).ids
    stock = tokenizer.apply_chat_template(
        [{"role": "user", "content": said}, {"role": "assistant", "content": said}], tokenize=True
    )
    assert ids == stock["input_ids"] and tokenizer.convert_tokens_to_ids("\n\n") in ids
    for token in ("<mask>", "<unused5>"):
        assert tokenizer.convert_tokens_to_ids(token) not in renderer.prompt_ids([{"role": "user", "content": f"a{token}"}])


def _tokenizer(tokenizer_dir, **changes):
    description = json.loads(families.make("qwen2.5", tokenizer_dir).backend_tokenizer.to_str())
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description | changes)), eos_token="<|im_end|>"
    )
    made.chat_template = families._template("qwen2_5")
    return made


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        {"type": "Replace", "pattern": {"String": "\r\n"}, "content": "\n"},
    ],
)
def test_a_normaliser_that_collapses_ascii_white_space_is_noticed(tokenizer_dir, normalizer):
    renderer = Renderer(_tokenizer(tokenizer_dir, normalizer=normalizer))
    with pytest.raises(DataError, match="the tokenizer rewrites"):
        renderer.render([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a  b\r\nc"}])


def test_a_metaspace_without_normaliser_loses_u2581_and_says_so(tokenizer_dir):
    description = json.loads(families.make("mistral", tokenizer_dir).backend_tokenizer.to_str())
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    description |= {"normalizer": None, "pre_tokenizer": metaspace}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)), bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = families._template("mistral")
    with pytest.raises(DataError, match="U\\+2581"):
        Renderer(tokenizer).render([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a▁b"}])


def test_control_tokens_that_swallow_white_space_give_the_stock_ids_and_all_stops(tokenizer_dir):
    tokenizer = families.make("llama3", tokenizer_dir)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(t, rstrip=True, normalized=False) for t in ("<|user|>", "<|a|>", "<|end|>")]}
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|a|>' }}\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|a|>\n{% else %}<|end_of_text|>{% endif %}"
    )
    renderer = Renderer(tokenizer)
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"  Hello {n}"} for n in range(4)]
    rendered = renderer.render(turns)
    assert rendered.ids == tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
    taught = [piece.text for piece in renderer.pieces(turns) if piece.supervised]
    assert taught == ["Hello 1", "<|end|>", "Hello 3", "<|end|>", "<|end_of_text|>"]
    assert set(tokenizer.convert_tokens_to_ids(["<|end|>", "<|end_of_text|>"])) <= set(renderer.stop_ids)
