"""Confine this process and become the program ``program.py`` in the given directory; started by ``sandbox.py`` alone.

It runs with ``python -I`` as a file, imports the standard library only, and speaks to the kernel through ctypes, since
Python 3.11 has neither ``unshare`` nor Landlock. Namespaces come first (a process namespace holds children only, hence the
fork; the first of them dies with us), then Landlock, then the rlimits, then the new program.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWPID = 0x10000000, 0x40000000, 0x08000000, 0x20000000  # linux/sched.h
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # system calls; one number on every architecture
WRITING = 0x1FF2  # write, remove, make: bits 1 and 4..12 of Landlock's rights, known since its first version
REFER, TRUNCATE = 1 << 13, 1 << 14  # since versions 2 and 3
PATH_BENEATH = 1
PROCESSES = 64

libc = ctypes.CDLL(None, use_errno=True)


def own_namespaces() -> bool:
    """Leave the network and the processes of the machine; False where the kernel does not let us."""
    return libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWPID) == 0


def write_only_in(work: Path) -> bool:
    """Refuse every later write outside of ``work``; False where the kernel has no Landlock."""
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    rights = WRITING | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    attribute = struct.pack("=Q", rights)
    ruleset = libc.syscall(LANDLOCK_CREATE, attribute, ctypes.c_size_t(len(attribute)), 0)
    for place in (work, Path("/dev/null")):
        allowed = rights if place.is_dir() else rights & (1 << 1 | TRUNCATE)  # all that a file can be allowed
        opened = os.open(place, os.O_PATH | os.O_CLOEXEC)
        if libc.syscall(LANDLOCK_ADD, ruleset, PATH_BENEATH, struct.pack("=Qi", allowed, opened), 0) != 0:
            return False
        os.close(opened)
    return libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and libc.syscall(LANDLOCK_RESTRICT, ruleset, 0) == 0


def main() -> None:
    """Confine, report what could not be confined, fork into the process namespace, and become the program."""
    work, report = Path(sys.argv[1]), Path(sys.argv[2])
    cpu_seconds, memory_bytes, file_bytes = (int(number) for number in sys.argv[3:])
    alone = own_namespaces()
    with report.open("w") as written:  # opened before writing outside of work ends
        confined = write_only_in(work)
        json.dump(([] if alone else ["network", "processes"]) + ([] if confined else ["files"]), written)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    if alone:  # counted in our own namespace; elsewhere it would count the user's other processes
        limits[resource.RLIMIT_NPROC] = PROCESSES
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))
    os.execv(sys.executable, [sys.executable, "-I", str(work / "program.py")])


if __name__ == "__main__":
    main()
