"""How fast a LoRA step is against TRL's and Unsloth's, in real tokens a second, on the same rows from the same adapter.

    python benchmarks/train_step.py                                       # ours against TRL's default and best, SmolLM2-135M
    python benchmarks/train_step.py --arms trl_fp32,ours_fp32 --rounds 1  # a quick look
    python benchmarks/train_step.py --arms ours_bf16,ours_nf4             # what four bits cost
    python benchmarks/train_step.py --arms ours_nf4,ours_qat_Q4_0,ours_qat_Q4_K_M  # what training onto a grid costs
    python benchmarks/train_step.py --arms ours,ours_dropout              # what the default dropout costs
    python benchmarks/train_step.py --settle trl                          # every documented setting of a peer
    python benchmarks/train_step.py --prefix                              # ours with and without a shared prefix

Every arm is a process of its own, in its own environment, that does the next optimizer step when told to
(``peers/protocol.py``). They all live at once and compute one at a time, A B A B, so that whatever else the machine does
meets all of them; figures are ratios within a round, their median and range over rounds. A step is the same rows for
every arm (8 of ``train_data.py``'s chats), and each arranges them as it does best: padded batches, packs. Tokens are those
of the rows; padding is work, not progress.

A race between two that compute something else is no measurement: before it, every arm gives its loss on the same few rows,
and where it differs (1e-5 relative between fp32 arms, 1e-2 with bf16) nothing is printed but that. The largest
difference of a step's loss during the race stands beside each arm.

Memory is the process's high-water mark from after loading. The floor is ``floor.py``'s. Peers' environments are made by
``peers/setup.sh``. With ``--prefix`` the floor is still that of the rows apart, so sharing may pass it. A table goes to
stdout, all figures to ``benchmarks/results/train-step-DATE.json`` (or ``--out``).
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from floor import step_flops
from train_data import chats, quantiles, shared_prefix_chats, write_rows

from data import machine

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
MODEL = "assets/SmolLM2-135M-Instruct.Q4_1.gguf"
ARMS = "trl_fp32,trl_best,unsloth_fp32,unsloth_best,ours_fp32,ours"
PEER_ARMS = {
    "trl": "trl_fp32,trl_default,trl_autocast,trl_bf16,trl_fp32_packing,trl_bf16_packing,trl_bf16_packing4,trl_bf16_packing8",
    "unsloth": "unsloth_fp32,unsloth_default,unsloth_fp32_single,unsloth_autocast,unsloth_bf16,unsloth_bf16_single",
}
PREFIX_ARMS = "ours_unshared,ours"
TOLERANCE_FP32, TOLERANCE_BF16 = 1e-5, 1e-2  # relative difference of the mean loss
TOLERANCE_NF4 = 0.3  # other weights, by 9 %, or those of a grid: a guard against nonsense, no more
SETTINGS = {"learning_rate": 2e-4, "max_grad_norm": 1.0}
WARM_UP = 1  # steps of each arm before the rounds
PAUSE = 0.3  # seconds between two arms, for OpenMP's threads to fall asleep

Figures = dict[str, Any]


class Refused(Exception):
    """The arms do not compute the same thing, or one of them died."""


class Arm:
    """A training process, told what to do a word at a time."""

    def __init__(
        self,
        name: str,
        command: list[str],
        threads: int,
        log: Path,
        variables: dict[str, str] | None = None,
        wait: bool = True,
    ):
        self.name, self._log, self.steps = name, log, list[Figures]()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        environment |= variables or {}
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it is ready for commands.

        Raises:
            Refused: it ended before.
        """
        try:
            self.ready = self._read()
        except Refused:
            self.stop()
            raise

    def ask(self, word: str) -> Figures:
        """Send a command and wait for its answer.

        Raises:
            Refused: the process ended, or answered no JSON; the end of its stderr is in the message.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise Refused(self._last_words()) from error
        return self._read()

    def kill(self) -> None:
        """End the process from another thread: who waits for an answer is refused one."""
        self._process.kill()

    def stop(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # a command that nobody was there to read
                pipe.close()

    def _read(self) -> Figures:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            return json.loads(line)
        except json.JSONDecodeError as error:
            raise Refused(f"{self._last_words()} (answered {line!r})") from error

    def _last_words(self) -> str:
        return f"{self.name}: the process ended or spoke out of turn:\n{self._log.read_text()[-2000:]}"


def is_fp32(arm: str) -> bool:
    """Whether an arm is held to the narrow tolerance."""
    return "fp32" in arm


def peer_of(arm: str) -> str | None:
    """Whose arm it is; None for ours."""
    peer = arm.partition("_")[0]
    return None if peer == "ours" else peer


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return PEERS / f".venv-{peer}" / "bin" / "python"


def command_of(arm: str, job: Path, given: argparse.Namespace) -> list[str]:
    """How the process of an arm is started."""
    peer = peer_of(arm)
    python, script = (sys.executable, "tunesmith_step.py") if peer is None else (str(python_of(peer)), f"{peer}_step.py")
    return [python, str(PEERS / script), *(["step"] if peer is None else []), str(job), arm, str(given.threads)]


def prepare(folder: Path, given: argparse.Namespace) -> tuple[Path, Figures]:
    """Rows, rendered once for all arms, and which of them each step takes; returns the job's file and its facts."""
    from tunesmith.checkpoints.resolve import find_model

    made = shared_prefix_chats(given.chats) if given.prefix else chats(given.chats)
    digest = write_rows(folder / "rows.jsonl", made)
    job = folder / "job.json"
    model = find_model(given.model) if given.model.endswith(".gguf") else Path(given.model).resolve()
    command = [sys.executable, str(PEERS / "tunesmith_step.py"), "prepare", str(job), str(folder / "rows.jsonl"), str(model)]
    command += [str(given.template.resolve())] if given.template else []
    facts = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    order = list(range(given.chats))
    random.Random(0).shuffle(order)
    needed = WARM_UP + given.rounds * given.steps
    if needed * given.rows > len(order):
        raise Refused(f"{needed} steps of {given.rows} rows need --chats {needed * given.rows}")
    steps = [order[n * given.rows : (n + 1) * given.rows] for n in range(needed)]
    complete = {
        **json.loads(job.read_text()),
        **SETTINGS,
        "steps": steps,
        "evaluate": sorted(range(given.chats), key=lambda row: facts["lengths"][row])[given.chats // 3 :][:4],
        "pack_tokens": given.pack_tokens,
    }
    job.write_text(json.dumps(complete))
    rows = {"rows": len(made), "sha256": digest, "tokens": quantiles(facts["lengths"])}
    share = facts["supervised"] / sum(facts["lengths"])
    return job, {**facts["facts"], **rows, "supervised_share": share, "lengths": facts["lengths"], "steps": steps}


def check_agreement(losses: dict[str, float]) -> dict[str, float]:
    """Relative differences of the arms' first losses from the reference: the first fp32 arm, or the first.

    Raises:
        Refused: one is too large.
    """
    reference = next((arm for arm in losses if is_fp32(arm)), next(iter(losses)))
    differences = {arm: abs(loss / losses[reference] - 1) for arm, loss in losses.items()}
    limits = {arm: TOLERANCE_FP32 if is_fp32(arm) and is_fp32(reference) else TOLERANCE_BF16 for arm in losses}
    limits |= {arm: TOLERANCE_NF4 for arm in losses if "nf4" in arm or "qat" in arm}
    # not "larger than": a loss that is no number is larger than nothing
    wrong = [arm for arm in losses if not differences[arm] <= limits[arm]]
    if wrong:
        said = "; ".join(f"{arm} {losses[arm]:.7f}, off by {differences[arm]:.1e} (at most {limits[arm]:g})" for arm in wrong)
        raise Refused(f"no ratios: on the same rows {reference} has loss {losses[reference]:.7f}, but {said}")
    return differences


def race(arms: list[Arm], rounds: int, steps: int) -> None:
    """Warm up, then rounds of A B A B; the figures of all steps are kept by the arms."""
    for turn in range(rounds + 1):
        for arm in arms:
            time.sleep(PAUSE)
            arm.steps += [arm.ask("step") for _ in range(steps if turn else WARM_UP)]
        last = "  ".join(f"{arm.name} {arm.steps[-1]['seconds']:.1f} s" for arm in arms)
        print(f"{f'round {turn}' if turn else 'warm-up'}: {last}", file=sys.stderr)


def per_round(arm: Arm, figure: str, rounds: int, steps: int) -> list[float]:
    """Sum of a figure over the steps of each round, warm-up left out."""
    values = [step[figure] for step in arm.steps[WARM_UP:]]
    return [sum(values[n * steps : (n + 1) * steps]) for n in range(rounds)]


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest, largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(arms: list[Arm], rounds: int, steps: int, facts: Figures, rates: dict[str, float]) -> dict[str, Figures]:
    """For each arm: speed, share of its floor, peak memory, and how far its losses strayed from the reference arm's."""
    reference = next((arm for arm in arms if is_fp32(arm.name)), arms[0])
    rows = [row for step in facts["steps"][WARM_UP : WARM_UP + rounds * steps] for row in step]
    lengths = [facts["lengths"][row] for row in rows]
    supervised = sum(step["supervised"] for step in reference.steps[WARM_UP:])
    flops = step_flops(facts, lengths, supervised)
    found = {}
    for arm in arms:
        seconds, tokens = per_round(arm, "seconds", rounds, steps), per_round(arm, "tokens", rounds, steps)
        assert sum(tokens) == sum(lengths), f"{arm.name} counts {sum(tokens)} tokens of {sum(lengths)}"
        floor = sum(flops.values()) / rates["fp32" if is_fp32(arm.name) else "bf16"]
        strayed = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(arm.steps, reference.steps, strict=True)]
        found[arm.name] = {
            "tokens_per_second": spread([t / s for t, s in zip(tokens, seconds, strict=True)]),
            "tokens_per_cpu_second": sum(tokens) / sum(per_round(arm, "cpu_seconds", rounds, steps)),
            "share_of_floor": floor / sum(seconds),
            "peak_bytes": arm.steps[-1]["peak_bytes"],
            "worst_step_loss_difference": max(strayed),
            "steps": arm.steps,
        }
    return found


