"""Rule 7: public names, recipes, and every command in README and docs are exercised; README's tree equals the disk."""

import io
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import tunesmith
from conftest import ROOT
from tunesmith import cli
from tunesmith.recipe import load_recipe

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
VERDICT_CODES = {0, 10, 11, 12, 13, 21, 22, 23, 24}


def _commands():
    for document in DOCUMENTS:
        for block in re.findall(r"```(?:sh|console)\n(.*?)```", document.read_text(), re.DOTALL):
            for line in block.splitlines():
                command = line.removeprefix("$ ").split("  #")[0].strip()
                if command.startswith(("tunesmith ", "make ")):
                    yield pytest.param(command, id=f"{document.name}: {command}")


@pytest.mark.parametrize("command", list(_commands()))
def test_every_documented_command_runs(command, tiny_run, tiny_dir, tmp_path, monkeypatch, capsys):
    words = shlex.split(command)
    if words[0] == "make":
        for target in words[1:]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        return
    here = {
        "runs/us_addresses": str(tiny_run.path),
        "recipes/us_addresses.yaml": str(tiny_run.path / "recipe.yaml"),
        "recipes/us_addresses/us_addresses.jsonl": str(tiny_run.path.parent / "rows.jsonl"),
        "assets/SmolLM2-135M-Instruct.Q4_1.gguf": str(tiny_dir),
    }
    (tmp_path / "answers.csv").write_text("question,answer\na red car,red\n")
    monkeypatch.chdir(tmp_path)
    arguments = [here.get(word, word) for word in words[1:]]
    if any(word.endswith("recipe.yaml") for word in arguments) and words[1] != "schema":
        arguments += ["--out", str(tiny_run.path)]
    monkeypatch.setattr("sys.argv", ["tunesmith", *arguments])
    monkeypatch.setattr("sys.stdin", io.StringIO("a red car\n"))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code or 0) in VERDICT_CODES, capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_is_valid_and_its_files_are_there(path):
    recipe = load_recipe(path)
    source = Path(recipe.data.path)
    made = source.is_relative_to(ROOT) and f"\n{source.relative_to(ROOT)}:" in (ROOT / "Makefile").read_text()
    assert (source.exists() or made) and recipe.name == path.stem
    assert recipe.task.json_schema is None or recipe.task.json_schema.exists()


def test_public_names_are_the_promised_ones():
    assert len(tunesmith.__all__) <= 14
    for name in tunesmith.__all__:
        assert name in vars(tunesmith), name


def test_readme_tree_is_the_tree_on_disk():
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```text\n(.*?)```", readme, re.DOTALL).group(1)
    stack, written = [], set()
    for line in block.splitlines():
        match = re.match(r"^( *)(\S+)(?: {2,}(\S.*))?$", line)
        if not match:
            continue
        indent, name, phrase = len(match.group(1)) // 2, match.group(2), match.group(3)
        stack = [*stack[:indent], name.rstrip("/")]
        assert phrase, f"{name} has no phrase"
        written.add("/".join(stack))
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    on_disk = set()
    for file in tracked:
        parts = file.split("/")
        on_disk.add(parts[0])
        if file.startswith("src/tunesmith/"):
            on_disk |= {"/".join(parts[:n]) for n in range(2, min(len(parts), 5) + 1)}
    on_disk = {name for name in on_disk if not name.startswith(".") and "/." not in name and not name.endswith("__init__.py")}
    on_disk -= {"LICENSE", "README.md", "src"}
    written = {name for name in written if name != "src"}
    assert written == on_disk


def test_changelog_knows_this_version():
    assert f"## {tunesmith.__version__}" in (ROOT / "CHANGELOG.md").read_text()
