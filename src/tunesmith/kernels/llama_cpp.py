"""Where the installed llama.cpp lies: one shared object, for blocks, for quantising and for models alike.

The package ``xllamacpp`` brings it as its extension module. It is found without importing that, which would start llama.cpp's
log and its backends in a process that only unpacks blocks; nothing here needs torch, so the child that llama.cpp runs in does
not either. Everyone opens it anew: functions of a ``CDLL`` carry the types that their caller declared.

It is linked to the OpenMP runtime of the system (``libgomp.so.1``), which a slim container lacks. PyTorch brings a copy, and
the loader takes a library that is there by its name, wherever it came from.
"""

import contextlib
import ctypes
import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from tunesmith.errors import MissingPackage

OPENMP = "libgomp.so.1"
INSTALL = "pip install 'tunesmith[gguf]'"


@functools.cache
def shared_object() -> Path | None:
    """The file of the installed llama.cpp; None where there is none."""
    return _file_of("xllamacpp", "xllamacpp*.so")


def open_shared_object() -> ctypes.CDLL:
    """The installed llama.cpp, its functions undeclared.

    Raises:
        MissingPackage: there is none, or the system lacks a library that it is linked to.
    """
    file = shared_object()
    if file is None:
        raise MissingPackage("llama.cpp is needed here, and xllamacpp is not installed", INSTALL)
    _lend_openmp()
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise _not_loaded(error) from error


def import_llama_cpp() -> Any:
    """The module ``xllamacpp``; compiled, and without types.

    Raises:
        MissingPackage: see ``open_shared_object``.
    """
    _lend_openmp()
    try:
        return importlib.import_module("xllamacpp")
    except ModuleNotFoundError as error:
        raise MissingPackage(f"llama.cpp is needed here, and {error.name} is not installed", INSTALL) from error
    except ImportError as error:
        raise _not_loaded(error) from error


def _not_loaded(error: Exception) -> MissingPackage:
    hint = "install the library that it names; for libgomp on Debian and Ubuntu: apt-get install libgomp1"
    return MissingPackage(f"the installed llama.cpp cannot be loaded: {error}", hint)


@functools.cache
def _lend_openmp() -> None:
    """Load PyTorch's OpenMP runtime where the system has none."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(OPENMP)
        return
    if (file := _file_of("torch", f"lib/{OPENMP}")) is not None:
        with contextlib.suppress(OSError):  # what is missing then is said when llama.cpp is loaded
            ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


def _file_of(package: str, pattern: str) -> Path | None:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    return next((file for place in places for file in Path(place).glob(pattern)), None)
