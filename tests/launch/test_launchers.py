"""The examples that launch a run elsewhere."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from shared import ROOT, write_recipe
from tunesmith.pipeline import verbs

SKY = ROOT / "examples" / "scale" / "sky.yaml"
# docs.skypilot.co, "Environment variables"; of one task, the same after a recovery.
SET_BY_SKYPILOT = {"NODE_IPS", "NODE_RANK", "NUM_NODES", "NUM_GPUS_PER_NODE", "TASK_ID"}


def test_the_task_of_skypilot_is_whole():
    task = yaml.safe_load(SKY.read_text())
    assert set(re.findall(r"SKYPILOT_(\w+)", task["run"])) == SET_BY_SKYPILOT
    assert "/runs/$SKYPILOT_TASK_ID" in task["run"] and "/runs" in task["file_mounts"]
    shell = f'torchrun() {{ printf "%s\\n" "$@"; }}\n{task["run"]}'
    values = {"NODE_IPS": "10.0.0.1\n10.0.0.2", "NODE_RANK": "1", "NUM_NODES": "2", "NUM_GPUS_PER_NODE": "4", "TASK_ID": "t-1"}
    environment = os.environ | {f"SKYPILOT_{name}": value for name, value in values.items()}
    ran = subprocess.run(["bash", "-euc", shell], capture_output=True, text=True, env=environment, check=True)
    words = ran.stdout.split()
    assert words[words.index("--master-addr") + 1] == "10.0.0.1"
    assert words[words.index("--node-rank") + 1] == "1" and words[-1] == "/runs/t-1"


@pytest.mark.slow
def test_two_workers_of_ray_train_make_the_adapter_of_one_process(tiny_dir, tmp_path):
    pytest.importorskip("ray.train.torch")
    recipe = write_recipe(tmp_path, tiny_dir, {"train.num_train_epochs": 1, "train.ranks": 1})
    verbs.make(verbs.open_run(recipe, tmp_path / "one"), ["train"], all_needed=True)
    command = [sys.executable, ROOT / "examples" / "scale" / "ray_train.py", recipe, tmp_path / "ray", "--until", "train"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "ray" / adapter).read_bytes() == (tmp_path / "one" / adapter).read_bytes()
    assert (tmp_path / "ray" / "logs" / "rank-1.log").exists()
