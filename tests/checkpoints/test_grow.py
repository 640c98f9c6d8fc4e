"""A base with new tokens: an ordinary model directory, whose new rows are the mean of those in use."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tunesmith.checkpoints.grow import grow
from tunesmith.checkpoints.hf import Checkpoint
from tunesmith.engines.base import BaseModel
from tunesmith.errors import ModelError
from tunesmith.recipe import NewToken

TOKENS = (NewToken(text="<|tool|>"), NewToken(text="wug", special=False))


@pytest.mark.parametrize("spare", [-1, 0, 1, 40])
def test_rows_are_taken_from_the_spare_ones_and_then_added(tiny_dir, tmp_path, spare):
    base = tmp_path / "base"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_dir)
    first = len(AutoTokenizer.from_pretrained(tiny_dir))
    model.resize_token_embeddings(first + spare)
    model.save_pretrained(base)
    for file in tiny_dir.iterdir():
        if not (base / file.name).exists():
            shutil.copy(file, base / file.name)
    grown = grow(base, TOKENS)
    assert (grown.first, grown.texts, grown.known) == (first, ("<|tool|>", "wug"), ())
    stock: PreTrainedModel = AutoModelForCausalLM.from_pretrained(grown.directory)
    table = stock.get_parameter("model.embed_tokens.weight").detach()
    assert stock.config.vocab_size == len(table) == first + max(spare, 2)
    assert torch.equal(table, Checkpoint(grown.directory).read("model.embed_tokens.weight"))
    before = model.get_parameter("model.embed_tokens.weight").detach()
    used = min(first, len(before))
    assert torch.equal(table[:used], before[:used]) and torch.equal(table[first + 2 :], before[first + 2 :])
    torch.testing.assert_close(table[used : first + 2], before[:used].mean(0).expand(first + 2 - used, -1))
    assert AutoTokenizer.from_pretrained(grown.directory).convert_tokens_to_ids(["<|tool|>", "wug"]) == [first, first + 1]
    weights = [file for file in grown.directory.iterdir() if file.suffix == ".safetensors" and not file.is_symlink()]
    assert [file.name for file in weights] == ["model-new-rows.safetensors"]  # the tables alone are written


def test_a_token_of_the_template_is_text_in_a_message_and_a_word_is_a_token(tiny_dir):
    base = BaseModel(model=str(tiny_dir), new_tokens=TOKENS)
    (row,) = base.render(
        [{"messages": [{"role": "user", "content": "a <|tool|> wug"}, {"role": "assistant", "content": "wug!"}]}]
    )
    first = base.grown.first
    ids = list(row.ids)
    assert ids.count(first) == 0 and ids.count(first + 1) == 2


def test_tokens_that_are_there_are_said_and_not_added(tiny_dir, talk):
    assert grow(tiny_dir, (NewToken(text="<|im_end|>"),)).directory == tiny_dir
    assert "the tokenizer has <|im_end|> already" in talk()
    assert grow(tiny_dir, (NewToken(text="<|im_end|>"), *TOKENS)).texts == ("<|tool|>", "wug")


def test_what_gets_no_new_tokens_is_refused(tiny_dir, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_dir, base)
    (base / "tokenizer.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(ModelError, match=r"needs tokenizer\.json"):
        grow(base, TOKENS)
