"""How this process was launched: ``torchrun``'s variables, which Ray Train and shell scripts set too."""

from typing import NamedTuple

from tunesmith import hardware
from tunesmith.errors import RunError

HINT = "launch with torchrun, or unset WORLD_SIZE"


class Launch(NamedTuple):
    """This process among those that were launched together.

    Attributes:
        rank: its number; 0 leads.
        size: of all.
        local_rank: its number on this machine, which is the number of its GPU.
    """

    rank: int
    size: int
    local_rank: int

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size}"


def launch() -> Launch | None:
    """How this process was launched; None where it is alone.

    Raises:
        RunError: variables that contradict each other, or no address to meet at.
    """
    stated = hardware.launch_variables()
    if stated.get("WORLD_SIZE", "1") == "1":
        return None
    told = ", ".join(f"{name}={value}" for name, value in stated.items())
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if lacking := [name for name in needed if name not in stated]:
        raise RunError(f"launched as one of several ({told}) without {', '.join(lacking)}", HINT)
    numbers = {name: stated.get(name, stated["RANK"]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK")}
    if wrong := [name for name, value in numbers.items() if not value.isdecimal()]:
        raise RunError(f"{wrong[0]}: expected a whole number from 0, found {numbers[wrong[0]]!r}", HINT)
    found = Launch(int(numbers["RANK"]), int(numbers["WORLD_SIZE"]), int(numbers["LOCAL_RANK"]))
    if found.rank >= found.size:
        raise RunError(f"RANK is {found.rank} and WORLD_SIZE {found.size}; ranks are numbered from 0", HINT)
    return found
