import pytest

from conftest import write_recipe
from tunesmith.errors import RunError
from tunesmith.recipe import load_recipe
from tunesmith.rundir import RunDir, fingerprint, whole_directory, write_text
from tunesmith.track import MetricsLog, read_metrics


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "x"
    with whole_directory(target) as directory:
        (directory / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), whole_directory(target) as directory:
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
    log.truncate_after(2)
    assert [r["step"] for r in read_metrics(log.path)] == [1, 2]


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
    with pytest.raises(RunError, match="stage data has not been run here"):
        run.key_of("data")
    run.mark_done("data", "k", 1.0, 2)
    assert run.is_done("data", "k") and not run.is_done("data", "other")


def test_fingerprint_ignores_the_order_of_keys_and_nothing_else():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert len({fingerprint(1), fingerprint("1"), fingerprint([1]), fingerprint(None)}) == 4
