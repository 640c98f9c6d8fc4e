"""How a command ends: one message, what to do next, and an exit code; never a traceback for what a user can cause.

Typer answers Ctrl-C itself, with exit code 130 and no word. Here the code is taken as the interrupt that it stands for, and the
reader is told the very command that goes on.

Refused: typer without its standalone mode, which hands us its usage errors to print as well.
"""

import errno
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from tunesmith import hardware
from tunesmith.errors import MissingPackage, TunesmithError, first_line
from tunesmith.tracking import terminal

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

RESULTS = (None, 0, *range(10, 18), *range(21, 25))  # verdicts and advice

EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "safetensors": "train",
    "regex": "metrics",
    "httpx2": "endpoint",
    "gepa": "gepa",
    "llguidance": "constrained",
    "gguf": "gguf",
    "xllamacpp": "gguf",
    "matplotlib": "report",
    "jinja2": "report",
    "datasets": "hub",
    "huggingface_hub": "hub",
    "python_calamine": "excel",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "python_multipart": "serve",
}

RESUMED = (  # verbs that keep what they have finished
    *("run", "advise", "data", "render", "train", "export", "evaluate", "parity", "forgetting", "seeds", "learning-curve"),
    *("race", "push", "gate", "record"),
)

logger = logging.getLogger(__name__)


def run_to_its_end(app: Callable[[], object]) -> None:
    """Run the command line with lines and bars on stderr, and leave the process as it ends."""
    with terminal.session():
        try:
            app()
        except SystemExit as ending:
            if ending.code == INTERRUPTED:
                logger.warning(interrupt_message(sys.argv[1:]))
            raise
        except KeyboardInterrupt:  # between two commands of Python's, outside of typer's block
            logger.warning(interrupt_message(sys.argv[1:]))
            sys.exit(INTERRUPTED)
        except TunesmithError as error:
            _fail(_full_memory(error.__cause__) if hardware.is_full_memory(error.__cause__) else error)
        except ModuleNotFoundError as error:
            package = _missing_package(error)
            if package not in EXTRAS:
                raise
            message = f"this needs the package {package}, which is not installed"
            _fail(MissingPackage(message, f"pip install 'tunesmith[{EXTRAS[package]}]'"))
        except (MemoryError, RuntimeError) as error:
            if not hardware.is_full_memory(error):
                raise
            _fail(_full_memory(error))
        except OSError as error:
            if hardware.is_full_memory(error):
                _fail(_full_memory(error))
            if error.filename is None and error.errno not in FULL:
                raise
            _fail(TunesmithError(f"{_place(error)}: {error.strerror}", "is there room, and may it be written?"))


def ended_well(app: Callable[[], object]) -> None:
    """Run a command for a launcher, to which every exit code but 0 is a failure that it may try again: a verdict is none."""
    try:
        app()
    except SystemExit as ending:
        if ending.code not in RESULTS:
            raise
        if ending.code:
            logger.info(f"exit code {ending.code} is what a run alone ends with; a launcher is told 0")


def interrupt_message(arguments: list[str]) -> str:
    """What Ctrl-C leaves, and the command that goes on.

    Args:
        arguments: of the command line, without the program.
    """
    verb = next((argument for argument in arguments if not argument.startswith("-")), "")
    if verb not in RESUMED:
        return "interrupted"
    return f"interrupted; what is finished is kept. To go on, type:\n  {shlex.join(['tunesmith', *arguments])}"


def _place(error: OSError) -> str:
    """The file as its reader knows it: what is written under a temporary name (``rundir/atomic.py``) by its own."""
    if error.filename is None:
        return "a file"
    path = Path(os.fsdecode(error.filename))
    return str(path.with_name(path.name[1:-4]) if path.name.startswith(".") and path.suffix == ".tmp" else path)


def _missing_package(error: BaseException | None) -> str:
    """The package that is not there; one that imports lazily names it in the cause alone."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.split(".")[0]
        error = error.__cause__
    return ""


def _full_memory(error: BaseException | None) -> TunesmithError:
    """What is told where the memory ended, whoever noticed it."""
    said = "" if error is None else f" ({first_line(error):.200})"
    return TunesmithError(
        f"the memory of this machine is full{said}",
        "end other programs, or take a smaller model; then give the same command again, what was finished stays",
    )


def _fail(error: TunesmithError) -> None:
    logger.error(f"error: {error}")
    sys.exit(error.exit_code)
