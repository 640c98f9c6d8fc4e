"""Other systems, as far as they can be had on this one: a Python without what macOS or Windows lack, and with what Windows has.

    python -c "import foreign; foreign.become('win32')" ...

A name that the other system's Python does not have is taken away, a module that cannot be imported there is refused, and
``msvcrt`` and ``kernel32`` answer as Windows does: a byte that nobody else may lock, a machine of 16 GB. What is not emulated:
paths, the console, that a file which is open cannot be renamed. No library of others is looked at, so they are imported before.
"""

import ctypes
import importlib
import os
import platform
import signal
import sys
import types

MODULES = {"win32": ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "readline", "syslog"), "darwin": ()}
OS = {
    "darwin": (
        "sched_getaffinity",
        "pidfd_open",
        "O_PATH",
        "O_DIRECT",
        "memfd_create",
        "eventfd",
        "unshare",
        "setns",
        "splice",
    ),
    "win32": (
        *(
            "fork",
            "forkpty",
            "pread",
            "pwrite",
            "preadv",
            "pwritev",
            "killpg",
            "getpgid",
            "setsid",
            "getuid",
            "geteuid",
            "getgid",
        ),
        *(
            "sysconf",
            "uname",
            "wait",
            "wait4",
            "fchmod",
            "fchown",
            "chown",
            "mkfifo",
            "nice",
            "getloadavg",
        ),
        *("O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY", "O_ASYNC", "O_SYNC", "WNOHANG", "ctermid", "ttyname", "sync"),
    ),
}
OS["win32"] += OS["darwin"]
SIGNALS = {
    "darwin": ("SIGSTKFLT", "SIGPOLL", "SIGPWR", "sigtimedwait", "sigwaitinfo"),
    "win32": ("SIGKILL", "SIGHUP", "SIGQUIT", "SIGCHLD", "SIGALRM", "SIGUSR1", "SIGPIPE", "pthread_sigmask", "sigtimedwait"),
}
LIBRARIES = (
    *("jinja2", "jsonschema", "numpy", "orjson", "pyarrow.csv", "pyarrow.parquet", "pydantic", "rich.console", "rich.progress"),
    *("scipy.optimize", "scipy.special", "scipy.stats", "typer.rich_utils", "yaml", "rensa", "asyncio", "multiprocessing.pool"),
    *(
        "concurrent.futures.thread",
        "concurrent.futures.process",
        "tempfile",
        "shutil",
        "zipfile",
        "py3langid",
        "select",
        "mmap",
    ),
    *("urllib.request", "sqlite3"),
)


class _Refused:
    """Says of some modules that there are none."""

    def __init__(self, names: tuple[str, ...]):
        self._names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r} on {sys.platform}", name=name)


def become(system: str) -> None:
    """Let everything that is imported from now on believe that this is another system.

    Args:
        system: ``sys.platform`` there.
    """
    for name in LIBRARIES:
        importlib.import_module(name)
    windows = _msvcrt()
    platform.libc_ver = lambda *_: ("", "")
    for name in OS[system]:
        if name in vars(os):
            delattr(os, name)
    for name in SIGNALS[system]:
        if name in vars(signal):
            delattr(signal, name)
    for name in MODULES[system]:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _Refused(MODULES[system]))
    if system == "win32":
        sys.modules["msvcrt"] = windows
        ctypes.CDLL = _Kernel32  # pyright: ignore[reportAttributeAccessIssue]
    sys.platform = system


def _msvcrt() -> types.ModuleType:
    """``locking`` of Windows' C library by the locks of open files."""
    import fcntl

    def locking(descriptor: int, mode: int, size: int) -> None:
        assert mode == module.LK_NBLCK and os.lseek(descriptor, 0, os.SEEK_CUR) > 2**20, "a byte that nobody has to read"
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(13, "Permission denied") from error

    module = types.ModuleType("msvcrt")
    vars(module).update(LK_NBLCK=2, locking=locking)
    return module


class _Kernel32:
    """The two questions that are asked of Windows' own library; a structure of a wrong length gets no answer, as there."""

    def __init__(self, name: str | None):
        assert name == "kernel32", f"{name} is no library of Windows that is asked anything"
        vars(self)["GetCurrentProcess"] = type("Function", (), {"__call__": lambda _: 2**64 - 1, "restype": None})()

    @staticmethod
    def GlobalMemoryStatusEx(answer: object) -> int:
        words = ctypes.cast(answer, ctypes.POINTER(ctypes.c_uint64 * 8)).contents  # pyright: ignore[reportArgumentType]
        if words[0] & 0xFFFFFFFF != 64:
            return 0
        words[1:3] = 16 * 2**30, 8 * 2**30
        return 1

    @staticmethod
    def K32GetProcessMemoryInfo(process: ctypes.c_void_p, answer: object, length: int) -> int:
        words = ctypes.cast(answer, ctypes.POINTER(ctypes.c_uint64 * 9)).contents  # pyright: ignore[reportArgumentType]
        if process.value != 2**64 - 1 or length != 72:
            return 0
        words[1] = 2**30
        return 1
