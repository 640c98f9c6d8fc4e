"""A whole run in processes that were launched together: answers are dealt out, one process writes, and all end well."""

import json
import subprocess
import sys

import pytest

from launched import free_port, launched
from shared import write_recipe
from tunesmith import cli
from tunesmith.launch.group import group
from tunesmith.pipeline import verbs
from tunesmith.pipeline.follow import run_together

STAGES = ["evaluate instruction", "evaluate tuned"]


def _answers(run):
    """What each arm said, and what its scores are."""
    found = {}
    for name in ("instruction", "tuned"):
        lines = (run / "evaluation" / name / "outputs.jsonl").read_text().splitlines()
        found[name] = [(row["id"], row["output"], row["score"]) for row in map(json.loads, lines)]
    return found


def test_a_run_of_three_processes_is_the_run_of_one(tiny_dir, tmp_path):
    """Prompts, adapter, answers; the first process makes the run and the others write their logs alone."""
    recipe = write_recipe(tmp_path, tiny_dir, {"evaluate.batch_size": 2, "train.num_train_epochs": 1, "train.ranks": 1})
    verbs.make(verbs.open_run(recipe, tmp_path / "one"), STAGES, all_needed=True)
    run = verbs.open_run(recipe, tmp_path / "run")

    def work(rank):
        seen = []
        connection = group()
        assert connection is not None
        connection.send = _noting(connection.send, seen)
        run_together(lambda: verbs.make(run, STAGES, all_needed=True))
        assert rank or {job["kind"] for job in seen} == {"answer", "train", "end"}

    ended = launched(3, work, tmp_path)
    assert [end.code for end in ended] == [0, 0, 0], ended
    assert _answers(tmp_path / "run") == _answers(tmp_path / "one")
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / adapter).read_bytes() == (tmp_path / "one" / adapter).read_bytes()
    assert sorted(file.name for file in (tmp_path / "run" / "logs").iterdir()) == ["rank-1.log", "rank-2.log"]
    assert "as rank 2 of 3" in (tmp_path / "run" / "logs" / "rank-2.log").read_text()
    with_logs = {str(file.relative_to(tmp_path / "run")) for file in (tmp_path / "run").rglob("*") if file.is_file()}
    alone = {str(file.relative_to(tmp_path / "one")) for file in (tmp_path / "one").rglob("*") if file.is_file()}
    assert with_logs - alone == {"logs/rank-1.log", "logs/rank-2.log"} and alone <= with_logs


def _noting(send, seen):
    def noted(job):
        seen.append(job)
        send(job)

    return noted


@pytest.fixture
def command_line(tmp_path, monkeypatch, capfd):
    """A function: how two launched processes end that are given one command, and what was said to stdout and stderr."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["tunesmith", *arguments])
        return launched(2, lambda _: cli.main(), tmp_path), capfd.readouterr()

    return run


def test_a_command_that_has_nothing_for_others_to_do_is_said_once(command_line):
    ended, shown = command_line("schema")
    assert [end.code for end in ended] == [0, 0], ended
    assert json.loads(shown.out)["title"] == "Recipe"


def test_an_error_of_usage_is_the_failure_of_all(command_line):
    """Which a launcher makes its own."""
    ended, shown = command_line("run", "no.yaml")
    assert all(end.code for end in ended), ended
    assert "no such recipe" in shown.err


@pytest.mark.slow
def test_torchrun_starts_the_command_line(tmp_path):
    """The same two commands by the launcher itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    shown = subprocess.run([*command, "-m", "tunesmith", "schema"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["title"] == "Recipe"
    failed = subprocess.run(
        [*command, "-m", "tunesmith", "run", "no.yaml"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert failed.returncode != 0
    assert "no such recipe" in failed.stderr
