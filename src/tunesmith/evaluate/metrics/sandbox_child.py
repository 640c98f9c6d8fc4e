"""Confine this process and become the given program; started by ``sandbox.py`` alone.

It runs with ``python -I`` as a file, imports the standard library only, and speaks to the kernel through ctypes, since
Python 3.11 has neither ``unshare`` nor Landlock nor seccomp. Three layers, each of which is tried:

- namespaces, where users may have them: no network, no shared memory of others, a process table of its own, every mounted
  file system read-only, and a file system in memory of ``DISK_BYTES`` as the one place to write to;
- Landlock: reading of the system and of this Python alone, writing in the working directory alone, so that neither homes
  nor ``/proc`` can be opened;
- seccomp: system calls that Landlock does not know. A program is one process, with threads but without children, opens no
  socket of any kind (a path leads to the daemons of the machine, whatever the network namespace), signals itself alone,
  and, where the file systems are not read-only, changes no mode, owner or time.

This process stays outside as the one that watches: time, number of threads, and the size of the working directory where
it is not in memory. What it watches may go past its bound for the hundredth of a second between two looks.

One process, since nothing else counts them for root: RLIMIT_NPROC does not bind user 0 whatever the namespace, and control
groups belong to whoever started us. It also makes the limit on memory one for the whole program. The cost: code that needs
``subprocess`` or ``multiprocessing`` fails, which its reference shows before any answer is scored.

Sources: user_namespaces(7), mount_setattr(2), landlock(7), seccomp(2); numbers of system calls: asm/unistd_64.h and
asm-generic/unistd.h.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

THREADS = 64
DISK_BYTES = 64 * 2**20
LOOK_SECONDS = 0.01

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000  # linux/sched.h
CLONE_NEWIPC, CLONE_NEWPID, CLONE_THREAD = 0x08000000, 0x20000000, 0x00010000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 0x40000  # linux/mount.h
MOUNT_ATTR_RDONLY, AT_FDCWD, AT_RECURSIVE, MOUNT_SETATTR = 1, -100, 0x8000, 442
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 1, 22, 28, 38  # linux/prctl.h
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # system calls; one number on every architecture
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8  # linux/landlock.h
RIGHTS = 0x1FFF  # execute, read, write, remove, make: known since Landlock's first version
REFER, TRUNCATE = 1 << 13, 1 << 14  # since versions 2 and 3
PATH_BENEATH = 1
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/nix/store", "/sys/devices/system/cpu")
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/dev/urandom", "/dev/random", "/dev/zero")

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine(), 0)
DENIED = {  # name: number on x86_64, on aarch64 (None: it does not exist there)
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "fork": (57, None),
    "vfork": (58, None),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "personality": (135, 92),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
}
METADATA = {  # denied where the file systems are not read-only: Landlock leaves them free
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
}
CLONE, CLONE3, KILL, TGKILL, PRLIMIT, PRCTL = (56, 220), (435, 435), (62, 129), (234, 131), (302, 261), (157, 167)

# classic BPF (linux/bpf_common.h, linux/seccomp.h): (code, jump if true, jump if false, constant)
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCH_AT, FIRST_ARGUMENT_AT = 0, 4, 16  # in struct seccomp_data; both architectures are little-endian
ALLOW, KILL_PROCESS, REFUSE, UNKNOWN_CALL = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS

libc = ctypes.CDLL(None, use_errno=True)


def own_namespaces() -> bool:
    """Leave the network, the shared memory and the processes of the machine, as nobody; False where we may not."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWPID) != 0:
        return False
    for file, text in (("setgroups", "deny"), ("uid_map", f"65534 {user} 1"), ("gid_map", f"65534 {group} 1")):
        with suppress(OSError):  # where a policy forbids the map, we are nobody there all the same
            Path("/proc/self", file).write_text(text, encoding="ascii", newline="\n")
    return True


def read_only_but(work: Path) -> bool:
    """Every mounted file system read-only, and one of limited size in memory at ``work``; False where we may not."""
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return False
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    if libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, ctypes.c_size_t(32)) != 0:
        return False
    options = f"size={DISK_BYTES},nr_inodes=4096,mode=700".encode()
    return libc.mount(b"tmpfs", os.fsencode(work), b"tmpfs", MS_NOSUID | MS_NODEV, options) == 0


def see_only(work: Path, program: Path) -> bool:
    """Refuse every later reading outside of the system and this Python, and writing outside of ``work``.

    False where the kernel has no Landlock, or one that lets files be truncated (before version 3).
    """
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    everything = RIGHTS | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    ruleset = libc.syscall(LANDLOCK_CREATE, struct.pack("=Q", everything), ctypes.c_size_t(8), 0)
    reading = EXECUTE | READ_FILE | READ_DIR
    places = {Path(place): reading for place in (*SYSTEM, *SYSTEM_FILES, sys.prefix, sys.base_prefix, program)}
    for place, rights in {**places, Path("/dev/null"): everything, work: everything}.items():
        if not place.exists():
            continue
        if not place.is_dir():
            rights &= EXECUTE | READ_FILE | WRITE_FILE | TRUNCATE  # all that a file can be allowed
        opened = os.open(place, os.O_PATH | os.O_CLOEXEC)
        if libc.syscall(LANDLOCK_ADD, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, opened), 0) != 0:
            return False
        os.close(opened)
    return libc.syscall(LANDLOCK_RESTRICT, ruleset, 0) == 0 and version >= 3


