"""Each hold of the sandbox, by an attack that fails with it, fails where namespaces are forbidden, and succeeds without it."""

import os
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tunesmith.evaluate.metrics import sandbox
from tunesmith.evaluate.metrics.sandbox import run_program

REMOVED = {  # how a layer is taken out of the child's own source
    "namespaces": "own_namespaces = lambda: False",
    "mounts": "read_only_but = lambda work: False",
    "landlock": "see_only = lambda work, program: True",
    "seccomp": "refuse_calls = lambda metadata: True",
    "privileges": "drop_privileges = lambda: True",
    "watch": "watch = lambda child, work, wall_seconds: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])",
}
FILL = "for n in range(80):\n    with open(str(n), 'wb') as file: file.write(bytes(2**20 - 1))\n"
ATTACKS = {  # what the program does to escape: source, and the layers without which it succeeds
    "unix socket": ("import socket\nsocket.socket(socket.AF_UNIX).connect({socket!r})", ("seccomp",)),
    "network": ("import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)", ("namespaces", "seccomp")),
    "write": ("open({victim!r}, 'w').write('gone')", ("mounts", "landlock")),
    "truncate": ("import os\nos.truncate({victim!r}, 0)", ("mounts", "landlock")),
    "remove": ("import os\nos.unlink({victim!r})", ("mounts", "landlock")),
    "chmod": ("import os\nos.chmod({victim!r}, 0)", ("mounts", "seccomp")),
    "utime": ("import os\nos.utime({victim!r}, (5, 5))", ("mounts", "seccomp")),
    "read": ("open({victim!r}).read()", ("landlock",)),
    "other processes": ("open('/proc/{process}/cmdline').read()", ("landlock",)),
    "signal": ("import os\nos.kill({process}, 0)", ("namespaces", "seccomp")),
    "fork": ("import os\nif os.fork() == 0: os._exit(0)", ("seccomp",)),
    "child": ("import subprocess\nsubprocess.run(['/bin/true'], check=True)", ("seccomp",)),
    "leave the session": ("import os\nos.setsid()", ("seccomp",)),
    "shared memory": ("import ctypes\nassert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0", ("seccomp",)),
    "threads": (
        "import threading, time\nthreading.stack_size(32768)\n"
        "for n in range(200): threading.Thread(target=time.sleep, args=(0.3,)).start()\ntime.sleep(0.2)",
        ("watch",),
    ),
    "disk": (FILL + "import time\ntime.sleep(0.2)", ("mounts", "watch")),
    "powers of root": ("import os\nos.setresuid(1, 1, 1)", ("namespaces", "privileges")),
}


@pytest.fixture
def without(tmp_path, monkeypatch):
    """Take layers out of the sandbox."""
    text = Path(sandbox.__file__).with_name("sandbox_child.py").read_text()

    def remove(*layers):
        child = tmp_path / "sandbox_child.py"
        lines = "\n".join(REMOVED[layer] for layer in layers)
        child.write_text(text.replace('if __name__ == "__main__"', f'{lines}\n\nif __name__ == "__main__"'))
        monkeypatch.setattr(sandbox, "_CHILD", child)

    return remove


@pytest.fixture
def attack(tmp_path):
    """Whether an attack succeeds."""
    victim, path = tmp_path / "victim", tmp_path / "socket"
    victim.write_text("keep me")
    with socket.socket(socket.AF_UNIX) as daemon, socket.create_server(("127.0.0.1", 0)) as server:
        daemon.bind(str(path))
        daemon.listen(8)
        places = {"victim": str(victim), "socket": str(path), "port": server.getsockname()[1], "process": os.getpid()}

        def run(name):
            finished = run_program(ATTACKS[name][0].format(**places))
            assert "SyntaxError" not in finished.output
            return finished.code == 0

        yield run


@pytest.fixture(scope="module", autouse=True)
def _kernel():
    if lacking := run_program("").lacking:
        pytest.skip(f"this kernel does not confine {lacking}")


@pytest.mark.parametrize("name", ATTACKS)
def test_the_sandbox_holds(name, attack):
    assert not attack(name)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_sandbox_holds_where_namespaces_are_forbidden(name, attack, without):
    without("namespaces")
    assert not attack(name)


@pytest.mark.parametrize("name", ATTACKS)
def test_without_its_hold_the_attack_succeeds(name, attack, without):
    if name == "powers of root" and os.geteuid() != 0:
        pytest.skip("an ordinary user has none")
    without(*ATTACKS[name][1])
    assert attack(name)


@pytest.mark.parametrize(
    ("broken", "lacking"),
    [
        ("see_only = lambda work, program: False", ("files",)),
        ("refuse_calls = lambda metadata: False", ("network", "processes")),
        ("own_namespaces = drop_privileges = lambda: False", ("privileges",)),
        ("own_namespaces = refuse_calls = lambda metadata=None: False", ("network", "processes", "files")),
        ("confine = None", ("network", "processes", "files")),  # it ended before it could say
    ],
)
def test_what_the_kernel_does_not_hold_is_said(broken, lacking, without, monkeypatch):
    monkeypatch.setitem(REMOVED, "broken", broken)
    without("broken")
    assert run_program("").lacking == lacking


def test_programs_have_limits_and_tools_of_their_own():
    finished = run_program(
        "import asyncio, os, pathlib, shutil, tempfile\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def tried(what, *args):\n"
        "    try:\n        what(*args)\n        return 'done'\n"
        "    except (OSError, MemoryError) as error:\n        return type(error).__name__\n"
        "print(tried(pathlib.Path('inside').write_text, 'x'))\n"
        "print(tried(bytearray, 2**31))\n"
        "print(tried(pathlib.Path('large').write_bytes, bytes(2**21)))\n"
        "print(sorted(os.environ))\n"
        "shutil.copy('inside', tempfile.mkdtemp())\n"
        "asyncio.run(asyncio.sleep(0))\n"
        "print(sum(ThreadPoolExecutor(8).map(abs, range(-5, 5))))\n"
    )
    assert finished.code == 0, finished.output
    assert finished.output.split() == ["done", "MemoryError", "OSError", "['LC_CTYPE']", "25"]


def test_programs_end_in_time_and_leave_no_process_behind(tmp_path):
    assert run_program("while True: pass", cpu_seconds=1).code not in (0, None)
    finished = run_program("import os, time\nprint(os.getcwd(), flush=True)\ntime.sleep(60)", wall_seconds=1.0)
    folder = finished.output.splitlines()[0]
    assert finished.code is None and not Path(folder).exists() and not _running(folder)


def test_a_program_ends_when_its_caller_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "GRACE_SECONDS", 0.0)
    caller = os.fork()
    if caller == 0:
        monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
        run_program("import time\ntime.sleep(60)", wall_seconds=2.0)
        os._exit(0)
    _wait_until(lambda: _running(str(tmp_path)))
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    _wait_until(lambda: not _running(str(tmp_path)))


def _wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _running(text):
    processes = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            processes += [process] if text.encode() in process.read_bytes() else []
    return processes
