"""Which runs there are to show: a folder of run directories, or one run; and the list of them.

A run is known by the name of its directory, and a name is looked up among the directories that are there: no path of a request
ever reaches the disk. What a run *is* (verdict, changed keys, whether it repeats another) the verb ``runs`` says, as on the
terminal; it reads every run whole and hashes what changed, so its answer is kept until a file of one of them is another.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith.errors import RunError
from tunesmith.formatting import whole_characters
from tunesmith.pipeline import runs as runs_verb
from tunesmith.rundir import RunDir
from tunesmith.rundir.lock import writer_of
from tunesmith.rundir.records.runs import Runs
from tunesmith.web.life import Feed, Standing

FEEDS = 16  # runs whose events are kept at hand
VERDICTS = ("recipe.yaml", "stages.json", "evaluation/verdict.json")  # files that what is said of a run follows from

State = Mapping[str, tuple[tuple[int, int] | None, ...]]


class Shelf:
    """The runs of a folder.

    Args:
        folder: that holds run directories, or is one.

    Raises:
        RunError: no such folder.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise RunError(f"{folder}: no such folder", "name the folder that holds run directories: tunesmith web FOLDER")
        self.folder = folder.resolve()
        self._feeds: dict[str, Feed] = {}
        self._lock, self._comparing = threading.Lock(), threading.Lock()
        self._compared: tuple[State, Runs] | None = None
        self._standings: dict[str, tuple[object, Standing]] = {}

    @property
    def is_one_run(self) -> bool:
        """Whether the folder is a run itself, so that its neighbours are nobody's business."""
        return (self.folder / "recipe.yaml").exists()

    def directories(self) -> dict[str, Path]:
        """The run directories that are there now, by name."""
        if self.is_one_run:
            return {self.folder.name: self.folder}
        return {
            whole_characters(entry.name): entry
            for entry in sorted(self.folder.iterdir())
            if not entry.name.startswith(".") and (entry / "recipe.yaml").is_file()
        }

    def feed(self, name: str) -> Feed:
        """The events of a run.

        Raises:
            KeyError: no run of that name.
        """
        directory = self.directories()[name]
        with self._lock:
            feed = self._feeds.pop(name, None) or Feed(RunDir(directory))
            self._feeds[name] = feed  # the newest last
            while len(self._feeds) > FEEDS:
                del self._feeds[next(iter(self._feeds))]
            return feed

    def standings(self) -> dict[str, Standing]:
        """How each run stands, in a word; the events of one are read again only where something of it changed."""
        words: dict[str, Standing] = {}
        for name, directory in self.directories().items():
            files = (directory / "events.jsonl", directory / "evaluation" / "verdict.json")
            state = (writer_of(directory) is None, *(_state(file) for file in files))
            known = self._standings.get(name)
            words[name] = known[1] if known is not None and known[0] == state else self.feed(name).standing()
            self._standings[name] = (state, words[name])
        return words

    def compared(self, against: str = runs_verb.PREVIOUS) -> Runs:
        """What the verb ``runs`` says of the folder; nothing where no run can be read.

        Args:
            against: the run that keys and rows are compared with.
        """
        if self.is_one_run:
            return Runs(folder=str(self.folder), runs=(), others=())
        if against != runs_verb.PREVIOUS:
            return runs_verb.compare(self.folder, against)
        with self._comparing:
            state = self.state(VERDICTS)
            if self._compared is None or self._compared[0] != state:
                self._compared = (state, self._compare())
            return self._compared[1]

    def state(self, files: Sequence[str]) -> State:
        """Sizes and times of some files of every run."""
        return {name: tuple(_state(directory / file) for file in files) for name, directory in self.directories().items()}

    def _compare(self) -> Runs:
        try:
            return runs_verb.compare(self.folder)
        except RunError:
            return Runs(folder=str(self.folder), runs=(), others=())


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
