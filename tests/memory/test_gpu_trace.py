"""The estimate against a trace of a real step on the GPU that is not there."""

import json
import os
import subprocess
import sys

import pytest

from shared import ROOT
from tunesmith.memory.dials import Dials
from tunesmith.memory.estimate import estimate
from tunesmith.memory.shape import Shape, shape_of

WIDE = {"base": "nf4", "compute": "bf16", "r": 16, "dropout": 0.0, "tokens": 2048, "rows": 280, "layers": 2}
LONG = {**WIDE, "recompute": "layer", "layers": 4, "tokens": 16384, "mlp_tile": 4096}
TOY = {**WIDE, "rows": 300}
del TOY["layers"]
QUICK = [  # a second of a core each
    ({**WIDE, "model": "llama-8b", "recompute": "none"}, 0.001),
    ({**WIDE, "model": "llama-8b", "recompute": "layer", "layers": 5, "offload": "attention", "mlp_tile": 512}, 0.001),
    ({**WIDE, "model": "llama-8b", "recompute": "none", "layers": 3, "tokens": 8192, "mlp_tile": "auto"}, 0.001),
    ({**WIDE, "model": "llama-8b", "recompute": "layer", "tables": ("embedding", "head")}, 0.001),
    ({**WIDE, "model": "gemma3-12b", "recompute": "mlp", "tables": ("embedding",)}, 0.002),  # a tied table: 0.13 % above
    ({**TOY, "model": "llama", "recompute": "none"}, 0.012),
]
MORE = [
    ({**WIDE, "model": "gemma3-12b", "recompute": "mlp"}, 0.001),
    ({**WIDE, "model": "llama-8b", "recompute": "layer", "layers": 5, "offload": "inputs"}, 0.001),
    ({**TOY, "model": "qwen3", "recompute": "layer"}, 0.012),
    ({**TOY, "model": "phi3", "recompute": "none"}, 0.02),
    ({**WIDE, "model": "llama-8b", "recompute": "none", "tables": ("head",)}, 0.001),
    ({**WIDE, "model": "llama-8b", "recompute": "none", "tables": ("embedding",)}, 0.001),
    ({**WIDE, "model": "llama-8b", "recompute": "layer", "dropout": 0.05, "r": 12, "layers": 4}, 0.005),
    ({**WIDE, "model": "qwen3-8b", "recompute": "attention"}, 0.005),
    ({**LONG, "model": "llama-8b", "offload": "inputs"}, 0.001),
    ({**LONG, "model": "qwen3-8b", "offload": "attention"}, 0.001),
    ({**WIDE, "model": "gemma3-12b", "recompute": "layer", "layers": 4, "offload": "attention"}, 0.001),
    (
        {**WIDE, "model": "llama-8b", "recompute": "layer", "dropout": 0.05, "layers": 5, "offload": "inputs", "mlp_tile": 512},
        0.005,
    ),
    ({**WIDE, "model": "gemma3-12b", "recompute": "layer", "mlp_tile": 512}, 0.005),
    ({**TOY, "model": "llama", "recompute": "layer"}, 0.012),
    ({**TOY, "model": "qwen3", "recompute": "none"}, 0.012),
    ({**TOY, "model": "phi3", "recompute": "layer"}, 0.012),
]


@pytest.mark.parametrize("cases", [QUICK, pytest.param(MORE, marks=pytest.mark.slow)], ids=["quick", "more"])
def test_the_estimate_is_what_a_step_has_alive(cases, tmp_path):
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    given, out = tmp_path / "cases.json", tmp_path / "out.json"
    given.write_text(json.dumps([case for case, _ in cases]))
    command = [sys.executable, "-m", "memory.gpu_trace", str(out), str(given)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert not done.returncode, done.stderr[-4000:]
    wrong = []
    for (case, within), traced in zip(cases, json.loads(out.read_text()), strict=True):
        shape = shape_of(traced["config"])
        assert isinstance(shape, Shape)
        found = estimate(shape, Dials(**{key: value for key, value in case.items() if key not in ("model", "layers")}))
        if abs(found.peak / traced["peak"] - 1.0) > within:
            wrong.append(f"{case}: {found.peak:,} of {traced['peak']:,}, at the {found.where} {found.terms}")
    assert not wrong, "\n".join(wrong)
