"""What is done to a run from inside of its process: killed before its n-th change of a file, cut off from the disk, slowed.

Python tells its audit hooks of every file that it opens, renames or removes, so "before the n-th change" is the same place
each time, between any two steps of the program's own. What Rust and C++ write goes by without a word: a kill after a drawn
time, from outside, finds those.
"""

import ctypes
import datetime
import os
import random
import resource
import signal
import struct
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
LINUX_CAPABILITY_VERSION_3 = 0x20080522
OVERRIDES = 0b111  # CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH: what lets root pass over permissions


def at_change(number: int, act: Callable[[], None], counter: Path | None = None) -> None:
    """Call ``act`` before the n-th change of a file; how many there were is kept in ``counter``."""
    made = 0
    pid = os.getpid()

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal made
        is_open = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if not (is_open or event in CHANGES) or os.getpid() != pid or str(arguments[0]).startswith("/dev/"):
            return
        made += 1
        if counter is not None:
            os.pwrite(count_file, f"{made:9}".encode(), 0)
        if made == number:
            act()

    count_file = -1 if counter is None else os.open(counter, os.O_WRONLY | os.O_CREAT, 0o644)
    sys.addaudithook(hook)


def die(number: int) -> Callable[[], None]:
    """Be killed by a signal, at once."""
    return lambda: os.kill(os.getpid(), number)


def full_disk(nbytes: int) -> None:
    """No file grows beyond so many bytes: a write ends early, and the next one fails, in Rust and C++ too."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, resource.RLIM_INFINITY))


def obey_permissions() -> None:
    """Root is bound by the bits of a file too, as anybody is."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header = struct.pack("Ii", LINUX_CAPABILITY_VERSION_3, 0)
        data = ctypes.create_string_buffer(24)
        assert libc.capget(header, data) == 0
        sets = list(struct.unpack("6I", data.raw))
        sets[0] &= ~OVERRIDES
        assert libc.capset(header, struct.pack("6I", *sets)) == 0, os.strerror(ctypes.get_errno())


def set_writable(directory: Path, is_writable: bool) -> None:
    """Every folder of a run, or none, takes new files."""
    for folder in [directory, *(path for path in directory.rglob("*") if path.is_dir())]:
        folder.chmod(0o755 if is_writable else 0o555)


def little_memory(nbytes: int) -> None:
    """So much more than there is."""
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + nbytes, resource.RLIM_INFINITY))


def slow_disk(generator: random.Random, longest: float) -> None:
    """Each flush, and each change of a file, takes a while."""
    flush = os.fsync

    def slowly(descriptor: int) -> None:
        time.sleep(generator.uniform(0, longest))
        flush(descriptor)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES:
            time.sleep(generator.uniform(0, longest))

    os.fsync = slowly
    sys.addaudithook(hook)


def jumping_clock(generator: random.Random, longest: float) -> None:
    """The time of day jumps to and fro; what only measures (perf_counter, monotonic) goes on."""
    offset = 0.0
    now, now_ns, day = time.time, time.time_ns, datetime.datetime

    def jump() -> float:
        nonlocal offset
        if generator.random() < 0.1:
            offset = generator.uniform(-longest, longest)
        return offset

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return day.fromtimestamp(now() + jump(), tz)

    time.time = lambda: now() + jump()
    time.time_ns = lambda: now_ns() + int(jump() * 1e9)
    their = types.SimpleNamespace(**{**vars(datetime), "datetime": Jumping})  # libraries in C hold on to the real class
    for name, module in list(sys.modules.items()):
        if name.startswith("tunesmith"):
            for attribute, value in list(vars(module).items()):
                if value is day or value is datetime:
                    setattr(module, attribute, Jumping if value is day else their)


def nan_in_a_weight(step: int, generator: random.Random) -> None:
    """One number of the adapter becomes NaN after an optimizer step, as a flipped bit in the memory makes it."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = 0

    def after(optimizer, arguments, keywords) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            weight = generator.choice(parameters).data.view(-1)
            weight[generator.randrange(weight.numel())] = float("nan")

    register_optimizer_step_post_hook(after)
