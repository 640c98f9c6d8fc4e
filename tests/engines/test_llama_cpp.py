import importlib.util
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from ties import F16, constrained, greedy_answers, is_greedy, next_logits
from tiny_gguf import write_tiny_gguf
from tunesmith import hardware
from tunesmith.chat.render import Renderer
from tunesmith.checkpoints.gguf_write.convert import convert
from tunesmith.engines.llama_cpp import LlamaCppEngine
from tunesmith.engines.llama_cpp_team import OTHER_BYTES, processes_for, runs_of
from tunesmith.engines.llama_model import LlamaModel
from tunesmith.errors import ExportError, RecipeError
from tunesmith.models.load import load_tokenizer
from tunesmith.rundir.records.calls import Calls

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}

CALL_TEXT = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
ASKED = ["capital of France", "opposite of hot", "2 + 3", "a rhyme with cat", "the sea in one sentence", "three fruits"]
ASKED += ["what a verb is", "a name for a dog", "the colours of a flag", "hello in Spanish", "a large animal", "seven days"]
PROMPTS = [[{"role": "user", "content": f"Tell me: {what}."}] for what in ASKED]


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ExportError, match="cannot run it"):
        LlamaCppEngine(tmp_path / "x.gguf", 64)


def test_template_and_tokenizer_inside_the_file_are_the_training_ones(tiny_run, tokenizer):
    """The prompt's token count under llama.cpp equals ours, for a conversation with a system turn and without."""
    from tunesmith.chat.render import Renderer

    with LlamaCppEngine(next(tiny_run.export.glob("*Q8_0.gguf")), 256) as engine:
        for system in ([], [{"role": "system", "content": "Be brief: äöü 漢字."}]):
            prompt = [*system, {"role": "user", "content": "a\n\n red  car"}]
            (answer,) = engine.generate([prompt], 3, lambda _: None)
            assert answer.prompt_tokens == len(Renderer(tokenizer).prompt_ids(prompt))
            assert 1 <= answer.new_tokens <= 3
        with pytest.raises(ExportError, match="refused a prompt"):
            engine.generate([[{"role": "user", "content": "word " * 400}]], 3, lambda _: None)


def test_a_schema_or_labels_are_met_or_refused(tiny_run):
    """By weights that know no JSON. llama.cpp itself would answer freely where it cannot enforce a schema."""
    prompt = [{"role": "user", "content": "a red car"}]
    with LlamaCppEngine(next(tiny_run.export.glob("*Q8_0.gguf")), 256) as engine:
        (answer,) = engine.generate([prompt], 30, lambda _: None, {"enum": ["red", "green"]})
        assert json.loads(answer.text) in ("red", "green")
        labels = ("red", 'a "car"', "naïve\n\\n")
        (answer,) = engine.generate([prompt], 30, lambda _: None, labels)
        assert answer.text in labels and answer.finished
        (answer,) = engine.generate([prompt], 30, lambda _: None, labels[2:])
        assert answer.text == labels[2]
        with pytest.raises(RecipeError, match="cannot be enforced"):
            engine.generate([prompt], 5, lambda _: None, {"not": {"type": "string"}})


@pytest.mark.parametrize("adapter", [False, True])
def test_answers_and_scores_equal_those_of_transformers(tiny_dir, tiny_gguf, tiny_lora, tokenizer, adapter):
    """The same weights in an F16 GGUF, without an adapter and with one that each request asks for.

    The oracle is the stock model in fp32. A logit of llama.cpp's is off by 0.02 at most (test_llama_model.py says where it
    comes from), and what that turns over is allowed (ties.py). Its server leaves control tokens out of the text that it gives.
    """
    from peft import PeftModel

    from tunesmith.chat.render import Renderer
    from tunesmith.chat.vocabulary import MIDDLE
    from tunesmith.engines.in_process import InProcessEngine
    from tunesmith.models.load import load_model

    model, renderer = load_model(tiny_dir, "fp32"), Renderer(tokenizer)
    asked = [renderer.prompt_ids(prompt) for prompt in PROMPTS]
    of_base = [greedy_answers(next_logits(model), ids, 6, 0.0, renderer.stop_ids)[0] for ids in asked]
    stock = PeftModel.from_pretrained(model, str(tiny_lora)).merge_and_unload() if adapter else model
    ours = InProcessEngine(stock, renderer, 12)
    with LlamaCppEngine(tiny_gguf, 256, tiny_lora / "lora.gguf" if adapter else None) as engine:
        answers = _said(engine.generate(PROMPTS, 6, lambda _: None))
        for ids, answer, without in zip(asked, answers, of_base, strict=True):
            allowed = greedy_answers(next_logits(stock), ids, 6, F16, renderer.stop_ids)
            assert (without in allowed) != adapter  # wide enough for rounding, too narrow for a lost adapter
            assert answer in [_without_control(tokenizer, ids, new, renderer.stop_ids) for new in allowed]
        items = [
            (prompt, answer.text) for prompt, answer in zip(PROMPTS, ours.generate(PROMPTS, 1, lambda _: None), strict=True)
        ]
        items += [(PROMPTS[0], " a red car"), (PROMPTS[1], '{"a": 1}<|im_end|>'), (PROMPTS[2], "")]
        scored, expected = (made.score(items, lambda _: None) for made in (engine, ours))
    said = renderer.vocabulary.encode([(text, MIDDLE) for _, text in items])
    likeliest = []
    for ids, new, found, wanted in zip([*asked, *asked[:3]], said, scored, expected, strict=True):
        assert found.tokens == wanted.tokens == len(new) and found.prompt_tokens == wanted.prompt_tokens == len(ids)
        assert found.logprob == pytest.approx(wanted.logprob, abs=0.02 * wanted.tokens)
        logits_TV = stock(torch.tensor([ids + new]), use_cache=False).logits[0]
        likeliest.append(is_greedy(logits_TV[len(ids) - 1 : len(ids) + len(new) - 1], new, F16))
        assert likeliest[-1] in (found.greedy, None)
    assert True in likeliest[:-3] and likeliest[-3:] == [False, False, True]


