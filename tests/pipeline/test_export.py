"""The export as a whole: what the plan says, what lies there, and what is left when the disk or the process gives out.

One export is made for real. Elsewhere the converter, a child process of some seconds, is replaced by a copy of the file that
it wrote there: the inputs are the same.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shared import write_recipe
from tunesmith import cli
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.errors import ExportError
from tunesmith.export import job as export_job
from tunesmith.export.forms.form import Operation, peak
from tunesmith.export.forms.merged import merge_adapter
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.export import dry_run, job_of
from tunesmith.pipeline.plan import plan
from tunesmith.recipe import dump_recipe
from tunesmith.rundir import NEXT, READY, RunDir, sha256_file, write_text
from tunesmith.rundir.atomic import is_full_disk
from tunesmith.rundir.records.export import Commands, Export, Merge

FORMS = {"export.gguf": ["F16", "Q4_0"], "export.imatrix": True, "export.lora_gguf": True}
SMALL = {"gguf": ("Q8_0",), "imatrix": False, "lora_gguf": False}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_dir):
    """A trained run with every form."""
    folder = tmp_path_factory.mktemp("forms")
    run = api.open_run(write_recipe(folder, tiny_dir, FORMS), folder / "run")
    api.data(run)
    api.render(run)
    api.train(run)
    api.export(run)
    run.steps_done = dry_run(run)
    return run


@pytest.fixture
def copied(exported, tmp_path, monkeypatch):
    """A copy of it to be changed, with the converter stubbed."""
    shutil.copytree(exported.path, tmp_path / "run")
    half = exported.export / "toy-F16.gguf"
    written = "tunesmith.checkpoints.gguf_write.convert.convert"
    monkeypatch.setattr(written, lambda model, target, kind: shutil.copyfile(half, target))
    return RunDir(tmp_path / "run")


def _change(run, **settings):
    recipe = run.recipe()
    changed = recipe.model_copy(update={"export": recipe.export.model_copy(update=settings)})
    write_text(run.recipe_file, dump_recipe(changed))


def _hashes(directory, apart=(NEXT,)):
    """sha256 by file; none names the place it lies in."""
    files = {str(file.relative_to(directory)): file for file in sorted(directory.rglob("*")) if file.is_file()}
    return {name: sha256_file(file) for name, file in files.items() if not name.startswith(apart)}


def test_every_form_lies_there_as_planned(exported):
    steps = exported.steps_done
    names = {entry.name for entry in exported.export.iterdir()}
    assert names == {*(step.target for step in steps if step.until is None and "/" not in step.target), "export.json"}
    assert "toy-base-F16.gguf" not in names and names >= {"toy-base-Q4_0.gguf", "Modelfile", "Modelfile.adapter"}
    for step in steps:
        path = exported.export / step.target
        if step.kind in ("merge", "convert", "quantize", "base-gguf") and step.until is None:
            size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size
            assert abs(step.nbytes - size) < 0.02 * size, step
        elif path.is_file():
            assert path.stat().st_size < 2 * step.nbytes
    assert list(Export.read(exported.export / "export.json").files) == ["F16", "Q4_0"]


def test_a_plan_from_the_configuration_alone_foretells_every_file(exported):
    """Within 3 % of what lies there: of a checkpoint, the adapter, and each form."""

    def size(path):
        return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size

    foretold = plan(str(exported.path), gpu="T4").disk.run
    checkpoints = {name: nbytes for name, nbytes in foretold.items() if "checkpoint" in name}
    (most,) = checkpoints
    newest = max(exported.checkpoints.glob("step-*"))
    assert checkpoints[most] / int(most.split()[0]) == pytest.approx(size(newest), rel=0.03)
    assert foretold["adapter"] == pytest.approx(size(exported.adapter / "adapter_model.safetensors"), rel=0.03)
    places = {"merged": "merged", "F16.gguf": "toy-F16.gguf", "Q4_0.gguf": "toy-Q4_0.gguf"}
    places |= {"adapter.gguf": "toy-lora.gguf", "base-Q4_0.gguf": "toy-base-Q4_0.gguf"}
    for name, place in places.items():
        assert foretold[name] == pytest.approx(size(exported.export / place), rel=0.03), name
    assert set(foretold) == {most, "adapter", *places}, "F16 stays, so nothing is temporary"


def test_a_head_that_training_held_in_8_bits_is_not_the_one_that_is_merged(copied):
    assert Merge.read(copied.export / "merge.json").head == "as trained"
    job = job_of(copied, copied.recipe().model_copy(update={"base_head": "int8"}))
    assert merge_adapter(job, dry_run(copied)[0]).head == "original"


def test_files_say_what_they_are(exported, tokenizer):
    tuned, base = (GgufReader(exported.export / name) for name in ("toy-Q4_0.gguf", "toy-base-Q4_0.gguf"))
    for reader in (tuned, base):
        assert reader.fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert tuned.fields["quantize.imatrix.dataset"].contents() == "train part of toy"
    assert "quantize.imatrix.dataset" not in base.fields
    assert tuned.fields["general.name"].contents().lower() == "toy" and base.fields["general.name"].contents().lower() == "tiny"
    lora = GgufReader(exported.export / "toy-lora.gguf")
    assert lora.fields["general.name"].contents() == "Toy Lora"  # and no name of a temporary directory
    written = Commands.read(exported.export / "commands.json")
    assert written.refused == {} and {"vllm", "llama_server_adapter", "ollama", "ollama_adapter"} <= written.commands.keys()
    for name in ("Modelfile", "Modelfile.adapter"):
        assert "PARAMETER num_ctx 1024" in (exported.export / name).read_text()  # what the model takes is less than 4,096
    card = (exported.export / "merged" / "README.md").read_text()
    assert "| Q4_0 |" in card and "llama-server" in card


def test_a_dry_run_before_training_says_the_sizes_and_writes_nothing(exported, tmp_path, tiny_dir, monkeypatch, capsys):
    recipe = write_recipe(tmp_path, tiny_dir, FORMS)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["tunesmith", "export", str(recipe), "--out", str(tmp_path / "run"), "--dry-run"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    listing = capsys.readouterr().out
    assert left.value.code == 0 and sorted(tmp_path.rglob("*")) == before
    for step in exported.steps_done:
        assert step.target in listing
    assert "until toy-base-Q4_0.gguf is there" in listing and "free on the disk" in listing and "temporary" in listing


def _step(target, nbytes, **more):
    return Operation(kind="any", target=target, nbytes=nbytes, write=lambda job, step: None, **more)


def test_the_peak_counts_what_lies_there_at_the_same_time():
    steps = [
        _step("merged", 100),
        _step("merge.json", 1, scratch=100),
        _step("half", 50, until="small"),
        _step("small", 20),
        _step("lora", 10),
    ]
    assert peak(steps) == 201
    assert peak([steps[0], *steps[2:]]) == 170
    assert peak(steps, there=("merged", "merge.json")) == 70


def test_what_a_form_cannot_hold_is_refused_before_anything_is_written(copied):
    recipe = copied.recipe()
    changed = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"use_dora": True})})
    write_text(copied.recipe_file, dump_recipe(changed))
    before = _hashes(copied.export)
    with pytest.raises(ExportError, match=r"export\.lora_gguf: llama\.cpp's adapters have no DoRA"):
        dry_run(copied)
    assert _hashes(copied.export) == before
    write_text(copied.recipe_file, dump_recipe(recipe))
    _change(copied, lora_gguf=False, num_ctx=4096)
    with pytest.raises(ExportError, match=r"num_ctx: 4096, the model takes 1024"):
        dry_run(copied)


def test_what_the_new_export_does_not_hold_is_gone(copied, talk):
    (copied.export / "parity.json").write_text("{}")
    _change(copied, **SMALL)
    api.export(copied)
    names = {entry.name for entry in copied.export.iterdir()}
    assert names == {"merged", "merge.json", "export.json", "toy-Q8_0.gguf", "Modelfile", "commands.json"}
    lines, files = talk(), Export.read(copied.export / "export.json").files
    assert "toy-Q8_0.gguf" in lines and f"{files['Q8_0'].bits_per_weight:.2f} bits a weight" in lines
    assert f"serve, in {copied.path}: llama-server --model export/toy-Q8_0.gguf" in lines
    assert api.status(copied)["export"].state == "done"


def test_a_template_that_no_modelfile_expresses_does_not_fail_the_export(copied, monkeypatch, talk):
    def refusing(*_):
        raise ExportError("the date")

    monkeypatch.setattr("tunesmith.export.ollama.modelfile.write_modelfile", refusing)
    _change(copied, **SMALL)
    api.export(copied)
    assert Commands.read(copied.export / "commands.json").refused == {"Modelfile": "the date"}
    assert not (copied.export / "Modelfile").exists() and "export: no Modelfile: the date" in talk()


def test_a_run_that_is_moved_has_the_same_commands(copied):
    """No file of the export names the place it was made in, so commands typed in the run directory hold wherever that is."""
    for file in [*copied.export.rglob("*.json"), *copied.export.rglob("*.md"), *copied.export.glob("Modelfile*")]:
        assert "/run/" not in file.read_text().replace(str(copied.recipe().model), ""), file
    argvs = [argv for command in Commands.read(copied.export / "commands.json").commands.values() for argv in command.argvs]
    named = [word for argv in argvs for word in argv if word.startswith(("export/", "adapter"))]
    assert len(named) > 6 and all((copied.path / word).exists() for word in named)


def test_too_little_room_is_said_before_the_first_byte(copied, monkeypatch):
    _change(copied, **SMALL)
    before = _hashes(copied.export)
    needed = peak(dry_run(copied))
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(2 * needed, needed, needed - 1))
    with pytest.raises(ExportError, match=f"takes {needed:,} bytes at a time, {needed - 1:,} are free"):
        api.export(copied)
    assert _hashes(copied.export) == before and not any((copied.export / NEXT).iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(bytes)`` -> a file system of that size; skipped where this user may not mount one."""
    made = []

    def make(nbytes):
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        mount = shutil.which("mount")
        asked = [mount, "-t", "tmpfs", "-o", f"size={nbytes}", "none", str(place)]
        if mount is None or subprocess.run(asked, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        made.append(place)
        return place

    yield make
    for place in made:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_up_in_the_middle_leaves_the_old_export(copied, small_disk, monkeypatch):
    _change(copied, **SMALL)
    for file in copied.export.glob("*F16.gguf"):
        file.unlink()
    taken = sum(file.stat().st_size for file in copied.path.rglob("*") if file.is_file()) + 2**20
    merged, sixteen, quantised = (step.nbytes for step in dry_run(copied)[:3])
    monkeypatch.setattr(export_job, "_refuse_full_disk", lambda *_: None)
    monkeypatch.setattr("tunesmith.export.merge.refuse_full_disk", lambda *_: None)
    for room in (merged // 2, merged + sixteen // 2, merged + sixteen + quantised // 2):
        disk = small_disk(taken + room)
        shutil.copytree(copied.path, disk / "run")
        run = RunDir(disk / "run")
        before = _hashes(run.export)
        with pytest.raises(ExportError, match=r"the disk is full.*the old one is whole") as caught:
            api.export(run)
        assert caught.value.exit_code == 9 and "--dry-run" in caught.value.hint
        assert _hashes(run.export, apart=()) == before
    subprocess.run(["mount", "-o", f"remount,size={taken + 60_000_000}", str(disk)], check=True)
    api.export(run)
    assert (run.export / "toy-Q8_0.gguf").exists() and not (run.export / "toy-Q4_0.gguf").exists()


def test_the_words_of_others_for_a_full_disk():
    child = "x: llama.cpp's convert_hf_to_gguf.py failed (1):\nOSError: [Errno 28] No space left on device"
    assert is_full_disk(ExportError(child)) and is_full_disk(OSError("1024 requested and 512 written"))
    assert not is_full_disk(ExportError("does not know X")) and not is_full_disk(OSError(13, "Permission denied"))


@pytest.mark.parametrize(
    "text", ['{"version": 1, "ste', '{"version": 99, "steps": {}}', '{"merged": {"key": "x", "facts": {}}}']
)
def test_notes_that_cannot_be_read_are_said_and_nothing_is_taken_by_them(text, tmp_path, talk):
    (tmp_path / "done.json").write_text(text)
    assert export_job._noted(tmp_path / "done.json") == {}
    assert "nothing is taken from an earlier call" in talk()


def _killed(run, at):
    """Export in a child that is killed at its ``at``-th rename or removal; whether it was."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # OpenMP's other threads are not in the child, which would wait for them
        calls = [0]

        def dying(function):
            def call(*args, **kwargs):
                calls[0] += 1
                if calls[0] == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        Path.replace, Path.unlink, shutil.rmtree = dying(Path.replace), dying(Path.unlink), dying(shutil.rmtree)
        try:
            api.export(run)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_anywhere_the_old_export_stays_and_a_rerun_finishes(copied):
    _change(copied, **SMALL)
    shutil.copytree(copied.path, copied.path.with_name("clean"))
    clean = RunDir(copied.path.with_name("clean"))
    api.export(clean)
    expected, before = _hashes(clean.export), _hashes(copied.export)
    survived, at = [], 1
    while _killed(copied, at):
        if not (copied.export / READY).exists():
            assert _hashes(copied.export) == before, f"killed at call {at}"
        survived.append(sorted(entry.name for entry in (copied.export / NEXT).glob("*")))
        again = RunDir.open(copied.path)
        with again.writing():  # whoever writes next moves in what was decided
            pass
        if _hashes(again.export) != before:
            assert _hashes(again.export) == expected and api.status(again)["export"].state == "done", f"killed at call {at}"
            break
        at += 2
    assert len(survived) > 3 and any("toy-F16.gguf" in names for names in survived)
    api.export(copied)
    assert _hashes(copied.export, apart=()) == expected
