"""What the machine is, and the only place that reads the environment.

Peak memory is the kernel's own high-water mark of this process (``VmHWM``), which Linux lets us reset, so that every
stage reports its own peak and not its predecessors'. Child processes are counted in. Where it cannot be reset the mark
of the whole process is given.

A child process (converter, llama.cpp) ends with its parent, however that ends: it inherits one end of a pipe that tells the
kernel to kill it when the other end goes. macOS and Windows have no such signal; there a second small process waits at the pipe
and does the killing. Refused: ``PR_SET_PDEATHSIG``, which fires when the *thread* that started the child ends; waiting for the
end of standard input, which a child in the middle of a computation does not read.

What only Linux says (limits of a container, the cores that a process may use) sets no bound elsewhere.
"""

import contextlib
import ctypes
import errno
import ipaddress
import os
import platform
import re
import signal
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith import windows_memory

if sys.platform != "win32":
    import fcntl
    import resource

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4  # malloc.h
_largest_child = 0  # bytes, since the last reset
_earlier_part = 0  # the peak of what came before the part that is measured for itself
_CGROUPS = Path("/sys/fs/cgroup")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CONVERTED_FORMAT = 3  # another number where the same GGUF file makes another directory


def cache_dir() -> Path:
    """Where converted models are kept: ``$XDG_CACHE_HOME/tunesmith`` or ``~/.cache/tunesmith``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tunesmith"


def data_dir() -> Path:
    """Where what no command can make again is kept: ``$XDG_DATA_HOME/tunesmith`` or ``~/.local/share/tunesmith``."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "tunesmith"


def hub_cache() -> Path:
    """Where the hub's client keeps models, by its own variables (huggingface_hub, "Environment variables")."""
    home = os.environ.get("HF_HOME") or str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def converted_model(digest: str) -> Path:
    """Where the directory that a GGUF file was converted to is kept, whether it is there or not.

    Args:
        digest: sha256 of the file.
    """
    return cache_dir() / "models" / f"{digest[:16]}-{CONVERTED_FORMAT}"


def child_environment() -> dict[str, str]:
    """The environment for a converter run as a child process: ours, kept off the network and quiet."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}


def launch_variables() -> dict[str, str]:
    """What a launcher of several processes (torchrun, Ray Train, a hand) told this one, as far as it did."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def secret(name: str) -> str | None:
    """An environment variable that holds a key, or None where it is not set or empty. Not to be logged."""
    return os.environ.get(name) or None


def variable(name: str) -> str | None:
    """An environment variable that another program's library reads as well, or None where it is not set or empty."""
    return os.environ.get(name) or None


def cpu_count() -> int:
    """Cores this process may run on."""
    return len(_cpus())


def _cpus() -> set[int]:
    return os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Cores this process may keep busy: two threads of one core count once, and a container's quota is kept (at least 1).

    Where the system does not say which threads share a core, all count.
    """
    siblings: set[str] = set()
    for cpu in _cpus():
        shared = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(shared.read_text(encoding="ascii") if shared.exists() else str(cpu))
    quotas = [int(quota) / int(period) for quota, period in map(str.split, _limits("cpu.max")) if quota != "max"]
    return max(1, int(min([len(siblings), *quotas])))


def total_memory() -> int:
    """Bytes that this process may have at all: the machine's, or its container's limit."""
    return min([_machine_memory(), *(int(limit) for limit in _limits("memory.max") if limit != "max")])


def _machine_memory() -> int:
    if sys.platform == "win32":
        return windows_memory.total_and_available()[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Bytes that programs here can still take."""
    free = _available_memory()
    return total_memory() if free is None else min(free, total_memory())


def _limits(name: str) -> list[str]:
    """A limit of this process's control group and of those around it (cgroup v2)."""
    own = Path("/proc/self/cgroup")
    lines = own.read_text(encoding="utf-8").splitlines() if own.exists() else []
    path = next((Path(line[3:].lstrip("/")) for line in lines if line.startswith("0::")), Path())
    files = [_CGROUPS / group / name for group in (path, *path.parents)]
    return [file.read_text(encoding="ascii").strip() for file in files if file.exists()]


def gpu_driver() -> str | None:
    """Version of NVIDIA's driver; None where the system does not say."""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", NVIDIA_DRIVER.read_text(encoding="utf-8")) if NVIDIA_DRIVER.exists() else None
    return None if found is None else found[0]


