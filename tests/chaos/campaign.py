"""A reliability campaign: a small run is disturbed again and again, and must end with the bytes of one that was left alone.

    python tests/chaos/campaign.py kill --count 200 --seed 0 --out FILE

A trial takes the run as it stands before a stage, disturbs it while the stage is made, looks at it (``tunesmith status``),
runs it again, and compares every file. What happens is drawn from the seed and the trial's number alone, so a trial that failed
can be repeated: ``--first N --count 1``. Every 25th trial begins with nothing and goes to the end.

0 unusable runs means: whatever was done, the next ``tunesmith run`` ends well. 0 silent differences: its files are those of the
undisturbed run, but for what was measured (``compare.py``).
"""

import argparse
import collections
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

import disturb  # noqa: E402 - a program's own folder is on the path, that of the tests is not
from compare import content, differences  # noqa: E402
from small_run import Child, Ending, Place  # noqa: E402

NAME = "run"  # of all, one after another: where a run lies is in its books
EVERY = 25  # which of the trials goes all the way
TOLD = ("run/adapter/tunesmith.json",)  # nothing makes it again but a training, so the run says that it is another one
VERDICTS = range(10, 18)


class Undisturbed:
    """A run that was left alone, as it stood after each stage.

    Attributes:
        stages: their names in order.
        seconds: that each took, the start of the process included.
        changes: of files that each made.
        after: the files of the run after each.
        said: what it wrote on the screen.
    """

    def __init__(self, place: Place, until: str | None = None):
        self.place, self.kept = place, place.directory / "kept"
        shutil.rmtree(self.kept, ignore_errors=True)
        place.remove(NAME)
        self.said = ""
        self.seconds: dict[str, float] = {}
        self.changes: dict[str, int] = {}
        self.after: dict[str, dict[str, bytes]] = {}
        self.home = place.home(NAME)
        self.home.mkdir(parents=True)
        self._before: dict[str, str] = {}
        before = "nothing"
        self._keep(before)
        self.stages = ["data"]  # the others are known once the first one is made
        for stage in self.stages:
            self._make(stage)
            if stage == "data":
                self.stages += stages_of(place, NAME)[1:]
            self._before[stage], before = before, stage
            self._keep(stage)
            if stage == until:
                break
        self.stages = list(self._before)

    @property
    def last(self) -> str:
        """The last stage."""
        return self.stages[-1]

    def _make(self, stage: str) -> None:
        counter = self.place.directory / "changes"
        counter.unlink(missing_ok=True)

        def count() -> None:
            disturb.at_change(-1, lambda: None, counter)

        ending = self.place.start(NAME, count, ("--until", stage)).wait()
        self.said += ending.text
        assert ending.code == 0 or ending.code in VERDICTS, ending.text
        self.seconds[stage], self.changes[stage] = ending.seconds, int(counter.read_text())
        self.after[stage] = content(self.place.run(NAME))

    def _keep(self, stage: str) -> None:
        shutil.copytree(self.home, self.kept / stage, symlinks=True, ignore=shutil.ignore_patterns("log-*"))

    def begin(self, name: str, stage: str | None) -> None:
        """A run of a name that stands before a stage; None for a finished one."""
        self.place.remove(name)
        kept = self.kept / (self.last if stage is None else self._before[stage])
        shutil.copytree(kept, self.place.home(name), symlinks=True)

    def compare(self, name: str, stage: str) -> list[str]:
        """How a run differs from the undisturbed one after a stage."""
        return differences(self.after[stage], content(self.place.run(name)))


def stages_of(place: Place, name: str) -> list[str]:
    """The stages of a run, as ``status --json`` says."""
    return [entry["stage"] for entry in status_of(place, name)["stages"]]


def status_of(place: Place, name: str) -> dict:
    """What ``tunesmith status --json`` says of a run.

    Raises:
        AssertionError: it ended with an error.
    """
    ending = place.command(name, ["status", str(place.run(name)), "--json"]).wait()
    assert ending.code == 0, f"status ended with {ending.code}: {ending.text[-500:]}"
    return json.loads(ending.text[ending.text.index("{") :])


