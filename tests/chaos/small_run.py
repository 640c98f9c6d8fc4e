"""A whole small run in a process of its own, which may be disturbed, and started in no time: it is forked from one that has
imported everything.

What is run is the command line, ``tunesmith run``, on the two-layer model of the tests, every stage to verdict and page. A
child has its own folder for the cache and for the ledger of readings, so that no trial sees another. A disturbance is a
function that is called in the child before the command begins.
"""

import contextlib
import gc
import importlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from llama_cpp_sources import conversion_by, run_here
from shared import PARITY, make_tiny, make_tokenizer, write_recipe
from tunesmith import cli, hardware
from tunesmith.evaluate import probes
from tunesmith.models import precision

forgetting = importlib.import_module("tunesmith.pipeline.forgetting")
IMPORTED = ("transformers", "xllamacpp", "matplotlib.figure", "pyarrow.parquet", "scipy.stats", "tunesmith.train.loop")
for module in (
    *IMPORTED,
    *(f"tunesmith.pipeline.{stage}" for stage in ("data", "render", "select", "train", "parity", "report")),
):
    importlib.import_module(module)

# Every stage that a recipe can have without a network, and a few steps of each.
RECIPE = {
    "seed": 7,
    "train.replay": 0.2,
    "train.num_train_epochs": 2,
    "evaluate.seeds": 2,
    "evaluate.few_shot": {"k": [2], "draws": 1},
    "evaluate.finalists": 1,
    "export.gguf": ["Q8_0"],
}
Disturbance = Callable[[], None]
SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")
CANARY = "hf_canary5142secret"  # the value of each, which nothing that is written may hold
LONGEST = 600.0  # seconds that a run may take, on a busy machine too


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    Attributes:
        code: its exit code, or minus the signal that killed it.
        text: what it wrote on stderr and stdout.
        seconds: that it lived.
        peak_bytes: of its memory.
    """

    code: int
    text: str
    seconds: float
    peak_bytes: int

    @property
    def is_ours(self) -> bool:
        """Whether it ended as a command should: a verdict, or an error of ours with its line."""
        return self.code >= 0 and "Traceback (most recent call last)" not in self.text


class Place:
    """A folder with the model, the rows and the recipe, and runs beside each other in it."""

    def __init__(self, directory: Path, changes: dict[str, object] | None = None, model: Path | None = None):
        self.directory = directory
        self.model = model or directory / "model"
        if not self.model.exists():
            making, tokenizer = directory / "making", directory / "tokenizer"
            for folder in (making, tokenizer):
                folder.mkdir(parents=True)
            ending = forked(lambda: (make_tokenizer(tokenizer), make_tiny(making, tokenizer))).wait()
            assert ending.code == 0, ending.text
            making.rename(self.model)
        self.recipe = write_recipe(directory, self.model, {**RECIPE, **(changes or {})})

        gc.collect()
        gc.freeze()  # a child that collects its garbage does not look at the imports, nor copy their pages

    def start(self, name: str, disturbance: Disturbance | None = None, arguments: tuple[str, ...] = ()) -> "Child":
        """Begin the run of a name, or go on with it."""
        return self.command(name, ["run", str(self.recipe), "--out", str(self.run(name)), *arguments], disturbance)

    def command(self, name: str, arguments: list[str], disturbance: Disturbance | None = None) -> "Child":
        """Start a command of the program, for which the run of a name is all that there is."""
        home = self.home(name)
        home.mkdir(parents=True, exist_ok=True)

        def work() -> None:
            os.environ.update(XDG_CACHE_HOME=str(home / "cache"), XDG_DATA_HOME=str(home / "data"), NO_COLOR="1")
            os.environ.update(dict.fromkeys(SECRETS, CANARY))
            os.umask(0o077)
            if disturbance is not None:
                disturbance()
            run_command_line(arguments)

        return forked(work)

    def home(self, name: str) -> Path:
        """Folder of a run of a name: run/, cache/ and data/."""
        return self.directory / "trials" / name

    def run(self, name: str) -> Path:
        """The run directory of a name."""
        return self.home(name) / "run"

    def put_aside(self, name: str, title: str) -> None:
        """Keep a run for whoever looks into it."""
        self.remove(title)
        self.home(name).rename(self.home(title))

    def remove(self, name: str) -> None:
        """Forget a run."""
        shutil.rmtree(self.home(name), ignore_errors=True)


def run_command_line(arguments: list[str]) -> None:
    """``tunesmith`` with these arguments as the tests run it: few checks, one thread, the small vocabulary known."""
    whole = probes.load_probes

    def few_probes(texts: Path | None) -> probes.Probes:
        every = whole(texts)
        return probes.Probes(every.passages[::16], every.prompts[::16], every.questions[::16])

    with pytest.MonkeyPatch.context() as patch, conversion_by(run_here):
        for limit in [*PARITY, (forgetting, "load_probes", few_probes), (precision, "_faster", lambda directory: "fp32")]:
            patch.setattr(*limit)
        patch.setattr(hardware, "cpu_count", lambda: 1)
        patch.setattr(hardware, "physical_cores", lambda: 1)
        patch.setattr(sys, "argv", ["tunesmith", *arguments])
        cli.main()


class Child:
    """A forked process, leader of its own group; what it says comes by a pipe, which no full disk cuts off.

    Args:
        pid: of the process.
        said: the end of the pipe that is read; never waited for, since what the child has started may keep the other end.
    """

    def __init__(self, pid: int, said: int):
        self.pid, self._said, self._text = pid, said, b""
        self.began = time.monotonic()
        self.ending: Ending | None = None

    def is_over(self) -> bool:
        """Whether it has ended."""
        if self.ending is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            self._listen()
            if pid:
                self._end(status, usage)
        return self.ending is not None

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._said, 1 << 16):
                self._text += piece

    def wait(self, seconds: float = LONGEST) -> Ending:
        """How it ends; killed when it takes longer."""
        until = time.monotonic() + seconds
        while not self.is_over() and time.monotonic() < until:
            time.sleep(0.01)
        if self.ending is None:
            self.kill(signal.SIGKILL, whole_group=True)
            _, status, usage = os.wait4(self.pid, 0)
            self._end(status, usage)
        assert self.ending is not None
        return self.ending

    def _end(self, status: int, usage: "resource.struct_rusage") -> None:
        self._listen()
        os.close(self._said)
        seconds, text = time.monotonic() - self.began, self._text.decode(errors="replace")
        self.ending = Ending(os.waitstatus_to_exitcode(status), text, seconds, usage.ru_maxrss * 1024)

    def kill(self, number: int, whole_group: bool) -> None:
        """Send a signal to it alone, or to all processes that it started too."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if whole_group else os.kill)(self.pid, number)

    def left_alive(self, seconds: float = 5.0) -> bool:
        """Whether a process of its group outlives it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                os.killpg(self.pid, 0)
            except (ProcessLookupError, PermissionError):
                return False
            time.sleep(0.02)
        return True


def refuse_pickles(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: nothing that is pickled names a class, and so runs code, in any stage or parser."""
    if event == "pickle.find_class":
        raise RuntimeError(f"a pickle is read: {arguments}")


def forked(work: Callable[[], object]) -> Child:
    """A process that does some work and ends."""
    said, saying = os.pipe()
    pid = os.fork()
    if pid:
        os.close(saying)
        os.set_blocking(said, False)
        return Child(pid, said)
    code = 70
    try:
        os.setsid()
        os.close(said)
        for number in (1, 2):
            os.dup2(saying, number)
        os.close(saying)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.enable()
        sys.addaudithook(refuse_pickles)
        torch.set_num_threads(1)
        work()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:  # noqa: BLE001 - the end of the process, as Python itself would end it
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
