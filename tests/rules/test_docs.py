"""Rule 7: public names, recipes, and every command in README and docs are exercised; links lead somewhere.

Commands run on the tiny run, those that write into it on a copy. Commands of other programs are held against what an export of
the demo writes into ``commands.json``.
"""

import io
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import tunesmith
from chat_server import Server
from shared import ROOT, _shared, toy_rows
from tunesmith import cli
from tunesmith.export.commands import commands_of
from tunesmith.export.context import LEAST_CONTEXT
from tunesmith.export.forms.form import Job
from tunesmith.recipe import load_recipe
from tunesmith.recipe.run import Export
from tunesmith.rundir import RunDir
from tunesmith.serve import command as command_of_serve

DOCUMENTS = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")), *sorted((ROOT / "docs").rglob("*.md"))]
EXPORT = ROOT / "docs" / "how-to" / "export.md"
IMPORT = ROOT / "docs" / "how-to" / "come-from-another-tool.md"
MODEL = "assets/SmolLM2-135M-Instruct.Q4_1.gguf"
VERDICT_CODES = {0, 10, 11, 12, 13, 14, 21, 22, 23, 24}
WRITING = {"parity", "accept-base", "--sweep", "race", "track"}  # words of commands that write into a run that is done
ENGINES = ("vllm ", "llama-server ", "ollama ", "lms ")


def _blocks(document, language):
    return re.findall(rf"```(?:{language})\n(.*?)```", document.read_text(), re.DOTALL)


def _commands():
    for document in DOCUMENTS:
        for block in _blocks(document, "sh|console"):
            for line in block.splitlines():
                command = line.removeprefix("$ ").split("  #")[0].strip()
                if command.startswith(("tunesmith ", "make ")):
                    yield pytest.param(command, id=f"{document.name}: {command}")


def _copy(factory, run, name):
    return _shared(factory, name, lambda directory: shutil.copytree(run.path, directory / "run")) / "run"


@pytest.fixture(scope="session")
def tiny_copy(tmp_path_factory, tiny_run):
    """The tiny run, to be written into."""
    return _copy(tmp_path_factory, tiny_run, "tiny_copy")


@pytest.fixture(scope="session")
def tiny_lock(tmp_path_factory, tiny_run):
    """The tiny run, for commands that find nothing to do and hold its lock while they look: others ask the run itself."""
    return _copy(tmp_path_factory, tiny_run, "tiny_lock")


@pytest.fixture(scope="module")
def endpoint():
    """A model behind an API, in the place of that of the documents."""
    server = Server()
    yield server
    server.close()


@pytest.mark.parametrize("command", list(_commands()))
def test_every_documented_command_runs(
    command, tiny_run, tiny_copy, tiny_lock, tiny_dir, tiny_lora, endpoint, tmp_path, monkeypatch, capsys
):
    words = shlex.split(command)
    if words[0] == "make":
        for target in words[1:]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        return
    run = str(tiny_copy if WRITING & set(words) else tiny_lock)
    here = {
        **{f"runs/{name}": run for name in ("us_addresses", "question_types")},
        **{f"recipes/{name}.yaml": str(tiny_lock / "recipe.yaml") for name in ("us_addresses", "question_types")},
        "recipes/us_addresses/us_addresses.jsonl": str(tiny_run.path.parent / "rows.jsonl"),
        "questions.jsonl": str(tiny_run.path.parent / "rows.jsonl"),
        "out/adapter": str(tiny_lora),
        "out/other": str(tiny_run.adapter),
        MODEL: str(tiny_dir),
        "HuggingFaceTB/SmolLM2-135M-Instruct": "my/base" if words[1] == "push" else str(tiny_dir),
        "HuggingFaceTB/SmolLM2-360M-Instruct": "second",
        "https://api.example.com/v1": endpoint.url,
    }
    (tmp_path / "second").mkdir()
    for file in tiny_dir.iterdir():
        (tmp_path / "second" / file.name).symlink_to(file)
    if "tensorboard" in words:
        pytest.importorskip("tensorboardX")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "us_addresses").symlink_to(tiny_lock)
    (tmp_path / "answers.csv").write_text("question,answer\na red car,red\n")
    (tmp_path / "old.jsonl").write_text((tiny_run.path.parent / "rows.jsonl").read_text())
    monkeypatch.setenv("OLD_KEY", "a key")
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets=None: None)  # the address is said, and that is all
    (tmp_path / "axolotl.yaml").write_text(_blocks(IMPORT, "yaml")[0])
    (tmp_path / "trained_on.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows()[:9]))
    monkeypatch.chdir(tmp_path)
    arguments = [here.get(word, word) for word in words[1:]]
    if words[1] == "web":
        arguments += ["--port", "0"]  # other tests may say the same address
    if words[1] == "serve":
        monkeypatch.setenv("TUNESMITH_KEY", "a long enough key".replace(" ", "-"))
        monkeypatch.setattr(command_of_serve, "serve", _open_and_leave)
        arguments += ["--force", "--port", "0"]
    if "--sweep" in words:
        arguments += ["--type", "Q4_K_M"]  # which is there, in the place of seven, each of which takes seconds
    if words[1] == "push" and "--dry-run" not in words:
        arguments += ["--dry-run"]  # nothing is published by a test
    if any(word.endswith("recipe.yaml") for word in arguments) and words[1] not in ("schema", "plan"):
        arguments += ["--out", str(tiny_lock)]
    monkeypatch.setattr("sys.argv", ["tunesmith", *arguments])
    monkeypatch.setattr("sys.stdin", io.StringIO("a red car\n"))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code or 0) in VERDICT_CODES, capsys.readouterr().err