def ratios(arms: list[Arm], rounds: int, steps: int) -> dict[str, Figures]:
    """Each arm that is not a baseline over each baseline (the peers' arms, or the first): time, processor time and memory."""
    baselines = [arm for arm in arms if peer_of(arm.name) is not None] or arms[:1]
    found = {}
    for base in baselines:
        for arm in arms:
            if arm in baselines and not (base is arms[0] and arm is not base):
                continue
            figures: Figures = {"memory": arm.steps[-1]["peak_bytes"] / base.steps[-1]["peak_bytes"]}
            for name, figure in (("wall", "seconds"), ("cpu", "cpu_seconds")):
                pairs = zip(per_round(base, figure, rounds, steps), per_round(arm, figure, rounds, steps), strict=True)
                figures[name] = spread([a / b for a, b in pairs])
            found[f"{arm.name} over {base.name}"] = figures
    return found


def table(summary: dict[str, Figures], compared: dict[str, Figures]) -> str:
    """What is printed: a row an arm, then a row a comparison."""
    lines = [f"{'arm':<20}{'tokens/s':>10}{'(range)':>18}{'tokens/CPU-s':>14}{'of floor':>10}{'peak GB':>9}{'loss off by':>13}"]
    for name, f in summary.items():
        speed = f["tokens_per_second"]
        span = f"({speed['min']:.1f}-{speed['max']:.1f})"
        figures = f"{speed['median']:>10.1f}{span:>18}{f['tokens_per_cpu_second']:>14.1f}{f['share_of_floor']:>9.0%} "
        lines.append(f"{name:<20}{figures}{f['peak_bytes'] / 1e9:>9.2f}{f['worst_step_loss_difference']:>13.1e}")
    lines += ["", f"{'ratio':<38}{'wall':>7}{'(range)':>16}{'CPU':>7}{'(range)':>16}{'memory':>9}"]
    for name, f in compared.items():
        times = "".join(
            f"{f[kind]['median']:>7.2f}{'({:.2f}-{:.2f})'.format(f[kind]['min'], f[kind]['max']):>16}"
            for kind in ("wall", "cpu")
        )
        lines.append(f"{name:<38}{times}{f['memory']:>9.2f}")
    return "\n".join(lines)


