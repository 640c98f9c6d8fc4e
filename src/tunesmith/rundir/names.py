"""Names of a run's files as they lie on the disk.

An arm may be called ``external:small`` or ``few_shot:2``, and its folder is called the same. Windows cannot have a colon there:
it would write a hidden stream of a file ``external``. So there, and there alone, the folder has an equals sign, which no name
of ours has; in the records the name stays, so what a run says is the same on every system.
"""

import sys


def on_disk(name: str) -> str:
    """The name of a file or folder of a run, or a path of such names, as this system can have it."""
    return name.replace(":", "=") if sys.platform == "win32" else name


def from_disk(name: str) -> str:
    """What a file or folder of a run is called in the records."""
    return name.replace("=", ":") if sys.platform == "win32" else name
