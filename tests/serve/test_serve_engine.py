"""llama.cpp by token ids against llama.cpp with one adapter alone; real processes, a tiny model with drawn adapters."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving_runs import write_lora

from tiny_gguf import write_tiny_gguf
from tunesmith.chat.render import Renderer
from tunesmith.engines.constraint import as_text
from tunesmith.errors import ExportError
from tunesmith.serve.asking import Ask, End, EngineGone, EngineStarting, Sampling
from tunesmith.serve.llama_cpp_engine import LlamaCppEngine, Room

P, Q = "a red car and a green house; " * 12, "who is there, and why? " * 14
NEVER_ENDS = Sampling(logit_bias={0: -1000.0, 2: -1000.0})


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as running:
        yield running


@pytest.fixture(scope="module")
def loras(tiny_gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    for number, name in enumerate("ABC"):
        write_lora(tiny_gguf, folder / f"{name}.gguf", number)
    return [folder / f"{name}.gguf" for name in "ABC"]


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(tokenizer)


@pytest.fixture(scope="module")
def start(runner, tiny_gguf, renderer):
    """A function that starts an engine with some adapters; all end with the module."""
    engines = []

    def make(adapters, slots=1, model=tiny_gguf, context=1024):
        engine = runner.run(LlamaCppEngine.start(model, adapters, Room(slots=slots, context=context), renderer))
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        runner.run(engine.close())


@pytest.fixture(scope="module")
def three(start, loras):
    return start(loras)


@pytest.fixture
def say(runner, renderer):
    """A function that asks, and gives text, tokens and end."""
    return lambda engine, adapter, text=P, **ask: runner.run(gathered(engine, adapter, renderer, text, **ask))


def prompt_of(renderer, text):
    return tuple(renderer.prompt_ids([{"role": "user", "content": text}]))


async def gathered(engine, adapter, renderer, text=P, max_tokens=6, **ask):
    ask = Ask(prompt=prompt_of(renderer, text), max_tokens=max_tokens, **ask)
    pieces = [piece async for piece in engine.answer(adapter, ask, renderer)]
    assert isinstance(pieces[-1], End)
    return "".join(piece.text for piece in pieces[:-1]), [t for piece in pieces[:-1] for t in piece.tokens], pieces[-1]


def test_every_answer_is_that_of_its_adapter_alone(start, loras, three, say, runner, renderer):
    """Whatever the slot computed before; in turn, and many at once over three slots.

    The cold answers come from engines that have one adapter or none. Nothing is kept over a change of adapters.
    """
    cold = {}
    for adapter, own in ((None, []), (0, loras[:1]), (1, loras[1:2]), (2, loras[2:])):
        engine = start(own)
        for text in (P, Q):
            cold[adapter, text] = say(engine, 0 if own else None, text, logprobs=2)
    assert len({answer[0] for answer in cold.values()}) == len(cold), "too small to tell adapters apart"
    table = [(0, P), (None, P), (0, P), (1, P), (0, P), (1, Q), (1, P), (None, Q), (None, P), (None, P), (2, P), (2, Q)]
    drawn = random.Random(0)
    table += [(drawn.choice((None, 0, 1, 2)), drawn.choice((P, Q))) for _ in range(40)]
    before = (3, P)
    for adapter, text in table:
        answer = say(three, adapter, text, logprobs=2)
        assert _same(answer, cold[adapter, text]), (adapter, text)
        own, shared = before[0] == adapter, answer[2].cached_tokens
        assert shared > 0 if own and before[1] == text else own or shared == 0
        before = (adapter, text)
    crowd = start(loras, slots=3)

    async def ask_all():
        return await asyncio.gather(*(gathered(crowd, a, renderer, text, logprobs=2) for a, text in table))

    for (adapter, text), answer in zip(table, runner.run(ask_all()), strict=True):
        assert _same(answer, cold[adapter, text]), (adapter, text)


def _same(one, other):
    """The same tokens, as likely within what a kernel for several tokens rounds otherwise than one for a single token.

    Behind a token that another one is as likely as, an answer may go on otherwise.
    """
    (_, tokens, end), (_, cold_tokens, cold_end) = one, other
    for token, cold in zip(tokens, cold_tokens, strict=False):
        if abs(token.taken.logprob - cold.taken.logprob) > 0.02:
            return False
        if token.taken.id != cold.taken.id:
            return token.taken.id in {likely.id for likely in cold.top}
    return len(tokens) == len(cold_tokens) and end.reason == cold_end.reason


def test_an_answer_in_all_its_parts(three, say, renderer, tokenizer):
    text, tokens, end = say(three, None, max_tokens=4, logprobs=3, sampling=NEVER_ENDS)
    assert end == End("length", len(prompt_of(renderer, P)), end.cached_tokens, 4)
    assert [len(token.top) for token in tokens] == [3] * 4 and b"".join(token.taken.text for token in tokens).decode() == text
    assert text == tokenizer.decode([token.taken.id for token in tokens])
    (_, (token, *_), _) = say(three, None, logprobs=0)
    assert token.top == ()
    second = tokens[1].taken.text.decode()
    cut, _, end = say(three, None, stop=(second,), sampling=NEVER_ENDS)
    assert (end.reason, end.stop) == ("stop", second) and cut == text[: text.index(second)]
    biased, tokens, end = say(
        three, 1, max_tokens=3, logprobs=1, sampling=Sampling(logit_bias={tokenizer.eos_token_id: 1000.0})
    )
    assert (biased, tokens, end.reason, end.new_tokens) == ("", [], "stop", 1)
    drawn = [say(three, None, sampling=Sampling(temperature=2.0, seed=seed))[0] for seed in (-7, -7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_control_tokens_are_shown_where_they_are_wanted_and_characters_come_whole(three, say):
    grammar = '%llguidance {}\nstart: "a\U0001f600\u6f22" <|im_start|> "b"\n'
    for shown, written in ((False, "a\U0001f600\u6f22b"), (True, "a\U0001f600\u6f22<|im_start|>b")):
        text, _, end = say(three, 2, max_tokens=40, grammar=grammar, show_control=shown)
        assert text == written and end.reason == "stop"
    text, tokens, _ = say(three, 2, max_tokens=40, grammar=as_text(("z\U0001f600",)), logprobs=0)
    assert [token.taken.text.decode() for token in tokens] == list(text) == ["z", "\U0001f600"]
    cut, _, end = say(three, 2, max_tokens=3, grammar=as_text(("z\U0001f600",)))
    assert (cut, end.reason) == ("z", "length")


def test_what_llama_cpp_refuses_is_no_answer(three, say):
    for wrong in ({"grammar": "start: ("}, {"text": P * 20}):
        with pytest.raises(EngineGone, match=r"llama\.cpp refused a request: "):
            say(three, None, **wrong)
    assert say(three, None)[2].new_tokens


def test_an_answer_that_nobody_reads_any_more_is_not_written_to_its_end(three, runner, renderer, say):
    """What the slot kept says how far it came."""
    (_, tokens, end) = say(three, None, max_tokens=700, logprobs=0, sampling=NEVER_ENDS)
    prompt = prompt_of(renderer, P)
    written = tuple(token.taken.id for token in tokens)
    assert len(written) == end.new_tokens == 700
    say(three, 0)  # which takes the slot's cache

    async def leave():
        answer = three.answer(None, Ask(prompt=prompt, max_tokens=700, sampling=NEVER_ENDS), renderer)
        await anext(answer)
        os.kill(three.pid, signal.SIGSTOP)
        await answer.aclose()
        os.kill(three.pid, signal.SIGCONT)
        ask = Ask(prompt=prompt + written, max_tokens=1)
        return [piece async for piece in three.answer(None, ask, renderer)][-1]

    kept = runner.run(leave()).cached_tokens
    assert len(prompt) <= kept < len(prompt) + 600


def test_a_dead_process_is_started_again_with_the_files_that_it_had(start, loras, tmp_path, runner, renderer, talk):
    lora = tmp_path / "lora.gguf"
    lora.write_bytes(loras[0].read_bytes())
    engine = start([lora])

    async def die():
        before = await gathered(engine, 0, renderer)
        lora.unlink()  # a run that was exported anew
        lora.write_bytes(loras[1].read_bytes())
        answer = engine.answer(0, Ask(prompt=prompt_of(renderer, P), max_tokens=700, sampling=NEVER_ENDS), renderer)
        await anext(answer)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineGone, match="broke off in the middle"):
            async for _ in answer:
                pass
        refused = 0
        while True:
            try:
                return before, await gathered(engine, 0, renderer), refused
            except EngineStarting as error:
                assert error.seconds >= 1
                refused += 1
                await asyncio.sleep(0.05)

    before, after, refused = runner.run(die())
    assert before[0] == after[0] and refused
    assert "was killed by signal 9" in (said := talk()) and "answers again" in said


def test_files_that_cannot_be_served(start, tmp_path, tiny_gguf, loras):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    write_tiny_gguf(tmp_path / "other.gguf", "{{ bos_token }}")
    for model, adapters, reason in (
        (tmp_path / "broken.gguf", [], "broken.gguf: llama.cpp cannot serve it"),
        (tmp_path / "gone.gguf", [], "gone.gguf: cannot be read"),
        (tmp_path / "other.gguf", [], "other.gguf: has other tokens than the model that was trained"),
        (tiny_gguf, [tmp_path / "broken.gguf"], f"lora adapter {tmp_path / 'broken.gguf'}"),
    ):
        with pytest.raises(ExportError) as refused:
            start(adapters, model=model, context=64)
        assert reason in refused.value.message


def test_the_process_does_not_outlive_whoever_started_it(tiny_gguf):
    program = (
        "import sys, time; from pathlib import Path; from tunesmith.serve.llama_cpp_process import Files, LlamaCppProcess; "
        "process = LlamaCppProcess(Files(Path(sys.argv[1])), 1, 64); print(process.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tiny_gguf)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        while _runs(pid):
            os.kill(pid, 0)
            time.sleep(0.05)


def _runs(pid):
    """Whether it is more than an entry that nobody has waited for."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
