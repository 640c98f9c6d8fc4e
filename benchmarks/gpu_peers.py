"""A QLoRA step on a GPU against Unsloth's and TRL's (with PEFT and bitsandbytes), on the same 8B model, in turns.

    python benchmarks/peers/wheels.py gather peers.tar.xz --python 3.12 --cuda 130  # where the package index is: 60 MB
    python benchmarks/gpu_peers.py --packages peers.tar.xz                          # on the card, nine minutes
    python benchmarks/gpu_peers.py --dry-run --out FILE                             # without one

Random weights of an 8B shape are written once (``peers/random_model.py``: 16 GB). Every contestant quantises them to NF4
with double quantisation, starts from one adapter's bytes (r 16 on all linear layers, its B not zero) and trains on the same
token ids: documents of log-normal lengths that fill packs exactly. Every contestant is a process of its own that does a step
when told to (``peers/protocol.py``), A B A B. There are two heats, since two settings of three contestants do not fit a card at
once: ``fast`` (nothing recomputed; the peers pack) and ``lean`` (layers recomputed; the peers as their defaults say).

**Equal loss first.** The first step's loss may differ from ours by 1e-3, relative; which of the peers differs more computes
something else and is not timed, and the exit status is 1. The second step is on the same rows, so that the fall of the loss
by one update stands beside it: a gradient that differs shows there.

What is reported for every round: tokens a second (those of the rows; padding is no progress) and the peak of allocated and of
reserved memory; median, smallest and largest; ratios within a round. The file is written after every heat. What we expect of
ours (``tunesmith.memory.speed``) is written into it first.

``--dry-run`` goes through all of it with a small model: ours on the device of the tests that is not there, and on the CPU
as the reference for the peers' losses; the peers on the CPU. Its times mean nothing. Who cannot start is skipped, by reason.
"""

import argparse
import contextlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu import NO_CUDA, machine
from gpu_shapes import SHAPES, SMALL_SHAPE
from train_step import Arm, Refused, per_round, python_of, spread

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
sys.path += [str(PEERS), str(ROOT / "src")]  # nothing of ours need be installed

import wheels  # noqa: E402

HEATS = ("fast", "lean")
CONTESTANTS = ("ours", "unsloth", "trl")
TOLERANCE = 1e-3  # relative difference of the first step's loss
SAME_ROWS = 2  # steps on the first rows, before the rounds
STEPS = 3  # of a contestant in a round
SUPERVISED, MEAN, SPREAD = 0.14, 256, 0.7  # share of a document at its end; tokens of a document, and of their logarithm
LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
LOADING = 0.7  # of a heat's time: who is not ready by then is skipped
MARGIN = 20.0  # seconds before the end of a heat at which no round is begun

Figures = dict[str, Any]


class Sizes:
    """How large everything is: as raced, or for a dry run."""

    def __init__(self, given: argparse.Namespace):
        self.shape = SMALL_SHAPE if given.dry_run else SHAPES["8B"]
        self.pack_tokens, self.packs, self.rounds = (
            (1024, 2, 1) if given.dry_run else (given.pack_tokens, given.packs, given.rounds)
        )