async def _open_and_leave(open_models, settings, ready, beside):
    """What ``tunesmith serve`` does up to the engine; ``tests/serve`` has the rest."""
    settings.check()
    assert settings.limits.slots and beside


def _argvs(document):
    """The commands of other programs, as the shell splits them."""
    for block in _blocks(document, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith(ENGINES):
                yield shlex.split(line)


def test_the_export_guide_shows_the_commands_that_the_demo_writes(tmp_path):
    recipe = load_recipe(ROOT / "recipes" / "us_addresses.yaml")
    for file in ("Modelfile", "Modelfile.adapter"):
        (tmp_path / file).touch()
    job = Job(
        run=RunDir(Path("runs/us_addresses")),
        recipe=recipe,
        base=Path("BASE"),
        renderer=None,
        adapter=Path("runs/us_addresses/adapter"),
        lora=recipe.lora,
        staged=tmp_path,
        context=LEAST_CONTEXT,
        train_rows=lambda: None,
        sensitivity=lambda model: {},
        dev_loss=lambda model: 0.0,
    )
    written = []
    for command in commands_of(job).commands.values():
        for argv in command.argvs:
            written.append([word.replace(f"{ROOT}/", "../../") for word in argv])
    assert sorted(_argvs(EXPORT)) == sorted(written)
    (example,) = _blocks(EXPORT, "yaml")
    assert Export(**yaml.safe_load(example)["export"]).gguf == recipe.export.gguf


def test_the_export_guide_runs_every_form(tiny_run, tiny_gguf, tiny_lora, tmp_path, capsys):
    """As one program, since the blocks follow on each other; then the forms are held against each other."""
    here = {
        "{run}/export/us_addresses-lora.gguf": f"{tiny_lora}/lora.gguf",
        MODEL: str(tiny_gguf),
        f'"assets", gguf_file="{Path(MODEL).name}"': f'"{tiny_gguf.parent}", gguf_file="{tiny_gguf.name}"',
        "runs/us_addresses": str(tiny_run.path),
        "us_addresses-": "toy-",
        "max_new_tokens=128": "max_new_tokens=8",
    }
    program = "".join(_blocks(EXPORT, "python"))
    for written, meant in here.items():
        assert written in program
        program = program.replace(written, meant)
    (tmp_path / "export.py").write_text(program)
    names = runpy.run_path(str(tmp_path / "export.py"))
    assert len(capsys.readouterr().out.splitlines()) >= 4
    prompt = names["prompt"]
    with torch.no_grad():
        tuned, merged = names["tuned"](**prompt).logits, names["merged"](**prompt).logits
        with names["tuned"].disable_adapter():
            base = names["tuned"](**prompt).logits
    assert (tuned - merged).abs().max() < 0.1 * (tuned - base).abs().max()
    for answers in (names["deployed"], names["adapted"]):
        assert answers[0].prompt_tokens == prompt["input_ids"].shape[1] and answers[0].new_tokens > 0


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_is_valid_and_its_files_are_there(path):
    recipe = load_recipe(path)
    source = Path(recipe.data.path)
    made = source.is_relative_to(ROOT) and f"\n{source.relative_to(ROOT)}:" in (ROOT / "Makefile").read_text()
    assert (source.exists() or made) and recipe.name == path.stem
    assert recipe.task.json_schema is None or recipe.task.json_schema.exists()


def test_public_names_are_the_promised_ones():
    assert len(tunesmith.__all__) <= 16
    for name in tunesmith.__all__:
        assert getattr(tunesmith, name) is not None, name


def test_readme_is_short_and_names_every_room():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    folders = re.findall(r"\S+/", re.findall(r"```text\n(.*?)```", text, re.DOTALL)[-1])
    rooms = {path.name for path in (ROOT / "src" / "tunesmith").iterdir() if (path / "__init__.py").exists()}
    outside = {name for name in folders if (ROOT / name).is_dir()}
    assert {name.rstrip("/") for name in set(folders) - outside} == rooms
    assert outside >= {"docs/", "examples/", "recipes/", "tests/", "benchmarks/", "src/tunesmith/"}


def _anchors(document):
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    dead = []
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            path, _, anchor = target.partition("#")
            if path.startswith(("http://", "https://")):
                continue
            file = document.parent / path if path else document
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                dead.append(f"{document.relative_to(ROOT)}: {target}")
    assert not dead, "\n".join(dead)


def test_changelog_knows_this_version():
    assert f"## {tunesmith.__version__}" in (ROOT / "CHANGELOG.md").read_text()
