"""Which process it is: its number, when it started and in which boot, so that a number that was given again is no mistake.

Source: random(4), ``/proc/sys/kernel/random/boot_id``.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tunesmith import hardware

BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Identity:
    """A process.

    Attributes:
        pid: its number.
        start: clock ticks from the boot to its start.
        boot: of the machine.
    """

    pid: int
    start: int
    boot: str

    @classmethod
    def of(cls, pid: int | None = None) -> "Identity | None":
        """A process that runs, this one by default; None where there is none of that number, or only what is left of it."""
        number = os.getpid() if pid is None else pid
        start = hardware.started_at(number)
        return None if start is None else cls(number, start, BOOT.read_text(encoding="ascii").strip())

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return Identity.of(self.pid) == self
