"""Which process it is: its number, when it started and in which boot, so that a number that was given again is no mistake.

Source: proc(5), field 22 of ``/proc/PID/stat``; ``/proc/sys/kernel/random/boot_id``.
"""

import os
from dataclasses import dataclass
from pathlib import Path

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
        try:
            stat = Path(f"/proc/{pid or os.getpid()}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return None
        number, _, rest = stat.partition(" ")
        fields = rest.rpartition(")")[2].split()  # the name in brackets may hold anything
        if fields[0] in ("Z", "X"):
            return None
        return cls(int(number), int(fields[19]), BOOT.read_text(encoding="ascii").strip())

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return Identity.of(self.pid) == self