def ask_for_deterministic_cublas() -> None:
    """Give cuBLAS the fixed workspace without which its products may differ from run to run; before the first product.

    PyTorch reads the variable once, at the first product on a GPU, and refuses products under ``train.deterministic`` if it was
    not there. So it is set wherever a model is loaded, whatever the recipe says: 34 MB, which is what newer cards take anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def grow_gpu_segments() -> None:
    """Have PyTorch's allocator grow its segments on a GPU, unless the user has set it; before anything lies there.

    Packs differ in their number of tokens, so blocks of fixed segments fit less and less (PyTorch, "CUDA memory management").
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def keep_fewer_kernels() -> None:
    """Have oneDNN keep 256 compiled products instead of 1,024; before the first product, unless the user has set a number.

    It compiles a product for every shape, about 1 MB each, and every process keeps its own (docs/LOG.md).
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks in the process instead of giving them back after every use.

    Activations are allocated and freed by the hundred every step; by default blocks this large are mapped and unmapped
    each time and every page is faulted in and zeroed anew (28 % more tokens/s without that, docs/LOG.md). Does nothing
    where the C library is not glibc.

    The heap then grows by 256 MB at a time, of which only what is used is memory. A limit of the process counts all of it
    (``ulimit -d``, ``ulimit -v``), so under one it grows by what is asked for.
    """
    if platform.libc_ver()[0] == "glibc":
        limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 256 * 2**20 if limits == [resource.RLIM_INFINITY] * 2 else 128 * 2**10)


def map_large_blocks() -> None:
    """Tell glibc to map every block of a megabyte and more apart, and to give it back when it is freed.

    For steps whose temporaries grow from one to the next, as attention's do over a document of ten thousands of tokens: none
    fits where an earlier one was, and what ``keep_freed_memory`` keeps is then many times what is alive. Forked processes
    inherit it.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
        libc.mallopt(_M_MMAP_MAX, 2**16)


def release_freed_memory() -> None:
    """Give blocks that ``keep_freed_memory`` kept back to the system, between stages."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine as the manifest names it: CPU model, cores, memory, operating system and Python version."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str


def describe() -> Machine:
    """The machine that this process runs on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return Machine(
        cpu=model,
        cores=cpu_count(),
        memory_bytes=_machine_memory(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
    )


def reset_peak_memory() -> None:
    """Set the process's high-water mark to its present size. Does nothing where the kernel has no such switch."""
    global _earlier_part
    _earlier_part = 0
    _clear_peak()


def begin_part() -> None:
    """Begin a part whose peak is asked for alone (``peak_of_part``); ``peak_memory`` goes on to cover what came before it."""
    global _earlier_part
    _earlier_part = peak_memory()
    _clear_peak()


def _clear_peak() -> None:
    global _largest_child
    _largest_child = 0
    try:
        Path("/proc/self/clear_refs").write_bytes(b"5")
    except OSError:
        return  # not Linux, or not allowed: peak_memory() then covers the whole process, which is an upper bound


def peak_memory() -> int:
    """Largest resident size since the last reset, in bytes.

    The largest child process (converter, llama.cpp) is added: an upper bound, since the two peaks need not have met.
    """
    return max(_earlier_part, peak_of_part())


def peak_of_part() -> int:
    """The same since ``begin_part``."""
    return (_high_water("self") or _highest_ever()) + _largest_child


def _highest_ever() -> int:
    """The high-water mark of this process since it began."""
    if sys.platform == "win32":
        return windows_memory.peak_of_this_process()
    mark = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return mark if sys.platform == "darwin" else mark * 1024  # getrusage(2): bytes there, kilobytes elsewhere


def note_children(pids: list[int]) -> None:
    """Take living children of one program into account: a high-water mark, and what the others have to themselves beside it.

    (Their rusage will not do: it inherits the parent's mark.)
    """
    global _largest_child
    together = sum(_high_water(str(pid)) for pid in pids[:1]) + sum(private_memory(pid) for pid in pids[1:])
    _largest_child = max(_largest_child, together)


def note_processes(private: int) -> None:
    """Take the private memory of all forked processes together into account (``private_memory`` of each)."""
    global _largest_child
    _largest_child = max(_largest_child, private)


def private_memory(pid: int | None = None) -> int:
    """Bytes that a process (None: this one) wrote and shares with no other; 0 where the kernel does not say."""
    rollup = Path(f"/proc/{'self' if pid is None else pid}/smaps_rollup")
    if rollup.exists():
        for line in rollup.read_text(encoding="ascii").splitlines():
            if line.startswith("Private_Dirty:"):
                return int(line.split()[1]) * 1024
    return 0


