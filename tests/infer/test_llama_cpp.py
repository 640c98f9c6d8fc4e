import json

import pytest

from tunesmith.errors import ExportError, RecipeError, RunError
from tunesmith.infer.llama_cpp import LlamaCppEngine

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}


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


def test_a_schema_is_met_or_refused(tiny_run):
    """By weights that know no JSON. llama.cpp itself would answer freely where it cannot enforce a schema."""
    prompt = [{"role": "user", "content": "a red car"}]
    with LlamaCppEngine(next(tiny_run.export.glob("*Q8_0.gguf")), 256) as engine:
        (answer,) = engine.generate([prompt], 30, lambda _: None, {"enum": ["red", "green"]})
        assert json.loads(answer.text) in ("red", "green")
        with pytest.raises(RecipeError, match="cannot be enforced"):
            engine.generate([prompt], 5, lambda _: None, {"not": {"type": "string"}})
        with pytest.raises(RunError, match="no log-probability of a given answer"):
            engine.score([(prompt, "red")], lambda _: None)


@pytest.mark.slow
def test_greedy_answers_equal_those_of_transformers(real_dir, tmp_path):
    """The same weights in an F16 GGUF, a dozen prompts, free and under a schema; fp16 may turn one near tie."""
    from tunesmith.chat.render import Renderer
    from tunesmith.export import gguf
    from tunesmith.infer.in_process import InProcessEngine
    from tunesmith.models.load import load_model, load_tokenizer

    gguf.convert(real_dir, tmp_path / "f16.gguf")
    asked = ["capital of France", "opposite of hot", "2 + 3", "a rhyme with cat", "the sea in one sentence", "three fruits"]
    asked += ["what a verb is", "a name for a dog", "the colours of a flag", "hello in Spanish", "a large animal", "seven days"]
    prompts = [[{"role": "user", "content": f"Tell me: {what}."}] for what in asked]
    ours = InProcessEngine(load_model(real_dir, "fp32"), Renderer(load_tokenizer(real_dir)), 12)
    with LlamaCppEngine(tmp_path / "f16.gguf", 256) as engine:
        for schema, few, budget, least in ((None, prompts, 16, 11), (SCHEMA, prompts[:3], 40, 3)):
            theirs = _said(engine.generate(few, budget, lambda _: None, schema))
            mine = _said(ours.generate(few, budget, lambda _: None, schema))
            assert sum(a == b for a, b in zip(mine, theirs, strict=True)) >= least, list(zip(mine, theirs, strict=True))


def _said(answers):
    return [(answer.text, answer.prompt_tokens, answer.new_tokens, answer.finished) for answer in answers]