def refuse_calls(metadata: bool) -> bool:
    """Let seccomp refuse the system calls of ``DENIED``, and of ``METADATA`` if asked; False where the kernel has none."""
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        return False
    me = os.getpid()
    filters = [(LOAD, 0, 0, ARCH_AT), (EQUAL, 1, 0, AUDIT_ARCH[machine]), (RETURN, 0, 0, KILL_PROCESS)]
    filters += [(LOAD, 0, 0, NUMBER_AT), (AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, REFUSE)]  # x32, another numbering
    for number in (*DENIED.values(), *(METADATA.values() if metadata else ())):
        if number[COLUMN] is not None:
            filters += [(EQUAL, 0, 1, number[COLUMN]), (RETURN, 0, 0, REFUSE)]
    filters += [(EQUAL, 0, 1, CLONE3[COLUMN]), (RETURN, 0, 0, UNKNOWN_CALL)]  # its flags cannot be seen; libc takes clone
    for number, test, constants, fits in (
        (CLONE, ANY_BIT, (CLONE_THREAD,), ALLOW),
        (KILL, EQUAL, (me,), ALLOW),
        (TGKILL, EQUAL, (me,), ALLOW),
        (PRLIMIT, EQUAL, (0, me), ALLOW),
        (PRCTL, EQUAL, (PR_SET_PDEATHSIG,), REFUSE),
    ):
        other = ALLOW + REFUSE - fits
        checks = [check for constant in constants for check in ((test, 0, 1, constant), (RETURN, 0, 0, fits))]
        block = [(LOAD, 0, 0, FIRST_ARGUMENT_AT), *checks, (RETURN, 0, 0, other)]
        filters += [(EQUAL, 0, len(block), number[COLUMN]), *block]
    filters += [(RETURN, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in filters))
    program = struct.pack("@HP", len(filters), ctypes.addressof(code))  # struct sock_fprog
    return libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0) == 0


def drop_privileges() -> bool:
    """Lose root's powers for good, where no user namespace took them; True for other users."""
    if os.geteuid() != 0:
        return True
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)  # linux/capability.h, version 3
    return libc.prctl(PR_SET_SECUREBITS, 3, 0, 0, 0) == 0 and libc.capset(header, nothing) == 0


def confine(work: Path, program: Path, alone: bool) -> list[str]:
    """Apply every layer to this process; what none of them holds on this kernel."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    sealed = alone and read_only_but(work)
    os.chdir(work)  # after the mount: before, the directory would be the one below it
    lowered = alone or drop_privileges()
    locked = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    narrow = locked and see_only(work, program)
    filtered = locked and refuse_calls(metadata=not sealed)
    return [
        *([] if filtered else ["network", "processes"]),
        *([] if narrow and (sealed or filtered) else ["files"]),
        *([] if lowered else ["privileges"]),
    ]


def watch(child: int, work: Path, wall_seconds: float) -> int:
    """Wait for the program, and kill it when it takes too long, or too many threads, or too much disk."""
    until = time.monotonic() + wall_seconds
    while True:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until or _threads(child) > THREADS or _size(work) > DISK_BYTES:
            os.kill(child, signal.SIGKILL)
        signal.sigtimedwait({signal.SIGCHLD}, LOOK_SECONDS)


def _threads(process: int) -> int:
    try:
        return len(list(Path(f"/proc/{process}/task").iterdir()))
    except OSError:  # it has just ended
        return 0


def _size(folder: Path) -> int:
    """Bytes of the files below a folder; empty where the program's files are in a mount that we do not see."""
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            try:
                total += 512 * Path(place, file).lstat().st_blocks
            except OSError:  # removed between two looks
                continue
    return total


def main() -> None:
    """Confine a child, report what could not be confined, let it become the program, and watch it."""
    work, program, report = (Path(argument) for argument in sys.argv[1:4])
    wall_seconds, cpu_seconds, memory_bytes, file_bytes = (float(number) for number in sys.argv[4:])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    alone = sys.platform == "linux" and own_namespaces()
    child = os.fork()
    if child:
        code = watch(child, work, wall_seconds)
        os._exit(code & 0xFF)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    with report.open("w", encoding="utf-8", newline="\n") as written:  # opened before writing outside of work ends
        linux = sys.platform == "linux"
        json.dump(confine(work, program, alone) if linux else ["network", "processes", "files"], written)
    for kind, limit in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (int(limit), int(limit)))
    os.execv(sys.executable, [sys.executable, "-I", str(program)])


if __name__ == "__main__":
    main()
