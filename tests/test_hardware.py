"""Children: they end with their parent, and a signal that ends one is named."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tunesmith import hardware
from tunesmith.checkpoints.gguf_write.convert import run_converter
from tunesmith.errors import ExportError

CHILD = "import os, time; open({file!r}, 'w').write(str(os.getpid())); time.sleep(600)"  # never looks at its parent
PARENTS = {
    "held": "import sys; from tunesmith.hardware import Child; c = Child([sys.executable, '-c', sys.argv[1]]); c.wait()",
    "run": "import sys; from tunesmith.hardware import run_child; run_child([sys.executable, '-c', sys.argv[1]])",
}


@pytest.mark.parametrize("how", PARENTS)
def test_a_child_ends_with_a_killed_parent(how, tmp_path):
    code = CHILD.format(file=str(tmp_path / "pid"))
    parent = subprocess.Popen([sys.executable, "-c", PARENTS[how], code])
    pid = None
    for _ in range(600):
        if (tmp_path / "pid").exists() and (text := (tmp_path / "pid").read_text()):
            pid = int(text)
            break
        time.sleep(0.1)
    assert pid is not None and hardware.started_at(pid)
    parent.kill()
    parent.wait()
    for _ in range(100):
        if hardware.started_at(pid) is None:
            break
        time.sleep(0.1)
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("the child outlived its parent by ten seconds")


def test_a_child_that_ends_by_itself_has_no_death():
    assert hardware.run_child([sys.executable, "-c", "print('out'); raise SystemExit(3)"]).returncode == 3
    assert hardware.death_of(3) is None and hardware.death_of(0) is None


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "memory runs out; .* GB are free"),
        (signal.SIGSEGV, "a fault inside"),
        (signal.SIGTERM, "somebody ended it"),
    ],
)
def test_a_converter_that_is_killed_says_so(number, reason, tmp_path):
    script = tmp_path / "convert.py"
    script.write_text(f"import os\nprint('reading', flush=True)\nos.kill(os.getpid(), {int(number)})\n")
    with pytest.raises(ExportError, match=rf"was killed by signal {int(number)} \({number.name}\): .*{reason}") as raised:
        run_converter(str(script), ["model"], tmp_path / "x.gguf")
    assert raised.value.message.endswith("\nreading") and "architecture" not in raised.value.hint
    assert [file.name for file in tmp_path.iterdir()] == ["convert.py"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, {"PYTORCH_ALLOC_CONF": "backend:native"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
    ],
)
def test_segments_grow_unless_the_user_says_how_memory_is_kept(given, expected, monkeypatch):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setattr(os, "environ", {key: value for key, value in os.environ.items() if key not in names} | given)
    hardware.grow_gpu_segments()
    assert {name: os.environ[name] for name in names if name in os.environ} == expected


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (dvs)\nGCC version: gcc 12.3.0",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10  Wed Nov 1 2023\nGCC version: gcc 12.3.0",
    ],
)
def test_the_drivers_version_is_read(text, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "NVIDIA_DRIVER", tmp_path / "version")
    assert hardware.gpu_driver() is None
    (tmp_path / "version").write_text(text)
    assert hardware.gpu_driver() == "570.86.10"