class Trial:
    """One disturbance of a run, and what came of it."""

    def __init__(self, undisturbed: Undisturbed, kind: str, seed: int, number: int):
        self.undisturbed, self.place = undisturbed, undisturbed.place
        self.generator = random.Random(f"{kind} {seed} {number}")
        self.name, self.number = NAME, number
        self.title = f"{kind}-{number}"
        self.is_whole = number % EVERY == EVERY - 1 and kind != "nan"
        self.stage = undisturbed.stages[number % len(undisturbed.stages)]
        if self.is_whole:
            self.stage = "data"
        if kind == "nan":  # what trains; whatever else a run does, no weight changes in it
            self.stage = ("train", "seeds")[number % 2] if "seeds" in undisturbed.stages else "train"
        self.until = undisturbed.last if self.is_whole else self.stage
        self.notes: list[str] = []
        self.problems: list[str] = []
        undisturbed.begin(self.name, self.stage)

    @property
    def seconds(self) -> float:
        """That the disturbed stages take when nothing disturbs them."""
        all_of_them = self.undisturbed.seconds
        return sum(all_of_them.values()) if self.is_whole else all_of_them[self.stage]

    @property
    def changes(self) -> int:
        """Of files that the disturbed stages make."""
        all_of_them = self.undisturbed.changes
        return sum(all_of_them.values()) if self.is_whole else all_of_them[self.stage]

    def start(self, disturbance: Callable[[], None] | None = None, force: str | None = None) -> Child:
        """Go on with the run, or make a stage again."""
        return self.place.start(self.name, disturbance, ("--until", self.until, *(("--force", force) if force else ())))

    def refused(self, ending: Ending, *words: str) -> None:
        """A command that was disturbed ends well, or with an error of ours that has one of some words."""
        if ending.code in (0, *VERDICTS):
            self.notes.append("ended well")
        elif not ending.is_ours or ending.code == 70:
            self.problems.append(f"{self.until}: ended with {ending.code} and no error of ours: {ending.text[-1500:]}")
        elif words and not any(word in ending.text for word in words):
            self.problems.append(f"{self.until}: none of {words} in: {ending.text[-1500:]}")
        else:
            self.notes.append("error of ours")

    def ends_well(self) -> None:
        """It can be looked at, run again to its end, and holds what an undisturbed run holds."""
        if self.place.run(self.name).joinpath("recipe.yaml").exists():
            try:
                status_of(self.place, self.name)
            except AssertionError as error:
                self.problems.append(str(error))
        ending = self.start().wait()
        if ending.code != 0 and ending.code not in VERDICTS:
            self.problems.append(f"{self.until}: unusable, run again it ended with {ending.code}: {ending.text[-1500:]}")
            return
        self.problems += self.undisturbed.compare(self.name, self.until)


def kill(trial: Trial, number: int = signal.SIGKILL) -> None:
    """The process, or it and all that it started, are killed: before a change of a file, or after some time."""
    draw = trial.generator
    for _ in range(3 if trial.is_whole else 1):
        whole_group = draw.random() < 0.5
        if draw.random() < 0.6:
            at = draw.randrange(1, trial.changes + 1)
            trial.notes.append(f"before change {at}")
            child = trial.start(lambda at=at: disturb.at_change(at, disturb.die(number)))
            ending = child.wait()
        else:
            after = draw.uniform(0.1, 1.1 * trial.seconds)
            trial.notes.append(f"after {after:.2f} s{' the group' if whole_group else ''}")
            child = trial.start()
            until = time.monotonic() + after
            while not child.is_over() and time.monotonic() < until:
                time.sleep(0.005)
            child.kill(number, whole_group)
            ending = child.wait()
        if ending.code != -number:
            trial.notes.append(f"was over before ({ending.code})")
        if child.left_alive():
            trial.problems.append("a process that it started outlived it by five seconds")
            child.kill(signal.SIGKILL, whole_group=True)
    trial.ends_well()


def terminate(trial: Trial) -> None:
    """The same with SIGTERM."""
    kill(trial, signal.SIGTERM)


