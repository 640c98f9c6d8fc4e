import families
import pytest

from tunesmith.chat.fit_template import check_template
from tunesmith.chat.render import Renderer
from tunesmith.errors import ModelError


@pytest.mark.parametrize(
    ("name", "bos", "end"),
    [
        ("chatml", "has no beginning-of-text token", "<|im_end|>"),
        ("llama3.1", "<|begin_of_text|> once, first", "<|eot_id|>"),
        ("qwen3", "has no beginning-of-text token", "<|im_end|>"),
        ("gemma3", "<bos> once, first", "<end_of_turn>"),
        ("gemma4", "<bos> once, first", "<turn|>"),
        ("mistral", "<s> once, first", "</s>"),
    ],
)
def test_a_template_fits_its_own_tokenizer(tokenizer_dir, name, bos, end):
    renderer = Renderer(families.make(name, tokenizer_dir))
    found = check_template(renderer, len(renderer.tokenizer))
    assert found[-2].endswith(bos) and found[-1] == f"{end} ends a supervised turn, and is trained on"


def test_a_token_that_begins_texts_and_turns_alike_is_no_doubled_beginning(tokenizer):
    assert tokenizer.bos_token == "<|im_start|>"
    assert check_template(Renderer(tokenizer))[1] == "<|im_start|> begins every turn"


def test_what_the_template_writes_and_the_tokenizer_does_not_know_is_named(tokenizer_dir):
    tokenizer = families.make("gemma4", tokenizer_dir)
    for old, new, told in (
        ("<|turn>", "<|start>", "'<|start>', which is . tokens of this tokenizer"),  # on every row
        ("<|tool_call>", "<|call>", "'<|call>', which is . tokens of this tokenizer"),  # on rows with calls alone
    ):
        renderer = Renderer(tokenizer, tokenizer.chat_template.replace(old, new))
        with pytest.raises(ModelError, match=told.replace("|", r"\|")):
            check_template(renderer)


def test_a_token_without_a_row_in_the_embedding_is_named(tokenizer_dir):
    renderer = Renderer(families.make("gemma4", tokenizer_dir))
    first = renderer.tokenizer.convert_tokens_to_ids("<|turn>")
    with pytest.raises(ModelError, match=f"embedding has {first} rows"):
        check_template(renderer, first)


def test_a_beginning_of_text_stands_once_and_first_or_not_at_all(tokenizer_dir):
    tokenizer = families.make("gemma3", tokenizer_dir)
    source = tokenizer.chat_template
    assert "{{ bos_token }}" in source
    renderer = Renderer(tokenizer, source.replace("{{ bos_token }}", ""))
    assert check_template(renderer)[1] == "no <bos> is written"
    for wrong in (source.replace("{{ bos_token }}", "x{{ bos_token }}"), source.replace("{{ bos_token }}", "<bos>x<bos>")):
        with pytest.raises(ModelError, match="times in a row, not once and first"):
            check_template(Renderer(tokenizer, wrong))
