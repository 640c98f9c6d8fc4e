"""llama.cpp's own rendering, token ids and logits, against our renderer, stock transformers and PEFT on the same weights.

The reference has its matrices rounded to fp16, as they lie in the file. What is left is llama.cpp's rounding of activations,
keys and values to fp16 (2^-11 of a number) on the way through two layers: 0.013 at most was seen in logits of a spread of 0.8
that reach 4.4. A wrong rotation, a lost adapter or a stale cache is off by 1 and more.
"""

import os
import signal

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tunesmith.chat.render import Renderer
from tunesmith.engines.llama_cpp import LlamaCppEngine
from tunesmith.engines.llama_model import LlamaModel
from tunesmith.errors import ExportError

ROUNDING = 0.03
IDS = torch.randint(3, 8000, (300,), generator=torch.Generator().manual_seed(5)).tolist()
ASKED = {"role": "user", "content": "a\n\n red  car"}
CONVERSATIONS = [
    [ASKED],
    [{"role": "system", "content": "Be brief: äöü 漢字 🙂."}, ASKED],
    [ASKED, {"role": "assistant", "content": '{"a": 1}'}, {"role": "user", "content": "  x\t<b> \r\n"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "1234567.89 " * 40}],
]


@pytest.fixture(scope="module")
def rounded(tiny_dir):
    """Stock transformers on the weights as the file has them."""
    model = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).requires_grad_(False).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.half().float())
    return model


@pytest.fixture(scope="module")
def model(tiny_gguf):
    with LlamaModel(tiny_gguf, 300) as made:
        yield made


def stock(model, ids):
    with torch.inference_mode():
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def test_logits_are_those_of_stock_transformers(model, rounded):
    """Over the border of a batch, by the kernels for many rows and for one."""
    found, expected = model.logits(IDS), stock(rounded, IDS)
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() < ROUNDING < 0.01 * np.abs(expected).max()
    assert np.abs(model.logits(IDS, first=297) - found[297:]).max() < ROUNDING  # products of three rows, not of 300


def test_a_position_depends_on_what_is_before_it_and_on_nothing_else(model):
    """Every token of a prompt as the last one of a pass of its own; the cache of one prompt is not seen by the next."""
    found = model.logits(IDS[:40])
    one_by_one = np.concatenate([model.logits(IDS[: place + 1], first=place) for place in range(40)])
    assert np.abs(found - one_by_one).max() < ROUNDING
    assert np.array_equal(model.logits(IDS[:40]), found)


def test_scores_are_those_of_the_logits_whatever_was_read_before(model):
    """Neighbours that begin alike share that work; a text that begins otherwise, or is part of the last one, does not."""
    a, b = IDS[:30], IDS[100:180]
    pairs = [(a, b[:3]), (a, b[40:42]), (a[:10], b[:2]), (b, a[:1]), (IDS[:20], IDS[20:290]), (a, a[:1]), (a, []), ([*a, 5], b)]
    for (context, continuation), scored in zip(pairs, model.continuation_logprobs(pairs), strict=True):
        expected = 0.0
        if continuation:
            logits = torch.from_numpy(model.logits(context + continuation[:-1], len(context) - 1))
            picked = torch.log_softmax(logits.double(), -1)[range(len(continuation)), continuation]
            expected = float(picked.sum())
        assert scored.logprob == pytest.approx(expected, abs=ROUNDING * max(1, len(continuation)) ** 0.5)
        assert (scored.prompt_tokens, scored.tokens) == (len(context), len(continuation))


def test_an_adapter_does_what_it_does_in_peft(tiny_gguf, rounded, tiny_lora, model):
    with LlamaModel(tiny_gguf, 64, tiny_lora / "lora.gguf") as tuned:
        found = tuned.logits(IDS[:50])
    peft = PeftModel.from_pretrained(rounded, str(tiny_lora))
    try:
        assert np.abs(found - stock(peft, IDS[:50])).max() < ROUNDING
    finally:
        peft.unload()
    assert np.abs(found - model.logits(IDS[:50])).max() > 0.5


@pytest.mark.parametrize("adds_bos", [False, True])
def test_text_and_ids_of_a_conversation_are_ours(tiny_gguf, tokenizer, tmp_path, adds_bos):
    """Also where the tokenizer puts a beginning-of-text token in front of a template that writes one already."""
    raw, key = bytearray(tiny_gguf.read_bytes()), b"tokenizer.ggml.add_bos_token"
    raw[raw.index(key) + len(key) + 4] = adds_bos  # behind the type of the value
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    renderer = Renderer(tokenizer)
    with LlamaModel(path, 512) as model:
        for messages in CONVERSATIONS:
            text = model.render(messages)
            assert text == renderer.text(messages, generate=True)
            assert model.tokenize(text) == renderer.prompt_ids(messages)
            assert model.detokenize(renderer.prompt_ids(messages)) == text
        assert (model.tokenize("red") == [1, *model.tokenize("<|im_start|>red")[1:]]) == adds_bos
    with LlamaCppEngine(path, 512) as engine:
        answers = engine.generate(CONVERSATIONS, 1, lambda _: None)
    assert [answer.prompt_tokens for answer in answers] == [len(renderer.prompt_ids(messages)) for messages in CONVERSATIONS]


def test_what_llama_cpp_cannot_do_is_one_of_our_errors(model, tiny_gguf, tmp_path):
    for ids, message in (([*IDS, 5], "301 tokens exceeds the context of 300"), ([8192], "no token 8192"), ([], "0 tokens")):
        with pytest.raises(ExportError, match=message):
            model.logits(ids)
    with pytest.raises(ExportError, match="cannot render"):
        model.render([{"role": "user"}])
    whole = tiny_gguf.read_bytes()
    for name, data in (("short", whole[: len(whole) // 2]), ("junk", b"GGUF" + b"\0" * 100)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ExportError, match="cannot run it"):
            LlamaModel(tmp_path / name, 64)
    for made in (LlamaModel, LlamaCppEngine):
        with pytest.raises(ExportError, match=r"llama\.cpp cannot"):
            made(tiny_gguf, 64, tiny_gguf)  # a model is no adapter


def test_the_child_ends_with_close_and_its_death_is_told(tiny_gguf):
    model = LlamaModel(tiny_gguf, 64)
    child = model._process._child.pid
    model.close()
    model.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    with LlamaModel(tiny_gguf, 64) as model:
        os.kill(model._process._child.pid, signal.SIGKILL)
        with pytest.raises(
            ExportError, match=r"llama\.cpp was killed by signal 9 .* memory runs out; .* GB are free"
        ) as raised:
            model.logits([5])
        assert "shorten the context" in raised.value.hint and "export" not in raised.value.hint
