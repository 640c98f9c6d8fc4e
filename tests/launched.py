"""Processes as a launcher starts them, forked from the test: each has torchrun's variables and its own end."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch._C._distributed_c10d import TCPStore

from tunesmith.launch import group
from tunesmith.tracking import terminal


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        code: its status; a negative number is a signal.
        said: the error that it ended with.
    """

    code: int
    said: str


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


def launched(
    size: int, work: Callable[[int], object], folder: Path, missing: tuple[int, ...] = (), has_launcher: bool = False
) -> list[Ended]:
    """``work(rank)`` in so many processes at once; those of ``missing`` ranks never come.

    Args:
        has_launcher: the store is kept here, as torchrun does; else by the first of them.
    """
    port, pids = free_port(), {}
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False) if has_launcher else None
    for rank in range(size):
        if rank in missing:
            continue
        pids[rank] = os.fork()
        if not pids[rank]:
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(store is not None)
            _run(work, {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}, folder / f"said-{rank}")
    ended, end = {}, time.monotonic() + 120
    while len(ended) < len(pids):
        for rank, pid in pids.items():
            if rank in ended:
                continue
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                file = folder / f"said-{rank}"
                ended[rank] = Ended(os.waitstatus_to_exitcode(status), file.read_text() if file.exists() else "")
        time.sleep(0.01)
    return [ended[rank] for rank in sorted(ended)]


def _run(work: Callable[[int], object], variables: dict[str, int], said: Path) -> None:
    code = 1
    try:
        os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1")
        group.leave()
        with terminal.session():
            work(variables["RANK"])
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 0
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  a process that tells how it ended
        said.write_text(f"{error}\n{traceback.format_exc()}")
    finally:
        sys.stdout.flush()
        os._exit(code)
