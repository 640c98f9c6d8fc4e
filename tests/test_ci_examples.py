"""The jobs in ``examples/ci/``: their shell runs on the tiny run and passes or fails by the verdict's exit code."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from shared import ROOT

CI = ROOT / "examples" / "ci"
GITHUB = yaml.safe_load((CI / "github.yml").read_text().replace("\non:", '\n"on":'))
GITLAB = yaml.safe_load((CI / "gitlab.yml").read_text())
COMMENT = 'import pathlib, sys; pathlib.Path("comment").write_text(" ".join(sys.argv[1:]))'
TOO_LITTLE = 12  # the tiny run's verdict


def test_the_files_have_the_keys_of_their_services():
    job = GITHUB["jobs"]["gate"]
    assert set(GITHUB) <= {"name", "on", "permissions", "concurrency", "jobs"} and "pull_request" in GITHUB["on"]
    assert set(job) <= {"runs-on", "timeout-minutes", "env", "steps"}
    keys = {"name", "id", "if", "uses", "with", "env", "run", "continue-on-error"}
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step) and set(step) <= keys
        assert "uses" not in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
    job = GITLAB["tunesmith-gate"]
    assert set(job) <= {"image", "timeout", "rules", "variables", "cache", "before_script", "script", "artifacts"}
    assert set(job["artifacts"]) <= {"when", "paths"} and set(job["cache"]) <= {"key", "paths"}


def _github():
    steps = [step for step in GITHUB["jobs"]["gate"]["steps"] if "run" in step and step["name"] != "Install"]
    return [(step["run"], step.get("env", {})) for step in steps], GITHUB["jobs"]["gate"]["env"]


def _gitlab():
    job = GITLAB["tunesmith-gate"]
    return [(script, {}) for script in job["script"]], {**job["variables"], "GATE_TOKEN": "secret"}


def _filled(text, told):
    """A value of a step's environment, with what an earlier step put out."""
    outputs = dict(line.split("=") for line in told.read_text().splitlines()) if told.exists() else {}
    return re.sub(r"\$\{\{ *steps\.judge\.outputs\.(\w+) *\}\}", lambda match: outputs[match[1]], text)


@pytest.mark.parametrize(("service", "accept", "ends"), [(_github, "0", TOO_LITTLE), (_gitlab, "0 12", 0)])
def test_a_job_passes_by_the_verdicts_that_it_accepts(service, accept, ends, tiny_run, tmp_path):
    shutil.copytree(tiny_run.path, tmp_path / "runs" / "gate")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, command in (("tunesmith", "-m tunesmith"), ("gh", f"-c '{COMMENT}'"), ("curl", f"-c '{COMMENT}'")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n')
        (tools / name).chmod(0o755)
    scripts, variables = service()
    told = tmp_path / "output"
    environment = {
        **os.environ,
        **variables,
        "RECIPE": "runs/gate",  # a run that is there, so that no page is drawn again
        "ACCEPT": accept,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "GITHUB_OUTPUT": str(told),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        **{f"CI_{name}": "x" for name in ("API_V4_URL", "PROJECT_ID", "MERGE_REQUEST_IID")},
    }
    code, talk = 0, ""
    for script, own in scripts:
        values = {key: _filled(text, told) for key, text in own.items()}
        command = ["bash", "-e", "-o", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=tmp_path, env={**environment, **values}, capture_output=True, text=True)
        code, talk = done.returncode, done.stderr
        if code:
            break
    assert code == ends, talk
    assert "verdict.md" in (tmp_path / "comment").read_text()
    assert (tmp_path / "verdict.md").read_text().startswith("### toy: **too little data to tell**")
    assert '"decision"' in (tmp_path / "verdict.json").read_text()
