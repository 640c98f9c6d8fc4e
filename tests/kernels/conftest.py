"""Where kernels run: on a CUDA device if there is one, else through Triton's interpreter.

Triton decides when a function is decorated, its own library's functions included, so the variable must be set before the
first import. transformers, which the fixtures one folder up need, has imported it by now (through ``torch._dynamo``);
therefore its Python modules are forgotten here and imported anew by the first kernel. The compiled part stays.
"""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    for name in [name for name in sys.modules if name.split(".")[0] == "triton" and not name.startswith("triton._C")]:
        del sys.modules[name]


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
