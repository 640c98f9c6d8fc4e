"""A training of many steps, whose memory and open files must not grow.

    python tests/chaos/soak.py --steps 16000 --minutes 60 --out FILE

A step of a model of 135M parameters takes some two seconds on two cores, so 16,000 steps are what eight hours hold. Here they
are made on the two-layer model of the tests, dev losses and checkpoints included, and the process is looked at from outside: of
its resident memory the least in each tenth counts, since what is freed is given back late.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from small_run import Child, Place  # noqa: E402 - a program's own folder is on the path, that of the tests is not

TENTHS = 10
STEPS_AN_EPOCH = 8


def watch(child: Child, pause: float, most: float) -> list[tuple[float, int, int]]:
    """Seconds, resident bytes and open files of a process, until it ends, or for so many seconds."""
    looks: list[tuple[float, int, int]] = []
    began = time.monotonic()
    while not child.is_over() and time.monotonic() - began < most:
        try:
            pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1])
            files = len(list(Path(f"/proc/{child.pid}/fd").iterdir()))
        except OSError:
            continue
        if not pages:  # it has ended, and nobody has looked yet
            continue
        looks.append((time.monotonic() - began, pages * os.sysconf("SC_PAGE_SIZE"), files))
        time.sleep(pause)
    return looks


def tenths(looks: list[tuple[float, int, int]]) -> list[dict[str, float]]:
    """The least memory and the most files in each tenth of the time."""
    size = max(1, len(looks) // TENTHS)
    parts = [looks[n * size : (n + 1) * size] for n in range(TENTHS)]
    return [
        {"megabytes": min(rss for _, rss, _ in part) / 2**20, "files": max(n for _, _, n in part)} for part in parts if part
    ]


def soak(place: Place, name: str, minutes: float, pause: float = 0.2) -> dict[str, Any]:
    """Train, and say how memory and files stood."""
    child = place.start(name, None, ("--until", "train"))
    looks = watch(child, pause, 60 * minutes)
    child.kill(signal.SIGTERM, whole_group=True)
    ending = child.wait()
    assert ending.code in (0, -signal.SIGTERM), ending.text[-3000:]
    parts = tenths(looks)
    steps = len((place.run(name) / "metrics.jsonl").read_text().splitlines())
    growth = parts[-1]["megabytes"] / parts[2]["megabytes"] - 1  # the first two hold imports and the first steps
    return {
        "steps": steps,
        "seconds": round(ending.seconds),
        "tenths": [{key: round(value, 1) for key, value in part.items()} for part in parts],
        "growth_of_memory": round(growth, 4),
        "growth_of_files": parts[-1]["files"] - parts[2]["files"],
    }


def main() -> None:
    """The command line; exit code 1 where memory grew by a twentieth, or a file stayed open."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=16_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which the steps that were made count")
    parser.add_argument("--place", type=Path)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    changes = {"train.num_train_epochs": chosen.steps // STEPS_AN_EPOCH, "train.evals_per_epoch": 1, "evaluate.seeds": 1}
    changes |= {"train.replay": 0.0}
    place = Place(chosen.place or Path(tempfile.mkdtemp(prefix="soak-")), changes)
    result = soak(place, "soak", chosen.minutes)
    print(json.dumps(result, indent=1))
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(int(result["growth_of_memory"] > 0.05 or result["growth_of_files"] > 0))


if __name__ == "__main__":
    main()
