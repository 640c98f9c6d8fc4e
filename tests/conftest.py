"""The suite's fixtures, where tests run; what deals them out to workers would import for seven seconds what it never uses."""

import gc
import importlib
import os

import pytest

# Where a test computes with two threads, one that waits leaves its core to the other workers.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
gc.disable()  # imports leave two million objects that live to the end; ``little_garbage`` in ``shared.py`` collects


def pytest_configure(config: pytest.Config) -> None:
    """Take ``shared.py`` as a plugin, in a worker and in a process that runs the tests itself."""
    deals_out = not hasattr(config, "workerinput") and config.getoption("numprocesses", None)
    if not deals_out or config.getoption("collectonly"):
        config.pluginmanager.register(importlib.import_module("shared"))
