"""Commands are read back as the programs read them: argument lists, shell lines, vLLM's JSON."""

import json
import shlex

import pytest
from gguf import GGUFWriter

from tunesmith.errors import ExportError
from tunesmith.export.launch import RANKS, commands, max_lora_rank, missing_metadata

FACTS = {
    "name": "Support-1.0",
    "num_ctx": 4096,
    "merged": "runs/it's a run/export/merged",
    "gguf": "runs/it's a run/export/s-Q4_K_M.gguf",
    "modelfile": "Modelfile",
    "base": "org/base",
    "revision": "abc",
    "rank": 24,
    "adapter": 'runs/"a" b/adapter',
    "template": "chat_template.jinja",
    "base_gguf": "b.gguf",
    "lora_gguf": "l.gguf",
    "adapter_modelfile": "Modelfile.adapter",
}


def lines(made):
    for command in made.values():
        yield from [command] if isinstance(command, list) else command.values()


def options(argv):
    """Values by option; a flag has none."""
    return {
        word: argv[place + 1] if place + 1 < len(argv) and not argv[place + 1].startswith("--") else None
        for place, word in enumerate(argv)
        if word.startswith("--")
    }


def test_every_command_survives_the_shell():
    made = commands(FACTS)
    assert len(list(lines(made))) == 9
    for argv in lines(made):
        assert all(isinstance(word, str) and word for word in argv)
        assert shlex.split(shlex.join(argv)) == argv


def test_vllm_gets_the_adapter_with_its_name_room_and_template():
    argv = commands(FACTS)["vllm_adapter"]
    assert argv[:3] == ["vllm", "serve", "org/base"]
    given = options(argv)
    module = json.loads(given["--lora-modules"])
    assert module == {"name": "Support-1.0", "path": FACTS["adapter"], "base_model_name": "org/base"}
    assert given["--max-lora-rank"] == "32" and "--enable-lora" in given and given["--revision"] == "abc"
    assert given["--max-model-len"] == "4096" and given["--chat-template"] == "chat_template.jinja"
    assert "--revision" not in commands(FACTS | {"revision": None})["vllm_adapter"]


def test_the_other_engines_serve_the_same_name_and_context():
    made = commands(FACTS)
    assert options(made["vllm"])["--served-model-name"] == options(made["llama_server"])["--alias"] == "Support-1.0"
    for form in ("llama_server", "llama_server_adapter"):
        assert options(made[form])["--ctx-size"] == "4096" and "--jinja" in made[form]
    assert options(made["llama_server_adapter"])["--lora"] == "l.gguf"
    assert made["ollama"]["create"] == ["ollama", "create", "support-1.0", "-f", "Modelfile"]
    assert made["ollama_adapter"]["run"] == ["ollama", "run", "support-1.0-adapter"]
    assert "--copy" in made["lm_studio"]


@pytest.mark.parametrize(
    ("missing", "forms"),
    [
        ("merged", {"vllm"}),
        ("gguf", {"llama_server", "lm_studio"}),
        ("modelfile", {"ollama"}),
        ("adapter", {"vllm_adapter"}),
        ("lora_gguf", {"llama_server_adapter"}),
        ("adapter_modelfile", {"ollama_adapter"}),
    ],
)
def test_a_form_without_its_file_has_no_command(missing, forms):
    less = commands({key: value for key, value in FACTS.items() if key != missing})
    assert commands(FACTS).keys() - less.keys() == forms


def test_rank_is_the_smallest_that_vllm_knows():
    assert [max_lora_rank(rank) for rank in (1, 2, 8, 9, 200, 512)] == [1, 8, 8, 16, 256, 512]
    assert [max_lora_rank(rank) for rank in RANKS] == list(RANKS)
    with pytest.raises(ExportError, match="513"):
        max_lora_rank(513)


def test_missing_metadata_is_named(tmp_path, tiny_run):
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_name("")
    writer.add_context_length(64)
    writer.add_tokenizer_model("gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    missing = missing_metadata(path)
    assert {"general.name", "llama.block_count", "tokenizer.ggml.tokens", "tokenizer.chat_template"} <= set(missing)
    assert not {"general.architecture", "llama.context_length", "tokenizer.ggml.model"} & set(missing)
    assert missing_metadata(next(tiny_run.export.glob("run-Q*.gguf"), next(tiny_run.export.glob("*.gguf")))) == []