@pytest.mark.parametrize(("ends", "said"), [("]", ["a", "\u2581b"]), ("</s>", ["\u2581a", "\u2581b"])])
def test_where_a_sentencepiece_answer_begins(tmp_path, ends, said):
    """Behind plain text without a space of its own, behind a control token with the one that its vocabulary puts there."""
    pieces = write_tiny_gguf(
        tmp_path / "x.gguf", "{{ bos_token }}{% for m in messages %}[{{ m.content }}" + ends + "{% endfor %}"
    )
    prompt = [{"role": "user", "content": "b"}]
    with LlamaModel(tmp_path / "x.gguf", 32) as model:
        asked = model.tokenize(model.render(prompt))
        assert asked[0] == pieces.index("<s>") != asked[1]
        ids = [pieces.index(piece) for piece in said]
        logits_LV = torch.tensor(model.logits(asked + ids[:-1], len(asked) - 1)).double()
    with LlamaCppEngine(tmp_path / "x.gguf", 32) as engine:
        (found,) = engine.score([(prompt, "a b")], lambda _: None)
    assert found.tokens == 2
    assert found.logprob == pytest.approx(float(logits_LV.log_softmax(-1)[range(2), ids].sum()), abs=1e-5)


@pytest.mark.slow
def test_greedy_answers_equal_those_of_transformers(real_dir, tmp_path):
    """The same weights in an F16 GGUF, a dozen prompts, free and under a schema.

    Logits reach 39 here, of which 2^-11 is 0.02; they are off by 0.08 at most, the likeliest ten against each other by 0.03.
    """
    from tunesmith.chat.render import Renderer
    from tunesmith.checkpoints.gguf_write.convert import convert
    from tunesmith.engines.grammar import Grammar
    from tunesmith.models.load import load_model, load_tokenizer

    convert(real_dir, tmp_path / "f16.gguf")
    model, tokenizer = load_model(real_dir, "fp32"), load_tokenizer(real_dir)
    renderer, free = Renderer(tokenizer), next_logits(model)
    grammar = Grammar(SCHEMA, tokenizer, renderer.stop_ids, model.config.vocab_size)
    with LlamaCppEngine(tmp_path / "f16.gguf", 256) as engine:
        for schema, few, budget in ((None, PROMPTS, 16), (SCHEMA, PROMPTS[:3], 40)):
            for prompt, answer in zip(few, _said(engine.generate(few, budget, lambda _: None, schema)), strict=True):
                ids = renderer.prompt_ids(prompt)
                logits_of = free if schema is None else constrained(free, grammar, len(ids))
                allowed = greedy_answers(logits_of, ids, budget, 0.1, renderer.stop_ids)
                assert answer in [_without_control(tokenizer, ids, new, renderer.stop_ids) for new in allowed]


def _said(answers):
    return [(answer.text, answer.prompt_tokens, answer.new_tokens, answer.finished) for answer in answers]


def _without_control(tokenizer, prompt_ids, new, stop_ids):
    """What llama.cpp's server answers where these are the new tokens."""
    finished = new[-1] in stop_ids
    text = tokenizer.decode([token for token in new if token not in tokenizer.added_tokens_decoder])
    return text, len(prompt_ids), len(new), finished