def documents(sizes: Sizes, steps: int) -> Figures:
    """Rows, the rows of each step, and its packs, which they fill exactly; the first two steps are the same."""
    rng = random.Random(0)
    many = max(2, sizes.pack_tokens // MEAN)
    rows, by_step = [], []
    for _ in range(steps - 1):
        packs = []
        for _ in range(sizes.packs):
            drawn = [math.exp(rng.gauss(0, SPREAD)) for _ in range(many)]
            lengths = [max(16, int(length / sum(drawn) * sizes.pack_tokens)) for length in drawn]
            lengths[lengths.index(max(lengths))] += sizes.pack_tokens - sum(lengths)
            packs.append(list(range(len(rows), len(rows) + many)))
            for length in lengths:
                answer = max(1, round(length * SUPERVISED))
                ids = [rng.randrange(3, sizes.shape["vocab_size"]) for _ in range(length)]
                rows.append({"ids": ids, "supervised": [0] * (length - answer) + [1] * answer})
        by_step.append(packs)
    by_step = by_step[:1] + by_step
    return {"rows": rows, "packs": by_step, "steps": [[row for pack in packs for row in pack] for packs in by_step]}


def prepare(folder: Path, sizes: Sizes, packages: Path | None, dry: bool) -> Path:
    """Model, adapter and rows; returns the job's file.

    Raises:
        Refused: the model could not be written.
    """
    job = documents(sizes, SAME_ROWS + sizes.rounds * STEPS)
    job |= {
        "model": str(folder / "made" / "model"),
        "adapter": str(folder / "made" / "adapter"),
        "lora": LORA,
        "template": None,
    }
    job |= {"pack_tokens": sizes.pack_tokens, "learning_rate": 2e-4, "max_grad_norm": 1.0, "evaluate": [0]}
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    command = [sys.executable, str(PEERS / "random_model.py"), str(folder / "made"), "cpu" if dry else "cuda"]
    done = subprocess.run(
        command,
        input=json.dumps({"shape": sizes.shape, "lora": LORA}),
        env={**os.environ, **variables("ours", packages)},
        text=True,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise Refused(f"the random model could not be written:\n{done.stderr[-2000:]}")
    return file


def variables(contestant: str, packages: Path | None) -> dict[str, str]:
    """A contestant's environment; ours are TRL's packages and our source."""
    peer = "trl" if contestant == "ours" else contestant
    paths = [wheels.environment(packages, peer)["PYTHONPATH"]] if packages else []
    if contestant == "ours":
        paths = [str(ROOT / "src"), *paths, os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def command_of(arm: str, job: Path, packages: Path | None, threads: int) -> list[str]:
    """How the process of an arm is started.

    Raises:
        Refused: a peer has neither packages nor an environment.
    """
    contestant = arm.partition("_")[0]
    if contestant == "ours":
        return [sys.executable, str(PEERS / "tunesmith_step.py"), "step", str(job), arm, str(threads)]
    python = Path(sys.executable) if packages else python_of(contestant)
    if not python.exists():
        raise Refused(
            f"no packages: neither --packages nor {python.parents[1].name} (sh benchmarks/peers/setup.sh {contestant})"
        )
    return [str(python), str(PEERS / f"{contestant}_gpu_step.py"), str(job), arm, str(threads)]


def arms_of(heat: str, contestants: list[str], dry: bool) -> list[str]:
    """Ours first: it is the reference. In a dry run it is on the CPU, and beside it the device that is not there."""
    ours = ["ours_cpu", "ours_fake"] if dry else [f"ours_gpu_{heat}"]
    return [*ours, *(f"{name}_gpu_{heat}" for name in contestants if name != "ours")]


class Deadline:
    """When something has to be over."""

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def part(self, share: float) -> "Deadline":
        """Of what is left."""
        return Deadline(share * self.left())

    @contextlib.contextmanager
    def ends(self, arms: list[Arm], but: list[Arm]) -> Iterator[None]:
        """A block at whose deadline these are ended, ``but`` those that are in that list by then."""
        timer = threading.Timer(max(0.0, self.left()), lambda: [arm.kill() for arm in arms if arm not in but])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def start(names: list[str], job: Path, packages: Path | None, folder: Path, deadline: Deadline) -> tuple[list[Arm], Figures]:
    """The processes that come to be ready, all loading at once; and why the others do not."""
    begun, skipped = list[Arm](), Figures()
    threads = len(os.sched_getaffinity(0))
    for name in names:
        log = folder / f"{name}.log"
        try:
            command = command_of(name, job, packages, threads)
        except Refused as refusal:
            skipped[name] = str(refusal)
            continue
        begun.append(Arm(name, command, threads, log, variables(name.partition("_")[0], packages), wait=False))
    ready = list[Arm]()
    with deadline.part(LOADING).ends(begun, ready):
        for arm in begun:
            try:
                arm.wait()
                ready.append(arm)
            except Refused as refusal:
                skipped[arm.name] = str(refusal)[-1500:]
    return ready, skipped


def first_steps(arms: list[Arm], skipped: Figures) -> tuple[list[Arm], Figures]:
    """The steps on the same rows; those of the same loss as the first arm, and what each lost and gained."""
    found: Figures = {}
    agreed: list[Arm] = []
    for arm in arms:
        try:
            arm.steps += [arm.ask("step") for _ in range(SAME_ROWS)]
        except Refused as refusal:
            skipped[arm.name] = str(refusal)[-1500:]
            arm.stop()
            continue
        losses = [step["loss"] for step in arm.steps]
        found[arm.name] = {"loss": losses[0], "fall": losses[0] - losses[1]}
        if arm.name == "ours_fake":  # it computes nothing
            agreed.append(arm)
            continue
        reference = found[next(name for name in found if name != "ours_fake")]["loss"]
        difference = abs(losses[0] / reference - 1)
        found[arm.name]["difference"] = difference
        # not "larger than": a loss that is no number is larger than nothing
        if difference <= TOLERANCE:
            agreed.append(arm)
        else:
            skipped[arm.name] = f"not timed: its first loss is {losses[0]:.6f}, ours {reference:.6f}: off by {difference:.1e}"
            arm.stop()
    return agreed, found


def race(arms: list[Arm], rounds: int, deadline: Deadline) -> int:
    """Rounds of A B A B while there is time; returns how many were whole, and leaves no others.

    Raises:
        Refused: one ended before the first was.
    """
    for turn in range(rounds):
        if turn and deadline.left() < MARGIN:
            return turn
        try:
            for arm in arms:
                arm.steps += [arm.ask("step") for _ in range(STEPS)]
        except Refused:
            if not turn:
                raise
            for arm in arms:
                del arm.steps[SAME_ROWS + turn * STEPS :]
            return turn
    return rounds


def summarise(arms: list[Arm], rounds: int) -> Figures:
    """Speed and memory of each arm, and ours over each."""
    found: Figures = {"rounds": rounds, "arms": {}, "ratios": {}}
    for arm in arms:
        arm.steps = arm.steps[SAME_ROWS - 1 :]  # as in train_step.py, one step is the warm-up
        seconds, tokens = per_round(arm, "seconds", rounds, STEPS), per_round(arm, "tokens", rounds, STEPS)
        figures = {"tokens_per_second": spread([t / s for t, s in zip(tokens, seconds, strict=True)])}
        timed = arm.steps[1:]
        for name in ("allocated_bytes", "reserved_bytes"):
            if name in timed[0]:
                figures[name] = spread([max(s[name] for s in timed[n * STEPS : (n + 1) * STEPS]) for n in range(rounds)])
        found["arms"][arm.name] = {**figures, "losses": [step["loss"] for step in arm.steps]}
    ours = arms[0]
    for arm in arms[1:]:
        pairs = zip(per_round(arm, "seconds", rounds, STEPS), per_round(ours, "seconds", rounds, STEPS), strict=True)
        ratio: Figures = {"speed": spread([theirs / own for theirs, own in pairs])}
        own, theirs = found["arms"][ours.name], found["arms"][arm.name]
        ratio |= {
            name: theirs[name]["median"] / own[name]["median"]
            for name in ("allocated_bytes", "reserved_bytes")
            if name in own and name in theirs
        }
        found["ratios"][f"{arm.name} over {ours.name}"] = ratio
    return found


def run_heat(names: list[str], job: Path, packages: Path | None, folder: Path, rounds: int, deadline: Deadline) -> Figures:
    """One heat, whatever becomes of its contestants."""
    arms, skipped = start(names, job, packages, folder, deadline)
    found: Figures = {"skipped": skipped}
    try:
        with deadline.ends(arms, []):
            agreed, found["first_steps"] = first_steps(arms, skipped)
            if agreed:
                found |= summarise(agreed, race(agreed, rounds, deadline))
    except Refused as refusal:
        found["failed"] = str(refusal)[-1500:]
    finally:
        for arm in arms:
            arm.stop()
    return found


def lines(heat: str, found: Figures) -> str:
    """What is printed of a heat."""
    out = [f"--- {heat}"]
    for name, figures in found.get("arms", {}).items():
        speed, first = figures["tokens_per_second"], found["first_steps"][name]
        memory = "  ".join(
            f"{kind.partition('_')[0]} {figures[kind]['median'] / 1e9:.2f} GB"
            for kind in ("allocated_bytes", "reserved_bytes")
            if kind in figures
        )
        span = f"({speed['min']:,.0f}-{speed['max']:,.0f})"
        loss = f"loss {first['loss']:.5f}, falls by {first['fall']:.5f}"
        out.append(f"{name:<18}{speed['median']:>10,.0f} tokens/s {span:<18} {memory}  {loss}")
    for name, ratio in found.get("ratios", {}).items():
        speed = ratio["speed"]
        memory = "".join(
            f", {kind.partition('_')[0]} {ratio[kind]:.2f}" for kind in ("allocated_bytes", "reserved_bytes") if kind in ratio
        )
        out.append(f"{name}: time {speed['median']:.2f} ({speed['min']:.2f}-{speed['max']:.2f}){memory}")
    out += [f"{name}: {reason}" for name, reason in found["skipped"].items()]
    return "\n".join([*out, *([f"FAILED: {found['failed']}"] if "failed" in found else [])])


def expected(sizes: Sizes, where: Figures) -> Figures | None:
    """What is foretold of ours on this card; None for a card that is not in the file."""
    from tunesmith.memory.cards import find_card
    from tunesmith.memory.shape import Shape, shape_of
    from tunesmith.memory.speed import Recompute, step_time
    from tunesmith.memory.speed import Sizes as Widths

    card = find_card(where["cards"][0]["name"]) if where["cards"] else None
    if card is None:
        return None
    shape = shape_of(sizes.shape)
    assert isinstance(shape, Shape)
    widths = Widths.of(shape)
    ways: dict[str, Recompute] = {"fast": "none", "lean": "layer"}
    supervised = round(sizes.pack_tokens * SUPERVISED)
    foretold = {
        heat: step_time(widths, sizes.pack_tokens, supervised, card, way, packs=sizes.packs) for heat, way in ways.items()
    }
    return {
        heat: {"tokens_per_second": time.tokens_per_second, "share": time.share, **vars(time)}
        for heat, time in foretold.items()
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Race a QLoRA step on a GPU against Unsloth and TRL.")
    parser.add_argument(
        "--packages", type=Path, help="what peers/wheels.py gathered: the archive, or the folder it was unpacked to"
    )
    parser.add_argument("--only", default=",".join(CONTESTANTS), help="comma-separated contestants")
    parser.add_argument("--heats", default=",".join(HEATS), help="comma-separated")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which everything ends, finished or not")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pack-tokens", type=int, default=2048)
    parser.add_argument("--packs", type=int, default=4, help="of a step")
    parser.add_argument("--folder", type=Path, help="where 16 GB of weights may lie (a temporary folder)")
    parser.add_argument("--out", type=Path, help="JSON file (benchmarks/results/gpu-peers-DATE.json)")
    parser.add_argument("--dry-run", action="store_true", help="without a card, to see that it runs to its end")
    given = parser.parse_args(arguments)
    for name, known in (("only", CONTESTANTS), ("heats", HEATS)):
        setattr(given, name, getattr(given, name).split(","))
        if unknown := sorted(set(getattr(given, name)) - set(known)):
            parser.error(f"--{name}: unknown: {', '.join(unknown)}; expected {', '.join(known)}")
    if "ours" not in given.only:
        parser.error("--only: ours has to be among them: it is what losses and times are compared with")
    if given.packages and not given.packages.exists():
        parser.error(f"{given.packages}: not there; see: python benchmarks/peers/wheels.py gather --help")
    if given.dry_run and not given.out:
        parser.error("a dry run needs --out: its figures say nothing and have no place among the results")
    return given


def benchmark(given: argparse.Namespace, folder: Path, target: Path) -> Figures:
    """Prepare, race the heats, write after each."""
    deadline, sizes, packages = Deadline(60 * given.minutes), Sizes(given), given.packages
    if packages is not None and packages.is_file():
        wheels.unpack(packages, folder / "packages")
        packages = folder / "packages"
    where = machine()
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    results: Figures = {**where, "dry_run": given.dry_run, "asked": asked, "expected": expected(sizes, where), "heats": {}}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n")
    job = prepare(folder, sizes, packages, given.dry_run)
    for number, heat in enumerate(given.heats):
        names = arms_of(heat, given.only, given.dry_run)
        own = deadline.part(1 / (len(given.heats) - number))
        results["heats"][heat] = run_heat(names, job, packages, folder, sizes.rounds, own)
        target.write_text(json.dumps(results, indent=2) + "\n")
        print(lines(heat, results["heats"][heat]), flush=True)
    return results


def succeeded(results: Figures, given: argparse.Namespace) -> bool:
    """Whether ours ran in every heat; and on a card, whether every peer did."""
    heats = results["heats"].values()
    ours = all(any(name.startswith("ours") for name in heat.get("arms", {})) and "failed" not in heat for heat in heats)
    skipped = [name for heat in heats for name in heat["skipped"] if not given.dry_run or name.startswith("ours")]
    return ours and not skipped


def main() -> None:
    """Race, print, write."""
    given = parse()
    import torch

    if not torch.cuda.is_available() and not given.dry_run:
        print(f"no CUDA device: torch {torch.__version__} sees none; --dry-run --out FILE needs none", file=sys.stderr)
        raise SystemExit(NO_CUDA)
    target = given.out or ROOT / "benchmarks" / "results" / f"gpu-peers-{machine()['date'][:10]}.json"
    if given.dry_run:
        print("(a dry run: no time means anything)", flush=True)
    with tempfile.TemporaryDirectory(prefix="tunesmith-race-", dir=given.folder) as folder:
        try:
            results = benchmark(given, Path(folder), target)
        except Refused as refusal:
            raise SystemExit(str(refusal)) from None
    print(f"written: {target}")
    raise SystemExit(0 if succeeded(results, given) else 1)


if __name__ == "__main__":
    main()
