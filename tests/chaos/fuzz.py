"""A parser is given files that nobody would write, and must end each with a result or an error of ours, in bounds.

    python tests/chaos/fuzz.py jsonl gguf --seconds 60 --corpus DIR

A child reads one file after another; its memory may grow by ``MEMORY``, and each file may take ``SECONDS`` of the processor.
What it raises that is no error of ours, what kills it and what takes longer is a finding: the file is kept in DIR under the
parser's name, once for each place that it was found at. What was mended lies in ``corpus/`` beside this file and is read before
anything is invented, so it stays mended.
"""

import argparse
import collections
import gc
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read at the import; a name in a file that is no name is not looked for elsewhere
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from mutate import mutated  # noqa: E402 - a program's own folder is on the path, that of the tests is not
from parsers import PARSERS, Parser  # noqa: E402
from small_run import refuse_pickles  # noqa: E402

from tunesmith.errors import TunesmithError  # noqa: E402

SECONDS, WAITED = 1.0, 30.0  # of the processor, and of the clock on a machine that does other things
MEMORY = 200 * 2**20
BATCH = 100  # files that a child reads
KEPT = Path(__file__).parent / "corpus"


@dataclass
class Findings:
    """What came of the files that a parser was given.

    Attributes:
        tried: how many.
        read: that were read to their end.
        refused: that an error of ours refused.
        found: by place: a file that something else happened with.
        slowest: seconds of the processor that one took.
    """

    tried: int = 0
    read: int = 0
    refused: int = 0
    found: dict[str, bytes] = field(default_factory=dict)
    slowest: float = 0.0
    counts: collections.Counter[str] = field(default_factory=collections.Counter)


def warm_up(parser: Parser, folder: Path, honest: bytes) -> None:
    """Pay for imports, and for what is built once, here and not in the first file of each child."""
    if parser.warms_up:
        (folder / parser.name).write_bytes(honest)
        parser.parse(folder / parser.name)


def try_files(parser: Parser, folder: Path, files: list[bytes], findings: Findings) -> None:
    """Give a parser some files; one child reads them until it dies of one, another one the rest."""
    at = 0
    while at < len(files):
        outcomes = _in_a_child(parser, folder, files[at : at + BATCH])
        for raw, (outcome, seconds) in zip(files[at:], outcomes, strict=False):
            findings.tried += 1
            findings.slowest = max(findings.slowest, seconds)
            if outcome == "read":
                findings.read += 1
            elif outcome == "refused":
                findings.refused += 1
            else:
                findings.counts[outcome] += 1
                if len(raw) < len(findings.found.get(outcome, raw + b"x")):
                    findings.found[outcome] = raw
        at += len(outcomes)


def _in_a_child(parser: Parser, folder: Path, files: list[bytes]) -> list[tuple[str, float]]:
    """What became of each file, up to and with the one that the child died of."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _read_all(parser, folder, files, writing)
    os.close(writing)
    outcomes: list[tuple[str, float]] = []
    text = b""
    while select.select([reading], [], [], WAITED)[0] and (piece := os.read(reading, 1 << 16)):
        text += piece
    os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(reading)
    for line in text.splitlines():
        outcome, seconds = json.loads(line)
        outcomes.append((outcome, seconds))
    if len(outcomes) < len(files):
        reason = {-signal.SIGPROF: f"more than {SECONDS:g} s", -signal.SIGKILL: f"no answer in {WAITED:g} s"}
        outcomes.append((reason.get(status, f"ended with {status}"), SECONDS))
    return outcomes


def _read_all(parser: Parser, folder: Path, files: list[bytes], writing: int) -> None:
    """The child: a line of JSON for each file. It leaves by ``os._exit``."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")
    sys.addaudithook(refuse_pickles)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    path = folder / parser.name
    for raw in files:
        path.write_bytes(raw)
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        began = time.process_time()
        try:
            parser.parse(path)
            outcome = "read"
        except TunesmithError as error:
            outcome = "refused" if error.message and len(str(error)) < 20_000 else "an error of more than 20,000 characters"
        except BaseException as error:  # noqa: BLE001 - this is what is looked for
            outcome = _place(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.write(writing, (json.dumps([outcome, round(time.process_time() - began, 3)]) + "\n").encode())
    os._exit(0)


def _place(error: BaseException) -> str:
    """The kind of an error, and the last line of ours on its way."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/src/tunesmith/" in frame.filename] or frames[-1:]
    frame = ours[-1]
    return f"{type(error).__name__} in {frame.filename.rpartition('/tunesmith/')[2]} {frame.name}"


def fuzz(name: str, seconds: float, seed: int, corpus: Path | None, most: int = sys.maxsize) -> Findings:
    """Give a parser its honest files, what is kept, then what chance makes of them."""
    parser, findings = PARSERS[name], Findings()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place)
        parser.prepare(folder)
        seeds = parser.seeds(folder)
        assert seeds, name
        kept = kept_files(corpus, name)
        warm_up(parser, folder, seeds[0])
        try_files(parser, folder, [*seeds, *kept], findings)
        draw, until = random.Random(f"{name} {seed}"), time.monotonic() + seconds
        gc.collect()
        gc.freeze()
        while time.monotonic() < until and findings.tried < most:
            try_files(parser, folder, [mutated(draw, [*seeds, *kept], parser.words) for _ in range(BATCH)], findings)
    if corpus is not None:
        for outcome, raw in findings.found.items():
            file = corpus / name / f"{''.join(c if c.isalnum() else '_' for c in outcome)[:80]}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(raw)
    return findings


def kept_files(corpus: Path | None, name: str) -> list[bytes]:
    """What was found before."""
    folder = (corpus or KEPT) / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


def main() -> None:
    """The command line; exit code 1 where something was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("parsers", nargs="+", choices=[*PARSERS, "all"])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each parser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, help="folder that takes what was found")
    parser.add_argument("--out", type=Path, help="JSON file that takes the counts, beside those that it has")
    chosen = parser.parse_args()
    has_found = False
    for name in PARSERS if "all" in chosen.parsers else chosen.parsers:
        began = time.monotonic()
        findings = fuzz(name, chosen.seconds, chosen.seed, chosen.corpus)
        has_found |= bool(findings.found)
        counts = {
            "tried": findings.tried,
            "read": findings.read,
            "refused": findings.refused,
            "found": dict(findings.counts),
            "slowest": findings.slowest,
            "seconds": round(time.monotonic() - began),
            "seed": chosen.seed,
        }
        print(f"{name}: {counts}", flush=True)
        if chosen.out is not None:
            known = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
            chosen.out.write_text(json.dumps({**known, name: counts}, indent=1) + "\n")
    sys.exit(int(has_found))


if __name__ == "__main__":
    main()