def test_tools_are_rendered_and_calls_taken_out_of_the_answer(tiny_dir, tmp_path):
    """By llama.cpp, with the template inside the file; a parser that gives up is no end of the run."""
    trl = importlib.util.find_spec("trl")
    assert trl is not None and trl.submodule_search_locations
    template = (Path(trl.submodule_search_locations[0]) / "chat_templates" / "qwen2_5.jinja").read_text()
    shutil.copytree(tiny_dir, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    convert(tmp_path / "model", tmp_path / "tools.gguf")
    renderer = Renderer(load_tokenizer(tmp_path / "model"), template)
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": [1, "\u00e9"]}}}
    shown = [PROMPTS[0][0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
    with LlamaCppEngine(tmp_path / "tools.gguf", 512) as engine:
        (answer,) = engine.generate([PROMPTS[0]], 3, lambda _: None, None, [tools])
        assert answer.prompt_tokens == len(renderer.prompt_ids(PROMPTS[0], tools)) and answer.calls == Calls()
        (label,) = engine.generate([PROMPTS[0]], 30, lambda _: None, (CALL_TEXT,), [tools])
        assert label.text == CALL_TEXT and label.calls == Calls(lost=1)  # nobody takes calls out of constrained answers
        (process,) = engine._team._processes
        ask = process.ask

        def once(what, **arguments):
            auto = arguments["body"].get("tool_choice") == "auto"
            return {"error": {"message": "output that does not match the expected format"}} if auto else ask(what, **arguments)

        process.ask = once
        (unread,) = engine.generate([[*shown, PROMPTS[1][0]]], 3, lambda _: None, None, [tools])
        assert unread.calls == Calls(malformed=1) and unread.new_tokens == 3


def test_answers_do_not_depend_on_the_processes_they_are_dealt_out_to(tiny_gguf, monkeypatch):
    """Nor does their order; neighbours that share a beginning are among them, which llama.cpp does not read twice."""
    prompts = [[{"role": "user", "content": f"{prompt[0]['content']} {n}"}] for prompt in PROMPTS for n in (1, 2)]
    items = [(prompt, " a red car") for prompt in prompts]
    told = {}
    for processes in (1, 3):
        monkeypatch.setattr(hardware, "physical_cores", lambda count=processes: count)
        done = []
        with LlamaCppEngine(tiny_gguf, 256, prompts=len(prompts)) as engine:
            answers = engine.generate(prompts, 6, done.append)
            told[processes] = _said(answers), engine.score(items, done.append)
            assert len(engine._team._processes) == processes and all(answer.seconds > 0 for answer in answers)
        assert done == [1] * 2 * len(prompts)
    assert told[1] == told[3] and len({text for text, *_ in told[1][0]}) > 1


def test_an_error_or_a_death_in_one_process_ends_all(tiny_gguf, monkeypatch):
    monkeypatch.setattr(hardware, "physical_cores", lambda: 2)
    for end in ("refused", "died", "interrupted"):
        prompts, done = PROMPTS * 2, []
        if end == "refused":
            prompts = [*prompts[:-1], [{"role": "user", "content": "word " * 400}]]
        with LlamaCppEngine(tiny_gguf, 256, prompts=len(prompts)) as engine:

            def advance(number, engine=engine, end=end, done=done):
                done.append(number)
                if end == "died" and len(done) == 1:
                    os.kill(engine._team._processes[0].pid, signal.SIGKILL)
                if end == "interrupted":
                    raise KeyboardInterrupt

            message = {"refused": "refused a prompt", "died": r"llama\.cpp was killed by signal 9", "interrupted": "^$"}[end]
            with pytest.raises(KeyboardInterrupt if end == "interrupted" else ExportError, match=message):
                engine.generate(prompts, 6, advance)
            children = engine._team._processes
        assert len(done) < len(prompts) and [child.pid for child in children] == [None] * len(children)


def test_how_many_processes_answer(tiny_gguf, monkeypatch):
    """One where two would not pay, or memory has no room for them."""
    monkeypatch.setattr(hardware, "physical_cores", lambda: 4)
    free = hardware.available_memory()
    bytes_of_one = tiny_gguf.stat().st_size + OTHER_BYTES
    for prompts, memory, processes in ((8, free, 1), (9, free, 2), (500, free, 4), (500, 3 * bytes_of_one - 1, 2), (500, 0, 1)):
        monkeypatch.setattr(hardware, "available_memory", lambda memory=memory: memory)
        assert processes_for(tiny_gguf, prompts) == processes
    assert [len(runs_of(count)) for count in (0, 1, 8, 9, 128, 129, 1000)] == [0, 1, 1, 2, 16, 15, 16]
