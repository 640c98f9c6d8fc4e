"""Where the installed llama.cpp lies: one shared object, for blocks, for quantising and for models alike.

The package ``xllamacpp`` brings it as its extension module. It is found without importing that, which would start llama.cpp's
log and its backends in a process that only unpacks blocks; nothing here needs torch, so the child that llama.cpp runs in does
not either. Everyone opens it anew: functions of a ``CDLL`` carry the types that their caller declared.
"""

import ctypes
import functools
import importlib.util
from pathlib import Path

from tunesmith.errors import MissingPackage


@functools.cache
def shared_object() -> Path | None:
    """The file of the installed llama.cpp; None where there is none."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next((file for place in spec.submodule_search_locations for file in Path(place).glob("xllamacpp*.so")), None)


def open_shared_object() -> ctypes.CDLL:
    """The installed llama.cpp, its functions undeclared.

    Raises:
        MissingPackage: there is none.
    """
    file = shared_object()
    if file is None:
        raise MissingPackage("llama.cpp is needed here, and xllamacpp is not installed", "pip install 'tunesmith[gguf]'")
    return ctypes.CDLL(str(file))
