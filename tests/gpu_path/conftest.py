"""A walk through the GPU path, in a child process: what it is walked on changes torch, and compiling needs no interpreter."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
Walk = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Walk:
    """A function of the arguments of ``walk.py``: what it wrote. Compiled kernels are kept from one session to the next."""
    pytest.importorskip("triton")
    assert request.config.cache is not None
    kept = request.config.cache.mkdir("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}",
        "TRITON_CACHE_DIR": str(kept),
        "OMP_NUM_THREADS": "1",
    }

    def walked(*arguments: str) -> dict[str, Any]:
        out = tmp_path_factory.mktemp("walk") / "out.json"
        command = [sys.executable, "-m", "gpu_path.walk", str(out), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert not done.returncode, done.stderr[-4000:]
        return json.loads(out.read_text())

    return walked
