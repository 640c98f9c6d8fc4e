"""The command line as a new user meets it: wrong input gives one message, a hint and an exit code, never a traceback."""

import io
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import typer.main
from typer.core import TyperGroup

from shared import GGUF, write_recipe
from tunesmith import __version__, cli
from tunesmith.cli.application import BRING, EVIDENCE, LOOK, SHARE, STAGES, USE, WHOLE
from tunesmith.cli.ending import interrupt_message
from tunesmith.pipeline.table import table_of
from tunesmith.rundir.records.base import Record
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.export import ExportPlan
from tunesmith.rundir.records.parity import Parity
from tunesmith.rundir.records.provenance import Verification
from tunesmith.rundir.records.push import Push
from tunesmith.rundir.records.stages import Status
from tunesmith.rundir.records.training import Training


def _main(*arguments, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tunesmith", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


@pytest.mark.parametrize(
    ("changes", "rows", "code", "words"),
    [
        ({"data.path": "none.jsonl"}, None, 5, "no such file"),
        ({}, "", 5, "is empty"),
        ({}, '{"prompt": "a", "completion": "b"}\n' * 3 + '{"prompt": "a"}\n', 5, "1 bad rows, 3 good ones"),
        ({"trian": {}}, None, 4, "did you mean train"),
        ({"model": "./none"}, None, 6, "no such model"),
        (
            {},
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 3,
            5,
            "3 rows cannot be split",
        ),
        ({}, "{}\n", 5, "line 1, $"),
    ],
)
def test_wrong_input(tmp_path, tiny_dir, changes, rows, code, words, monkeypatch, capsys):
    recipe = write_recipe(tmp_path, tiny_dir, changes)
    if rows is not None:
        (tmp_path / "rows.jsonl").write_text(rows)
    assert _main("run", recipe, "--out", tmp_path / "run", monkeypatch=monkeypatch) == code
    talk = capsys.readouterr()
    assert words in talk.err and "hint:" in talk.err and "Traceback" not in talk.err and talk.out == ""
    left = (
        {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*")} if (tmp_path / "run").exists() else set()
    )
    assert not {name for name in left if ".tmp" in name or name.startswith(("adapter", "export", "evaluation"))}


@pytest.mark.parametrize("verb", [("status",), ("chat",), ("export", "--dry-run"), ("run", "--dry-run"), ("train",)])
def test_a_target_that_is_not_there_names_those_that_are(tmp_path, tiny_dir, verb, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _main(verb[0], "support", *verb[1:], monkeypatch=monkeypatch) == 7
    assert "support: no run or recipe of that name\nhint: there are no runs and no recipes here" in capsys.readouterr().err
    write_recipe(tmp_path, tiny_dir)
    (tmp_path / "runs" / "support").mkdir(parents=True)
    (tmp_path / "runs" / "support" / "recipe.yaml").touch()
    for target in ("support", "runs"):
        assert _main(verb[0], target, *verb[1:], monkeypatch=monkeypatch) == 7
        assert "hint: runs here: runs/support; recipes here: toy.yaml" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "toy").exists()


def test_chat_of_a_recipe_that_never_ran_leaves_nothing_and_names_the_recipe(tmp_path, tiny_dir, monkeypatch, capsys):
    write_recipe(tmp_path, tiny_dir)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert _main("chat", "toy.yaml", monkeypatch=monkeypatch) == 7
    assert "data was not run\nhint: run: tunesmith data toy.yaml;" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_gguf_cut_in_half(tmp_path, monkeypatch, capsys):
    with GGUF.open("rb") as file:
        (tmp_path / "half.gguf").write_bytes(file.read(GGUF.stat().st_size // 2))
    recipe = write_recipe(tmp_path, tmp_path, {"model": "half.gguf"})
    assert _main("run", recipe, "--out", tmp_path / "run", monkeypatch=monkeypatch) == 6
    assert "not a whole GGUF file" in capsys.readouterr().err


def test_place_without_permission(tmp_path, tiny_dir, monkeypatch, capsys):
    recipe = write_recipe(tmp_path, tiny_dir)
    # Root may write anywhere; a place below a file is refused to everyone, as is the kernel's own tree.
    for place in (recipe / "run", "/proc/run"):
        assert _main("data", recipe, "--out", place, monkeypatch=monkeypatch) == 7
        assert "cannot be written" in capsys.readouterr().err
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert _main("data", recipe, "--out", tmp_path / "closed" / "run", monkeypatch=monkeypatch) == 7


def test_a_file_that_cannot_be_written_is_named_as_it_was_given(tmp_path, tiny_dir, monkeypatch, capsys):
    write_recipe(tmp_path, tiny_dir)
    out = "/proc/rows.yaml"  # where nobody may make a file, not even root
    assert _main("init", tmp_path / "rows.jsonl", "--model", tiny_dir, "--out", out, monkeypatch=monkeypatch) == 3
    assert f"error: {out}: " in capsys.readouterr().err


def test_missing_extra_is_named(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    recipe = write_recipe(tmp_path, tmp_path)
    command = [sys.executable, "-m", "tunesmith", "render", str(recipe), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 20, done.stderr
    assert "pip install 'tunesmith[train]'" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_says_the_command_that_goes_on(tmp_path, tiny_dir, monkeypatch):
    recipe = write_recipe(tmp_path, tiny_dir, {"train.num_train_epochs": 40, "train.evals_per_epoch": 20})
    out = tmp_path / "my run"
    for verb in ("data", "render"):
        assert _main(verb, recipe, "--out", out, monkeypatch=monkeypatch) == 0
    arguments = ["-q", "train", str(recipe), "--out", str(out)]
    child = os.fork()  # a fresh process would import for seconds what is here
    if child == 0:
        os.dup2(os.open(tmp_path / "talk", os.O_CREAT | os.O_WRONLY), 2)
        sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115 - not pytest's
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background hands it down ignored
        sys.argv = ["tunesmith", *arguments]
        try:
            cli.main()
        except SystemExit as stop:
            os._exit(stop.code)
        finally:
            os._exit(99)
    while not (died := os.waitpid(child, os.WNOHANG)[0]) and not any((out / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    assert not died
    os.kill(child, signal.SIGINT)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ended[0], "it did not end"
    code = os.waitstatus_to_exitcode(ended[1])
    talk = (tmp_path / "talk").read_text()
    assert code == 130 and "interrupted" in talk and "Traceback" not in talk, talk
    assert shlex.split(talk.splitlines()[-1]) == ["tunesmith", *arguments]


@pytest.mark.parametrize("arguments", [["chat", "runs/a"], ["check", "rows.jsonl"], ["-v"], []])
def test_ctrl_c_promises_nothing_where_nothing_is_kept(arguments):
    assert interrupt_message(arguments) == "interrupted"


def test_verdict_is_printed_on_stdout_with_its_exit_code(tiny_run, monkeypatch, capsys):
    verdict = Verdict.read(tiny_run.verdict_file)
    assert _main("verdict", tiny_run.path, monkeypatch=monkeypatch) == verdict.exit_code
    printed = capsys.readouterr().out
    assert f"verdict: {verdict.decision}" in printed and verdict.reason[:40] in printed
    for arm in ("instruction", "few_shot", "tuned", "deployed"):
        assert arm in printed


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("push", "--to", "team/toy"), 26, "add --yes where you mean it"),  # nobody to ask
        (("push", "--to", "team/toy", "--form", "gguf", "--dry-run"), 26, "parity did not pass it"),
        (("push", "--to", "toy", "--dry-run"), 26, "such as --to my-team/toy"),
        (("verdict", "--markdown", "--json"), 2, "one of the two"),
        (("race", "--model", "a/b"), 7, "name two or more"),
    ],
)
def test_what_is_not_to_be_done_is_refused_with_a_hint(tiny_run, arguments, code, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert _main(arguments[0], tiny_run.path, *arguments[1:], monkeypatch=monkeypatch) == code
    talk = capsys.readouterr()
    assert words in " ".join(talk.err.split()) and not talk.out


def test_a_run_says_where_its_time_went(tiny_run, monkeypatch, capsys):
    _main("run", tiny_run.path, monkeypatch=monkeypatch)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    stages = tiny_run.stages()
    (train,) = [line for line in lines if line[:1] == ["train"]]
    (whole,) = [line for line in lines if line[:1] == ["all"]]
    minutes, seconds = map(int, whole[1].split(":"))
    assert abs(60 * minutes + seconds - sum(stage.seconds for stage in stages.values())) <= 0.5
    assert train[-1] == f"{stages['train'].peak_bytes / 1e9:.1f}" and train[3] == "%"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("verdict",), Verdict),
        (("run",), Verdict),
        (("parity",), Parity),
        (("train",), Training),
        (("status",), Status),
        (("verify",), Verification),
        (("push", "--to", "team/toy", "--dry-run"), Push),
        (("run", "--dry-run"), Status),
        (("export", "--dry-run"), ExportPlan),
    ],
)
def test_json_is_the_record_and_nothing_else(tiny_run, arguments, kind: type[Record], monkeypatch, capsys):
    code = _main(arguments[0], tiny_run.path, *arguments[1:], "--json", monkeypatch=monkeypatch)
    record = kind.parse(capsys.readouterr().out)
    if isinstance(record, Verdict | Parity):
        assert code == record.exit_code
    if isinstance(record, Verdict):
        assert record == Verdict.read(tiny_run.verdict_file)
    if isinstance(record, Status):
        assert {stage.state for stage in record.stages} == {"done"}
    if isinstance(record, ExportPlan):
        assert 0 < record.bytes <= record.peak_bytes
        assert all((tiny_run.export / step.target).exists() for step in record.steps if step.until is None)


def test_help_stands_in_groups_in_the_order_of_a_run(tiny_run):
    group = typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    panels = [str(vars(command)["rich_help_panel"]) for command in group.commands.values()]
    assert list(dict.fromkeys(panels)) == [LOOK, WHOLE, STAGES, EVIDENCE, BRING, USE, SHARE]
    assert panels == sorted(panels, key=panels.index)  # no group in two pieces
    stages = [stage.name.split()[0] for stage in table_of(tiny_run.recipe()).stages]
    verbs = [name for name, panel in zip(group.commands, panels, strict=True) if panel == STAGES]
    last = {name: place for place, name in enumerate(stages)}  # "evaluate" stands once an arm
    assert verbs == sorted(verbs, key=lambda name: last[name])


def test_version(monkeypatch, capsys):
    assert _main("--version", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 4, "nothing to gate"),
        (("--adapter", "none"), 6, "no such adapter directory"),
        (("--adapter", "none", "--metric", "regex"), 4, "metric: regex needs task.pattern"),
        (("--gguf", "x.gguf", "--api-key-env", "KEY"), 2, "--endpoint"),
        (("--endpoint", "localhost:8080", "mine"), 4, "not the plain URL of an endpoint"),
        (("--adapter", "none", "--trained-on", "gone.jsonl"), 4, "data.trained_on"),
    ],
)
def test_gate_says_what_is_missing(tmp_path, tiny_dir, options, code, words, monkeypatch, capsys):
    write_recipe(tmp_path, tiny_dir)
    monkeypatch.chdir(tmp_path)
    assert _main("gate", "rows.jsonl", "--base", tiny_dir, *options, monkeypatch=monkeypatch) == code
    talk = capsys.readouterr()
    assert words in talk.err and "Traceback" not in talk.err and talk.out == ""
