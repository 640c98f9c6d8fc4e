"""What Windows says of memory, where Linux and macOS say it by ``sysconf`` and ``getrusage``.

Three numbers by two calls of the system's own library. Refused: the package psutil, compiled code for these three numbers.

Sources: GlobalMemoryStatusEx and GetProcessMemoryInfo in Microsoft's documentation.
"""

import ctypes
from typing import Any


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("available_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended_virtual", ctypes.c_uint64),
    )


class _ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of psapi.h."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("working_set", ctypes.c_size_t),
        ("peak_paged_pool", ctypes.c_size_t),
        ("paged_pool", ctypes.c_size_t),
        ("peak_other_pool", ctypes.c_size_t),
        ("other_pool", ctypes.c_size_t),
        ("page_file", ctypes.c_size_t),
        ("peak_page_file", ctypes.c_size_t),
    )


def _kernel() -> Any:
    return ctypes.CDLL("kernel32")  # on 64-bit Windows there is one convention of calls


def total_and_available() -> tuple[int, int]:
    """Bytes that the machine has, and those that programs can still take.

    Raises:
        OSError: the system does not say.
    """
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not _kernel().GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("GlobalMemoryStatusEx: Windows does not say how much memory there is")
    return status.total, status.available


def peak_of_this_process() -> int:
    """The most bytes that this process held in memory at once; 0 where the system does not say."""
    counters, kernel = _ProcessMemory(length=ctypes.sizeof(_ProcessMemory)), _kernel()
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    if not kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.length):
        return 0
    return counters.peak_working_set
