"""``benchmarks/gpu.py`` runs to its end on a GPU, as far as a device that is not there can tell, before anybody rents one."""

import json
import os
import subprocess
import sys

import pytest

from .conftest import ROOT

BENCHMARK = ROOT / "benchmarks" / "gpu.py"
# A machine with a card has torch and triton; what else we depend on may be missing.
BARE = """
import json, sys
sys.path.insert(0, {benchmarks!r})
class Missing:
    names = set({missing!r})
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import gpu
print(json.dumps(gpu.run_part("kernels", True)))
"""
MISSING = ("transformers", "pydantic", "jiter", "pyarrow", "rich", "scipy", "rensa", "orjson", "safetensors")


def environment():
    return {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PYTHONPATH")}


def test_kernels_run_to_their_end_on_a_bare_machine():
    pytest.importorskip("triton")
    code = BARE.format(benchmarks=str(BENCHMARK.parent), missing=MISSING)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert not done.returncode, done.stderr[-4000:]
    cases = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert not {name: case["failed"] for name, case in cases.items() if "failed" in case}
    assert {"r 8", "r 16", "dropout 0.05"} <= {name.removeprefix("layer r 16 ").removeprefix("layer ") for name in cases}


@pytest.mark.slow
def test_the_whole_command_writes_every_part(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARK), "--dry-run", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert not done.returncode, done.stdout + done.stderr
    written = json.loads(out.read_text())
    assert not [part for part, figures in written["results"].items() if "failed" in figures] and len(written["results"]) == 7
    assert written["dry_run"] and written["packages"]["triton"] and written["cards"] is None
    figures = written["results"]
    assert all(setting["peak_bytes"] > setting["weights_bytes"] > 0 for setting in figures["step-1B"]["settings"])
    assert figures["load"]["weights"] > 0 and len(figures["decode"]["settings"]) == 8
    assert all(setting["recorded"] and setting["right"] for setting in figures["decode"]["settings"] if setting["graphs"])