def disk(trial: Trial) -> None:
    """No file may grow beyond a drawn number of bytes."""
    largest = max(map(len, trial.undisturbed.after[trial.until].values()))
    nbytes = int(largest ** trial.generator.uniform(0.3, 1.0))
    trial.notes.append(f"no file of more than {nbytes:,} bytes")
    trial.refused(
        trial.start(lambda: disturb.full_disk(nbytes)).wait(), "full", "too large", "cannot be written", "is there room"
    )
    trial.ends_well()


def readonly(trial: Trial) -> None:
    """From a change of a file on, no folder of the run takes new files."""
    run, at = trial.place.run(trial.name), trial.generator.randrange(1, trial.changes + 1)
    trial.notes.append(f"before change {at}")

    def disturbance() -> None:
        disturb.obey_permissions()
        disturb.at_change(at, lambda: disturb.set_writable(run, False))

    trial.refused(trial.start(disturbance).wait(), "ermission", "cannot be written", "may it be written")
    disturb.set_writable(run, True)
    trial.ends_well()


def slow(trial: Trial) -> None:
    """Flushes and renames take up to 50 ms each."""
    seed = trial.generator.random()
    trial.refused(trial.start(lambda: disturb.slow_disk(random.Random(seed), 0.05)).wait())
    trial.ends_well()


def clock(trial: Trial) -> None:
    """The time of day jumps by up to ten years, to and fro."""
    seed = trial.generator.random()
    ending = trial.start(lambda: disturb.jumping_clock(random.Random(seed), 3e8)).wait()
    if ending.code not in (0, *VERDICTS):
        trial.problems.append(f"{trial.until}: ended with {ending.code}: {ending.text[-1500:]}")
    trial.ends_well()


def writers(trial: Trial) -> None:
    """A second one begins while the first one works: one of them is told, and the first one is not disturbed."""
    first = trial.start()
    time.sleep(trial.generator.uniform(0.0, trial.seconds))
    second = trial.start()
    endings = [first.wait(), second.wait()]
    codes = [ending.code for ending in endings]
    trial.notes.append(f"ended with {sorted(codes)}")
    for ending in endings:
        trial.refused(ending, "is being written by")
    if all(code == 7 for code in codes):
        trial.problems.append(f"neither wrote: {endings[0].text[-500:]}")
    trial.ends_well()


def memory(trial: Trial) -> None:
    """There is only so much memory more than the program itself takes."""
    nbytes = int(2 ** trial.generator.uniform(16, 28))
    trial.notes.append(f"{nbytes / 2**20:.1f} MB")
    ending = trial.start(lambda: disturb.little_memory(nbytes)).wait()
    if ending.code >= 0:
        trial.refused(ending, "memory")
    else:
        trial.notes.append(f"killed by {-ending.code}")
    trial.ends_well()


def nan(trial: Trial) -> None:
    """A number of the adapter becomes NaN while it is trained."""
    step, seed = trial.generator.randrange(1, 12), trial.generator.random()
    trial.notes.append(f"after step {step}")
    trial.refused(trial.start(lambda: disturb.nan_in_a_weight(step, random.Random(seed))).wait(), "not finite", "NaN", "nan")
    trial.ends_well()


def bits(trial: Trial, file_name: str | None = None) -> None:
    """One bit of a file is another one: what is on record is made again, and nothing else stands in the way."""
    trial.undisturbed.begin(trial.name, None)
    trial.until = trial.undisturbed.last
    run = trial.place.run(trial.name)
    files = sorted(path for path in trial.place.home(trial.name).rglob("*") if path.is_file() and path.stat().st_size)
    file = files[trial.number % len(files)] if file_name is None else run / file_name
    name = file.relative_to(run.parent).as_posix()
    at, bit = trial.generator.randrange(file.stat().st_size), 1 << trial.generator.randrange(8)
    raw = bytearray(file.read_bytes())
    raw[at] ^= bit
    file.write_bytes(raw)
    trial.notes.append(f"{name}, byte {at}, bit {bit}")
    status = trial.place.command(trial.name, ["status", str(run), "--json"]).wait()
    trial.refused(status)
    is_noticed = status.code != 0 or any(
        stage["state"] != "done" for stage in json.loads(status.text[status.text.index("{") :])["stages"]
    )
    trial.notes.append("noticed" if is_noticed else "not on record")
    forced = {"checkpoints": "train", "seeds": "seeds"}.get(file.relative_to(run.parent).parts[1])
    ending = trial.start(force=None if is_noticed else forced).wait()
    trial.refused(ending)
    if ending.code not in (0, *VERDICTS):  # the file that is named is removed, as the hint says
        if file.name not in ending.text:
            trial.problems.append(f"{name}: not named: {ending.text[-1500:]}")
        trial.notes.append(f"had to be removed: {ending.text.strip()[-300:]}")
        file.unlink(missing_ok=True)
        ending = trial.start().wait()
    if ending.code not in (0, *VERDICTS):
        trial.problems.append(f"unusable, run again it ended with {ending.code}: {ending.text[-1500:]}")
        return
    if name in TOLD:
        if f"{Path(name).name} is another one" not in ending.text:
            trial.problems.append(f"{name}: goes by without a word")
        return
    lines = trial.undisturbed.compare(trial.name, trial.until)
    own = [line for line in lines if f"run/{line}".startswith(f"{name}:")]
    if own and not is_noticed:
        trial.notes.append("stays as it is")
    trial.problems += [line for line in lines if is_noticed or line not in own]


