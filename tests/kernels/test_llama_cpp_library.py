"""The installed llama.cpp where the system lacks a library that it is linked to."""

import ctypes
import shutil

import pytest

from tunesmith.errors import MissingPackage
from tunesmith.kernels import llama_cpp

_load = ctypes.CDLL


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    llama_cpp._lend_openmp.cache_clear()
    yield
    monkeypatch.undo()
    llama_cpp._lend_openmp.cache_clear()


def _without_openmp(monkeypatch, loaded, torch):
    """A system that has no OpenMP runtime, with a llama.cpp that needs one, and what PyTorch brings."""

    def load(name, *arguments, **options):
        if name == llama_cpp.OPENMP or ("xllamacpp" in str(name) and not loaded):
            raise OSError(f"{llama_cpp.OPENMP}: cannot open shared object file: No such file or directory")
        loaded.append(str(name))
        return _load(name, *arguments, **options)

    monkeypatch.setattr(ctypes, "CDLL", load)
    real = llama_cpp._file_of
    monkeypatch.setattr(llama_cpp, "_file_of", lambda package, file: torch if package == "torch" else real(package, file))


def test_pytorch_lends_its_openmp_runtime(monkeypatch, tmp_path):
    if (lent := llama_cpp._file_of("torch", f"lib/{llama_cpp.OPENMP}")) is None:
        pytest.skip("this PyTorch brings no OpenMP runtime")
    copy = shutil.copy(lent, tmp_path / llama_cpp.OPENMP)
    loaded = []
    _without_openmp(monkeypatch, loaded, copy)
    assert llama_cpp.open_shared_object().llama_backend_init is not None
    assert loaded[0] == str(copy) and len(loaded) == 2


def test_what_is_missing_is_named_with_the_package_that_has_it(monkeypatch):
    _without_openmp(monkeypatch, [], None)
    with pytest.raises(MissingPackage, match=r"libgomp\.so\.1: cannot open[^\n]*\nhint: .*apt-get install libgomp1"):
        llama_cpp.open_shared_object()