def started_at(pid: int) -> int | None:
    """Clock ticks from the boot to the start of a process; None of one that has ended, though nobody waited for it yet.

    Source: proc(5), fields 3 and 22 of ``/proc/PID/stat``; only Linux says it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # from the third on: the name in brackets may hold anything
    return None if fields[0] in ("Z", "X") else int(fields[19])


def die_with(watched: int, pid: int) -> None:
    """Have a process killed when the last writer of a pipe is gone. Linux alone has this.

    Args:
        watched: the end that is read; the process has it open.
    """
    if sys.platform == "linux":
        fcntl.fcntl(watched, fcntl.F_SETOWN, pid)
        fcntl.fcntl(watched, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(watched, fcntl.F_SETFL, fcntl.fcntl(watched, fcntl.F_GETFL) | os.O_ASYNC)


# Waits at a pipe; ends a process when nobody has the other end any more, and nothing was written there.
WATCHER = "import os, sys; os.read(0, 1) or os.kill(int(sys.argv[1]), 9)"


class Child(subprocess.Popen[bytes]):
    """A program that is killed when this process ends or its ``Child`` is no longer held.

    Args:
        command: the program and its arguments.
        online: whether it may use the network; else it is kept off.
        streams: ``stdin``, ``stdout`` and ``stderr`` as of ``Popen``, and ``start_new_session``.
    """

    def __init__(self, command: list[str], *, online: bool = False, **streams: Any):
        watched, self._lifeline = os.pipe()
        weakref.finalize(self, os.close, self._lifeline)
        self._watcher: subprocess.Popen[bytes] | None = None
        environment = dict(os.environ) if online else child_environment()
        try:
            if sys.platform == "linux":
                super().__init__(command, env=environment, pass_fds=(watched,), **streams)
                die_with(watched, self.pid)
            else:
                super().__init__(command, env=environment, **streams)
                quiet = subprocess.DEVNULL
                watching = [sys.executable, "-I", "-S", "-c", WATCHER, str(self.pid)]
                self._watcher = subprocess.Popen(watching, stdin=watched, stdout=quiet, stderr=quiet)
        finally:
            os.close(watched)  # the child's copy stays

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, as ``Popen``."""
        code = super().wait(timeout)
        self._end_watcher()
        return code

    def poll(self) -> int | None:
        """Whether it has ended, as ``Popen``."""
        code = super().poll()
        if code is not None:
            self._end_watcher()
        return code

    def _end_watcher(self) -> None:
        """The number of a process that has ended may be another's soon, so nobody may kill it any more."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            with contextlib.suppress(BrokenPipeError):  # somebody ended it
                os.write(self._lifeline, b"over")
            watcher.wait()


def is_full_memory(error: BaseException | None) -> bool:
    """Whether an error says that this machine's memory is full, also in the words of PyTorch, of C++ and of threads."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    words = ("can't allocate memory", "Cannot allocate memory", "can't start new thread", "std::bad_alloc")
    words += ("Failed to launch worker thread",)  # of Arrow
    return error is not None and any(word in str(error) for word in words)


class Death(NamedTuple):
    """Why a signal ended a child.

    Attributes:
        reason: to follow the program's name: ``was killed by signal 9 (SIGKILL): ...``.
        hint: what to do next.
    """

    reason: str
    hint: str


def death_of(returncode: int) -> Death | None:
    """What a child's return code says of a signal that ended it; None where it ended by itself."""
    if returncode >= 0:
        return None
    number = -returncode
    name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
    reason = f"was killed by signal {number} ({name})"
    if number == signal.SIGKILL:
        free = _available_memory()
        room = "" if free is None else f"; {free / 1e9:.1f} GB are free now that it is gone"
        return Death(
            f"{reason}: 9 is what the kernel sends when memory runs out{room}",
            "end other programs, shorten the context, or take a smaller model or file type; then give the same command again",
        )
    if number == signal.SIGILL:
        return Death(f"{reason}: an instruction that this processor does not have", "install a build for this processor")
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return Death(f"{reason}: somebody ended it", "give the same command again")
    return Death(
        f"{reason}: a fault inside the program", "give the same command again; if it comes back, the file may be damaged"
    )


def run_child(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, off the network, with its memory counted; stdout and stderr are captured together."""
    child = Child(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while True:
        try:
            output, _ = child.communicate(timeout=0.2)
            return subprocess.CompletedProcess(command, child.returncode, output.decode(errors="replace"))
        except subprocess.TimeoutExpired:
            note_children([child.pid])


def _available_memory() -> int | None:
    """Bytes that programs can still take; None where the kernel does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _high_water(pid: str) -> int:
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def is_loopback(host: str) -> bool:
    """Whether a name or an address, without a port, is one of this machine that no other machine can have."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