def measure_rates(facts: Figures, given: argparse.Namespace) -> dict[str, float]:
    """The machine's rates at the step's shapes, in a process of their own."""
    shapes = json.dumps({"linears": facts["linears"]})
    command = [sys.executable, str(ROOT / "benchmarks" / "floor.py"), str(given.pack_tokens), str(given.threads)]
    done = subprocess.run(command, input=shapes, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def benchmark(folder: Path, given: argparse.Namespace) -> Figures:
    """Prepare, check, race, sum up."""
    names = given.arms.split(",")
    job, facts = prepare(folder, given)
    tokens, share = facts["tokens"], facts["supervised_share"]
    print(f"{facts['rows']} chats, tokens {tokens}, {share:.1%} supervised; {len(facts['steps'])} steps of {given.rows} rows")
    rates = measure_rates(facts, given)
    print(f"measured products: fp32 {rates['fp32'] / 1e9:.0f}, bf16 {rates['bf16'] / 1e9:.0f} GFLOP/s, {given.threads} threads")
    arms: list[Arm] = []
    try:
        for name in names:
            arms.append(Arm(name, command_of(name, job, given), given.threads, folder / f"{name}.log"))
            if otherwise := arms[-1].ready.get("rows_tokenised_otherwise"):
                print(f"{name}: its own tokenisation differs for {otherwise} rows; all arms are given ours")
        losses = {arm.name: arm.ask("evaluate")["loss"] for arm in arms}
        differences = check_agreement(losses)
        print("same loss on the same rows: " + ", ".join(f"{arm} {losses[arm]:.6f}" for arm in names))
        race(arms, given.rounds, given.steps)
    finally:
        for arm in arms:
            arm.stop()
    summary = summarise(arms, given.rounds, given.steps, facts, rates)
    compared = ratios(arms, given.rounds, given.steps)
    print(table(summary, compared))
    kept = {name: value for name, value in facts.items() if name not in ("lengths", "linears", "windows", "steps")}
    agreement = {arm: {"loss": losses[arm], "difference": differences[arm]} for arm in losses}
    return {"data": kept, "flop_per_second": rates, "agreement": agreement, "arms": summary, "ratios": compared}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure training steps against those of peers, interleaved.")
    parser.add_argument("--model", default=MODEL, help="a .gguf file, or the directory of a Hugging Face model")
    parser.add_argument("--template", type=Path, help="Jinja file, for a model without a chat template")
    parser.add_argument("--arms", help=f"comma-separated ({ARMS})")
    parser.add_argument("--settle", choices=PEER_ARMS, help="race every documented setting of a peer")
    parser.add_argument("--prefix", action="store_true", help="rows behind one long system turn, shared and not")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of an arm in a round")
    parser.add_argument("--rows", type=int, help="rows of a step (8; 24 with --prefix), a multiple of 4")
    parser.add_argument("--chats", type=int, default=1000, help="rows that the steps are drawn from")
    parser.add_argument("--pack-tokens", type=int, default=2048, help="tokens of our packs")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="JSON file (benchmarks/results/train-step-DATE.json)")
    given = parser.parse_args(arguments)
    given.arms = given.arms or (PREFIX_ARMS if given.prefix else PEER_ARMS[given.settle] if given.settle else ARMS)
    given.rows = given.rows or (24 if given.prefix else 8)
    if given.rows % 4:
        parser.error("--rows must be a multiple of 4: the peer's batches have 4 rows")
    for peer in sorted({peer for arm in given.arms.split(",") if (peer := peer_of(arm)) is not None}):
        if not python_of(peer).exists():
            parser.error(f"{python_of(peer)}: no such interpreter; run: sh benchmarks/peers/setup.sh {peer}")
    return given


def main() -> None:
    """Measure, print, write."""
    given = parse()
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as folder:
        try:
            results = benchmark(Path(folder), given)
        except Refused as refusal:
            raise SystemExit(str(refusal)) from None
    where = machine()
    kind = "train-prefix" if given.prefix else "train-settle" if given.settle else "train-step"
    target = given.out or ROOT / "benchmarks" / "results" / f"{kind}-{where['date'][:10]}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    asked |= {"model": Path(given.model).name, "out": None}
    target.write_text(json.dumps({**where, "asked": asked, **results}, indent=2) + "\n")
    print(f"written: {target}")


if __name__ == "__main__":
    main()
