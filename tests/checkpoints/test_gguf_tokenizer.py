"""The tokenizer of a GGUF file beside llama.cpp's own reading of the same file."""

import json

import pytest

from shared import GGUF
from tunesmith.checkpoints import gguf_tokenizer
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_tokenizer import load_gguf_tokenizer
from tunesmith.engines.llama_model import LlamaModel
from tunesmith.errors import ModelError

TEXTS = [" ½", "12 ½ Main St", "x² ٣ Ⅳ", "1990s, 3.14  and\n\n 007", "don't I'LL", "naïve ß 漢字かな한글", "q\u0303 🇪🇺\t end "]


def test_digits_of_every_script_are_cut_as_llama_cpp_cuts_them():
    tokenizer = load_gguf_tokenizer(GGUF, GgufReader(GGUF), "llama")
    with LlamaModel(GGUF, 256) as theirs:
        for text in TEXTS:
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == theirs.tokenize(text), text
    rule = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]["pretokenizers"][0]
    assert rule == {"type": "Digits", "individual_digits": True}


class _Renamed:
    """A file with another rule of splitting, or none."""

    def __init__(self, rule):
        self.fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": rule}

    def value(self, key):
        return self.fields[key]


def test_an_unknown_rule_is_refused_and_a_missing_one_is_said(talk, monkeypatch):
    monkeypatch.setattr(gguf_tokenizer.TokenizersBackend, "from_pretrained", lambda *_, **__: None)
    load_gguf_tokenizer(GGUF, _Renamed(None), "llama")
    assert "does not say how its tokenizer splits text" in talk()
    with pytest.raises(ModelError, match="'poro-chat', which is not known"):
        load_gguf_tokenizer(GGUF, _Renamed("poro-chat"), "llama")