KINDS: dict[str, Callable[[Trial], None]] = {
    "kill": kill,
    "terminate": terminate,
    "disk": disk,
    "readonly": readonly,
    "slow": slow,
    "clock": clock,
    "writers": writers,
    "memory": memory,
    "nan": nan,
    "bits": bits,
}


def trials(undisturbed: Undisturbed, kind: str, seed: int, numbers: range, until: float = float("inf")) -> list[Trial]:
    """Trials of a kind, in order, begun before a time of ``time.monotonic``."""
    done: list[Trial] = []
    for number in numbers:
        if time.monotonic() > until:
            break
        trial = Trial(undisturbed, kind, seed, number)
        KINDS[kind](trial)
        done.append(trial)
        if trial.problems:
            undisturbed.place.put_aside(trial.name, trial.title)
        for problem in trial.problems:
            print(f"{trial.title} ({trial.stage}; {', '.join(trial.notes)}): {problem}", flush=True)
    return done


def figures(kind: str, seed: int, done: list[Trial], seconds: float) -> dict:
    """Counts of some trials, and all that went wrong."""
    return {
        "kind": kind,
        "about": (KINDS[kind].__doc__ or "").strip(),
        "seed": seed,
        "tried": len(done),
        "failed": sum(bool(trial.problems) for trial in done),
        "came_too_late": sum("over before" in note for trial in done for note in trial.notes),
        "stages": dict(collections.Counter(trial.stage if not trial.is_whole else "all" for trial in done)),
        "seconds": round(seconds),
        "problems": {trial.title: {"notes": trial.notes, "problems": trial.problems} for trial in done if trial.problems},
        "notes": {trial.title: [trial.stage, *trial.notes] for trial in done},
    }


def main() -> None:
    """The command line; exit code 1 where a trial failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="+", choices=[*KINDS, "all"])
    parser.add_argument("--count", type=int, default=200, help="trials of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="that a kind may take; what is left is not tried")
    parser.add_argument("--place", type=Path, help="folder to work in; what failed is left there")
    parser.add_argument("--out", type=Path, help="JSON file that takes the counts, beside those of other kinds that it has")
    chosen = parser.parse_args()
    folder = chosen.place or Path(tempfile.mkdtemp(prefix="chaos-"))
    undisturbed = Undisturbed(Place(folder))
    has_failed = False
    for kind in KINDS if "all" in chosen.kinds else chosen.kinds:
        began = time.monotonic()
        numbers = range(chosen.first, chosen.first + chosen.count)
        done = trials(undisturbed, kind, chosen.seed, numbers, began + 60 * chosen.minutes)
        counts = figures(kind, chosen.seed, done, time.monotonic() - began)
        has_failed |= counts["failed"] > 0
        print(f"{kind}: {counts['tried']} tried, {counts['failed']} failed, {counts['seconds']} s", flush=True)
        if chosen.out is not None:
            known = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
            chosen.out.write_text(json.dumps({**known, kind: counts}, indent=1) + "\n")
    sys.exit(int(has_failed))


if __name__ == "__main__":
    main()
