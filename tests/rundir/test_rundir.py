from pathlib import Path

import pytest

from shared import write_recipe
from tunesmith.errors import RunError
from tunesmith.recipe import load_recipe
from tunesmith.rundir import (
    RunDir,
    atomic_directory,
    fingerprint,
    finish_swap,
    forget_journal,
    recover_directory,
    swap_in,
    write_text,
)
from tunesmith.tracking import MetricsLog, read_metrics


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "x"
    with atomic_directory(target) as directory:
        (directory / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), atomic_directory(target) as directory:
        (directory / "a").write_text("2")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "1" and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_is_never_half_written(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_text(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_torn_last_line_of_metrics_is_left_out(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    for step in (1, 2, 3):
        log.append({"step": step})
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in read_metrics(log.path)] == [1, 2, 3]
    (tmp_path / "table").write_bytes(b'{"step": 1}\n{"step": 2}\n')
    log.restore(tmp_path / "table")
    assert log.path.read_bytes() == (tmp_path / "table").read_bytes()
    log.restore(None)
    assert log.path.read_bytes() == b""


def test_places_that_are_no_run(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        RunDir.create(tmp_path / "file", recipe)
    with pytest.raises(RunError, match=r"holds files but no recipe\.yaml"):
        RunDir.create(tmp_path, recipe)
    with pytest.raises(RunError, match="cannot be written"):
        RunDir.create(tmp_path / "file" / "run", recipe)
    with pytest.raises(RunError, match="no run here"):
        RunDir.open(tmp_path)
    run = RunDir.create(tmp_path / "run", recipe)
    assert run.stages() == {} and run.manifest().recipe_source is None


def test_what_a_killed_writer_left_is_no_obstacle_and_does_not_stay(tmp_path, tiny_dir):
    recipe = load_recipe(write_recipe(tmp_path, tiny_dir))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.yaml.tmp").write_text("ba")  # killed before there was a run
    run = RunDir.create(tmp_path / "run", recipe)
    left = [run.data / ".dev.arrow.4711.tmp", run.export / "merged" / ".a.tmp" / "b", run.path / ".stages.json.tmp"]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("half")
    with run.writing():
        assert [path for path in run.path.rglob("*") if ".tmp" in path.name] == []
    assert (run.export / "merged").is_dir()


def test_fingerprint_ignores_the_order_of_keys_and_nothing_else():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert len({fingerprint(1), fingerprint("1"), fingerprint([1]), fingerprint(None)}) == 4


@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_directory_survives_a_kill_between_the_two_renames(tmp_path, monkeypatch, killed_at):
    target, renamed = tmp_path / "x", []
    with atomic_directory(target) as directory:
        (directory / "a").write_text("1")
    replace = Path.replace

    def dying(path, other):
        if path.parent == tmp_path:
            renamed.append(path.name)
            if len(renamed) == killed_at:
                _die(monkeypatch)
        return replace(path, other)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(Killed), atomic_directory(target) as directory:
        (directory / "a").write_text("2")
    monkeypatch.undo()
    assert target.exists() == (killed_at == 1)
    recover_directory(target)
    assert (target / "a").read_text() == "1"
    with atomic_directory(target) as directory:
        (directory / "a").write_text("3")
    assert (target / "a").read_text() == "3" and [p.name for p in tmp_path.iterdir()] == ["x"]


class Killed(BaseException):
    pass


def _die(monkeypatch):
    """As a kill does it: nothing that cleans up has an effect any more."""
    monkeypatch.setattr(Path, "replace", lambda *_: None)
    monkeypatch.setattr("tunesmith.rundir.atomic.recover_directory", lambda _: None)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    raise Killed


def _state(directory):
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_what_is_published_is_in_its_place_whatever_move_was_the_last(tmp_path, monkeypatch):
    for killed_at in range(1, 99):
        directory = tmp_path / str(killed_at)
        (directory / "merged").mkdir(parents=True)
        for name in ("merged/a", "x.gguf", "stale.gguf", "parity.json"):
            (directory / name).write_text("old")
        before = _state(directory)
        (directory / ".next" / "merged").mkdir(parents=True)
        for name in ("merged/a", "x.gguf", "new.gguf"):
            (directory / ".next" / name).write_text("new")
        replace, calls = Path.replace, []

        def dying(path, other, killed_at=killed_at, calls=calls, replace=replace):
            calls.append(path)
            if len(calls) == killed_at:
                _die(monkeypatch)
            return replace(path, other)

        monkeypatch.setattr(Path, "replace", dying)
        try:
            swap_in(directory, {"k": 1})
        except Killed:
            monkeypatch.undo()
            if not (directory / ".ready").exists():  # not decided yet: the old one is as it was
                assert {name: text for name, text in _state(directory).items() if not name.startswith(".next")} == before
                continue
        else:
            monkeypatch.undo()
        assert finish_swap(directory).inputs == {"k": 1}
        forget_journal(directory)
        assert _state(directory) == {"merged/a": "new", "x.gguf": "new", "new.gguf": "new"}
        if len(calls) < killed_at:
            assert killed_at > 7
            return
    raise AssertionError
