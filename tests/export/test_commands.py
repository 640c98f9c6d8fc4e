"""Commands are read back as the programs read them: argument lists, shell lines, vLLM's JSON."""

import json
import shlex
from pathlib import Path

import pytest

from tunesmith.errors import ExportError
from tunesmith.export.commands import command_lines, commands_of
from tunesmith.export.forms.form import Job
from tunesmith.export.forms.vllm_adapter import RANKS, max_lora_rank
from tunesmith.recipe import Lora, Recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.export import NotWritten

PATH = Path('runs/it\'s a "run"')


@pytest.fixture
def job(tmp_path):
    """``job({"model": ...})`` -> an export whose Modelfiles were written; a value of None leaves the key out."""

    def make(changes=None, lora=None, files=("Modelfile", "Modelfile.adapter")):
        keys = {
            "name": "Support-1.0",
            "model": "org/base",
            "revision": "abc",
            "data": {"path": "rows.jsonl"},
            "task": {"metric": "exact_match"},
            "export": {"gguf": ["Q8_0", "Q4_K_M"], "lora_gguf": True},
        }
        recipe = Recipe(**{key: value for key, value in {**keys, **(changes or {})}.items() if value is not None})
        for file in files:
            (tmp_path / file).touch()
        return Job(
            run=RunDir(PATH),
            recipe=recipe,
            base=Path("/models/base"),
            renderer=None,
            adapter=PATH / "adapter",
            lora=lora or Lora(r=24),
            staged=tmp_path,
            context=4096,
            train_rows=lambda: None,
            sensitivity=lambda model: {},
            dev_loss=lambda model: 0.0,
        )

    return make


def options(argv):
    """Values by option; a flag has none."""
    return {
        word: argv[place + 1] if place + 1 < len(argv) and not argv[place + 1].startswith("--") else None
        for place, word in enumerate(argv)
        if word.startswith("--")
    }


def test_every_command_survives_the_shell_and_names_no_place_of_the_run(job):
    commands = commands_of(job())
    argvs = [argv for command in commands.commands.values() for argv in command.argvs]
    assert len(argvs) == 9
    for argv in argvs:
        assert all(isinstance(word, str) and word for word in argv) and tuple(shlex.split(shlex.join(argv))) == argv
        assert "runs" not in shlex.join(argv)  # so a run may be moved
    lines = command_lines(commands, PATH)
    assert all(str(PATH) in line for line in lines) and any("vllm serve export/merged" in line for line in lines)


def test_vllm_gets_the_adapter_with_its_name_room_and_template(job):
    argv = commands_of(job()).commands["vllm_adapter"].argvs[0]
    assert argv[:3] == ("vllm", "serve", "org/base")
    given = options(argv)
    module = json.loads(given["--lora-modules"])
    assert module == {"name": "Support-1.0", "path": "adapter", "base_model_name": "org/base"}
    assert given["--max-lora-rank"] == "32" and "--enable-lora" in given and given["--revision"] == "abc"
    assert given["--max-model-len"] == "4096" and given["--chat-template"] == "export/merged/chat_template.jinja"
    local = options(commands_of(job({"model": "/models/base", "revision": None})).commands["vllm_adapter"].argvs[0])
    assert "--revision" not in local and json.loads(local["--lora-modules"])["base_model_name"] == "/models/base"


def test_the_other_engines_serve_the_same_name_and_context(job):
    commands = {name: command.argvs for name, command in commands_of(job()).commands.items()}
    vllm, llama = options(commands["vllm"][0]), options(commands["llama_server"][0])
    assert vllm["--served-model-name"] == llama["--alias"] == "Support-1.0"
    for form in ("llama_server", "llama_server_adapter"):
        assert options(commands[form][0])["--ctx-size"] == "4096" and "--jinja" in commands[form][0]
    assert options(commands["llama_server_adapter"][0])["--lora"] == "export/Support-1.0-lora.gguf"
    create, run = commands["ollama"]
    assert create == ("ollama", "create", "support-1.0", "-f", "export/Modelfile") and run[-1] == "support-1.0"
    assert commands["ollama_adapter"][1] == ("ollama", "run", "support-1.0-adapter")
    assert "--copy" in commands["lm_studio"][0]


def test_what_newer_ollamas_refuse_is_said_beside_the_command(job):
    commands = commands_of(job()).commands
    assert "0.34.1" in str(commands["ollama_adapter"].note) and commands["ollama"].note is None


def test_a_form_without_its_file_has_no_command(job):
    everything = commands_of(job()).commands.keys()
    of_adapter = {"llama_server_adapter", "ollama_adapter"}
    assert everything - commands_of(job({"export": {"gguf": ["Q4_K_M"]}})).commands.keys() == of_adapter
    for lora in (Lora(r=8, use_dora=True), Lora(r=RANKS[-1] + 1)):
        assert everything - commands_of(job(lora=lora)).commands.keys() == {"vllm_adapter"}


def test_a_modelfile_that_was_not_written_has_a_reason_and_no_command(job):
    without = job(files=())
    without.results["Modelfile"] = NotWritten(reason="the date")
    commands = commands_of(without)
    assert commands.refused == {"Modelfile": "the date"} and not {"ollama", "ollama_adapter"} & commands.commands.keys()


def test_rank_is_the_smallest_that_vllm_knows():
    assert [max_lora_rank(rank) for rank in (1, 2, 8, 9, 200, 512)] == [1, 8, 8, 16, 256, 512]
    assert [max_lora_rank(rank) for rank in RANKS] == list(RANKS)
    with pytest.raises(ExportError, match="513"):
        max_lora_rank(513)
