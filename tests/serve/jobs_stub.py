"""The programs of a worker as stubs that start at once: a check that looks for a word, a run that counts and resumes.

``python jobs_stub.py check DIR JOB`` and ``run DIR JOB``. What a stub does is written in the first line of the job's rows, as
JSON: ``{"steps": 3, "pause": 0.05, "code": 0, "bad": "...", "crash_at": 2, "until": "/a/file"}``. Each step of a run is a line
of ``counted.txt``; a line more than once would be a step that was done twice.
"""

import datetime
import fcntl
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path


def check(directory, job, asked, rows):
    time.sleep(asked.get("checking", 0.0))
    if "bad" in asked:
        error = {"code": "invalid_training_file", "message": f"{rows}: {asked['bad']}", "param": "training_file"}
        print(json.dumps({"error": error}))
    else:
        print(json.dumps({"ok": {"said": ["Files validated, moving job to queued state"]}}))
    return 0


def run(directory, job, asked, rows):
    path = directory / "runs" / job
    path.mkdir(parents=True, exist_ok=True)
    with (path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

        def log(kind, **fields):
            at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            with (path / "events.jsonl").open("a") as file:
                file.write(json.dumps({"at": at, "stage": "train", "kind": kind, **fields}) + "\n")

        def step_done(step):
            log("metric", step=step, figures={"loss": 1.0 / step, "accuracy": 0.5, "tokens": 10.0, "dev_loss": 1.0})

        log("process start", process=os.getpid(), version=1)
        log("stage start", reason="")
        counted = path / "counted.txt"
        done = len(counted.read_text().splitlines()) if counted.exists() else 0
        for step in range(1, done + 1):  # as a training does that resumes
            step_done(step)
        for step in itertools.count(done + 1):
            if step > asked.get("steps", 3) and ("until" not in asked or Path(asked["until"]).exists()):
                break
            if asked.get("crash_at") == step:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(asked.get("pause", 0.01))
            with counted.open("a") as file:
                file.write(f"{step}\n")
            step_done(step)
        log("stage end", outcome="done", seconds=0.1)
        log("arm", arm="tuned", rows=16, score=0.5)
        code = asked.get("code", 0)
        if code in (0, 10):
            _results(path, asked, code)
        else:
            log("stage end", outcome="failed", seconds=0.1, error=f"{directory}/runs: the reason")
    return code


def _results(path, asked, code):
    """A verdict that was kept, under the decision that is asked for; the files beside it."""
    kept = json.loads(Path(asked["verdict"]).read_text())
    kept |= {"decision": {0: "deploy", 10: "prompting is enough"}[code], "exit_code": code}
    (path / "evaluation").mkdir(exist_ok=True)
    (path / "evaluation" / "verdict.json").write_text(json.dumps(kept))
    (path / "report.html").write_text("<p>the report</p>")
    steps = range(1, asked.get("steps", 3) + 1)
    lines = [json.dumps({"step": n, "loss": 1.0 / n, "tokens": 10}) + "\n" for n in steps]
    (path / "metrics.jsonl").write_text("".join(lines))
    training = {
        **{"version": 1, "steps": 3, "fill": 1.0, "learning_rate": 1e-3, "tokens_per_step": 10, "num_train_epochs": 2},
        **{"derivation": [], "trained_weights": 1, "target_layers": 1, "dev_losses": [], "best_step": 1, "best_dev_loss": 1.0},
        **{"first_dev_loss": 2.0, "only_worse": False, "overfit": False, "undertrained": False, "tokens_per_second": 1.0},
        "computed_on": [],
    }
    (path / "training.json").write_text(json.dumps(training))


if __name__ == "__main__":
    verb, directory, job = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    rows = min((directory / "rows" / job).iterdir())
    asked = json.loads(rows.read_text().splitlines()[0])
    sys.exit({"check": check, "run": run}[verb](directory, job, asked, rows))
