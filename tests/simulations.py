"""The modules of ``benchmarks/``, and what their simulations have stored."""

import importlib
import json
from types import ModuleType
from typing import Any

import pytest

from shared import ROOT

BENCHMARKS = ROOT / "benchmarks"


def simulation_module(name: str) -> ModuleType:
    """``benchmarks/<name>.py``, whose own imports are beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module(name)


def stored_simulation(name: str) -> dict[str, Any]:
    """The newest of its results in the repository."""
    (*_, newest) = sorted((BENCHMARKS / "results").glob(f"{name.replace('_', '-')}-*.json"))
    return json.loads(newest.read_text())
