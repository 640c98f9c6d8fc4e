"""The engine of a vLLM against a stub of it: one path a version, nothing unloaded while it answers, no silent base."""

import asyncio

import pytest
from safetensors.torch import load_file, save_file
from serving_runs import name_files, servable
from vllm_stub import BASE, SEPARATOR, VllmStub

from tunesmith import hardware
from tunesmith.errors import ExportError, RunError
from tunesmith.serve.asking import Ask, End, EngineGone, EngineStarting, Sampling
from tunesmith.serve.catalogue import Catalogue, Choices
from tunesmith.serve.vllm_engine import Vllm, VllmModels, token_bytes


@pytest.fixture
def make(tiny_run, tiny_gguf, tmp_path, monkeypatch):
    """``make("a", mark="1")`` -> a run whose adapter's file is another one for every mark."""
    monkeypatch.setattr(hardware, "cache_dir", lambda: tmp_path / "cache")

    def run(name, mark):
        made = servable(tiny_run, tmp_path / name, tiny_gguf, lora=None)
        remake(made, mark)
        return made

    return run


def remake(run, mark):
    file = run.adapter / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={mark: mark})
    name_files(run)


async def said(borrowed, **ask):
    prompt = tuple(borrowed.served.renderer.prompt_ids([{"role": "user", "content": "a red car"}]))
    pieces = [piece async for piece in borrowed.answer(Ask(prompt=prompt, **{"max_tokens": 4, **ask}))]
    assert isinstance(pieces[-1], End)
    return "".join(piece.text for piece in pieces[:-1])


async def say(models, name, **ask):
    async with models.borrow(name) as borrowed:
        return await said(borrowed, **ask)


async def open_models(stub, runs):
    catalogue = Catalogue(Choices(engine="vllm", context=256))
    entries = [catalogue.find(run.path) for run in runs]
    return await VllmModels.open(Vllm(stub.url), entries, catalogue.find)


def test_versions_take_over_and_old_ones_are_unloaded_with_their_last_answer(make, tokenizer):
    a, b = make("a", "1"), make("b", "2")

    async def exchange(stub):
        models = await open_models(stub, [a, b])
        first, second = await say(models, "a"), await say(models, "b")
        assert len({first, second, await say(models, "tiny")}) == 3
        assert [served.name for served in models.served()] == ["tiny", "a", "b"] and models.served()[0].context == 1024
        async with models.borrow("a") as old:
            remake(a, "3")
            await models.add(a.path)
            assert await say(models, "a") != first == await said(old)
            assert "unload" not in [word for word, _ in stub.calls]
        await models.remove("b")
        with pytest.raises(KeyError):
            await say(models, "b")
        stub.loaded.clear()  # a restart
        again = await say(models, "a")
        assert again == await say(models, "a") and len(stub.loaded) == 1
        await models.close()
        assert not stub.loaded and [word for word, _ in stub.calls].count("unload") == 3

    with VllmStub(tokenizer) as stub:
        asyncio.run(exchange(stub))


def test_a_request_says_everything_and_an_answer_is_read_whole(make, tokenizer):
    async def ask_all(stub):
        models = await open_models(stub, [make("a", "1")])
        async with models.borrow("a") as borrowed:
            ask = Ask(prompt=(1, 2), max_tokens=2, logprobs=1, stop=("x",), grammar="g", sampling=Sampling(logit_bias={3: 1.0}))
            one, two, end = [piece async for piece in borrowed.answer(ask)]
            assert end == End("length", 2, 16, 2) and one.text and two.tokens[0].top == (two.tokens[0].taken,)
            assert one.tokens[0].taken.text.decode() + SEPARATOR == one.text
            body = stub.calls[-1][1]
            assert body["prompt"] == [1, 2] and body["stop"] == ["x"] and body["logit_bias"] == {"3": 1.0}
            assert (body["temperature"], body["top_k"], body["structured_outputs"]) == (0.0, 0, {"grammar": "g"})
            assert set(body["stop_token_ids"]) == set(borrowed.served.renderer.stop_ids) and body["skip_special_tokens"]
            stub.breaks = True
            with pytest.raises(EngineGone, match="broke off in the middle"):
                await said(borrowed)
            part = tokenizer("\U0001f600")["input_ids"]
            assert b"".join(token_bytes(borrowed.served.renderer, number) for number in part).decode() == "\U0001f600"
            return models, borrowed

    with VllmStub(tokenizer) as stub, asyncio.Runner() as runner:
        models, borrowed = runner.run(ask_all(stub))
        stub.__exit__()
        with pytest.raises(EngineStarting, match="no vLLM answers"):
            runner.run(said(borrowed))
        runner.run(models.close())


def test_what_vllm_would_answer_as_the_base_or_not_at_all_is_refused(make, tokenizer):
    ignored, bad = make("ignored", "ignored"), make("bad", "1")
    bad.verdict_file.unlink()
    with VllmStub(tokenizer) as stub:
        with pytest.raises(ExportError, match="ignored: vLLM answers as the base does, to the last bit"):
            asyncio.run(open_models(stub, [ignored]))
        assert not stub.loaded
        with pytest.raises(RunError, match="there is no verdict"):
            asyncio.run(open_models(stub, [bad]))
        other = VllmStub(lambda text, **_: {"input_ids": [1]})
        with other, pytest.raises(ExportError, match=f"{BASE} has other tokens"):
            asyncio.run(open_models(other, [ignored]))
    with pytest.raises(ExportError, match="no vLLM answers at") as refused:
        asyncio.run(open_models(stub, [ignored]))
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve " in refused.value.hint and "--max-lora-rank 8" in refused.value.hint
