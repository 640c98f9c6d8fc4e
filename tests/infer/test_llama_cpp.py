import pytest

from tunesmith.errors import ExportError
from tunesmith.infer.llama_cpp import LlamaCppEngine


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
