"""How fast log-probabilities of given answers are, against lm-evaluation-harness's own transformers path.

    pip install 'tunesmith[lm-eval]'
    python benchmarks/score.py                            # SmolLM2-135M, four shapes of question, fp32
    python benchmarks/score.py --questions 8 --rounds 1   # a quick look

Both score the same token ids with the same model object in one process, in turn. Theirs is ``HFLM._loglikelihood_tokens``,
its cache of shared contexts on, once with the batch size that it has when nobody names one (1) and once with the best of 1, 16
and 64, found on a first pass; ours is ``infer/score.py``, which has no such knob.

Before any time is taken the numbers of the first 40 answers must agree to 1e-4 nats an answer and in every ``is_greedy``; else
nothing is printed but that. They are compared with the harness's log-softmax in fp64 (its option ``softmax_dtype``): in fp32,
its default and what is raced, ATen adds up the vocabulary in long chains, 1e-5 nats off a token, which makes 7e-4 over an
answer of 70. That difference stands in the last column.

The questions are multiple choice over the addresses of ``recipes/us_addresses``, four answers each, in the shapes that
suites have:

* ``words``: one line of context, answers of a few tokens (ARC, SciQ);
* ``endings``: one line of context, answers of some forty tokens (HellaSwag);
* ``five_shot``: ``words`` behind five demonstrations that all questions share;
* ``letters``: the same with the four answers in the context and a letter to say (MMLU). All four continuations are one token,
  for which the harness runs a context once, too.

Figures are ratios within a round, their median and range. A table goes to stdout, all figures to
``benchmarks/results/score-DATE.json`` (or ``--out``).
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from data import machine
from tunesmith.checkpoints.resolve import find_model
from tunesmith.engines.score import Scorer
from tunesmith.models.load import load_model, load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "assets" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = ROOT / "recipes" / "us_addresses" / "us_addresses.jsonl"
SHAPES = ("words", "endings", "five_shot", "letters")
DEFAULT = 1  # batch size of the harness where nobody names one
BATCH_SIZES = (DEFAULT, 16, 64)
TOLERANCE = 1e-4  # nats an answer
COMPARED = 40  # answers

Pair = tuple[list[int], list[int]]
Result = tuple[float, bool]


def texts(shape: str, questions: int, rows: list[dict[str, Any]], seed: int = 0) -> list[tuple[str, str]]:
    """(context, continuation) of every answer, four a question, the right one first."""
    random.Random(seed).shuffle(rows)
    asked = [(row["messages"][-2]["content"], row["messages"][-1]["content"]) for row in rows]

    def said(reply: str) -> str:
        return " " + (reply if shape == "endings" else " ".join(str(value) for value in list(json.loads(reply).values())[:2]))

    def question(number: int) -> tuple[str, list[str]]:
        four = asked[4 * number : 4 * number + 4]
        answers = [said(reply) for _, reply in four]
        if shape != "letters":
            return f"Address: {four[0][0]}\nParts:", answers
        letters = [f" {letter}" for letter in "ABCD"]
        listed = "".join(f"{letter[1:]}.{answer}\n" for letter, answer in zip(letters, answers, strict=True))
        return f"Address: {four[0][0]}\n{listed}Parts:", letters

    shots = "".join(context + answers[0] + "\n\n" for context, answers in map(question, range(5)))
    found = []
    for context, answers in map(question, range(5, 5 + questions)):
        found += [((shots if shape in ("five_shot", "letters") else "") + context, answer) for answer in answers]
    return found


def encode(tokenizer: Any, items: list[tuple[str, str]]) -> list[Pair]:
    """Token ids of context and continuation, each by itself."""
    return [(tokenizer(a).input_ids, tokenizer(b).input_ids) for a, b in items]


def harness(
    model: Any, tokenizer: Any, batch_size: int, softmax: torch.dtype | None = None
) -> Callable[[list[Pair]], list[Result]]:
    """Scores pairs by lm-evaluation-harness."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu", softmax_dtype=softmax)
    return lambda pairs: lm._loglikelihood_tokens(
        [((str(number), ""), *pair) for number, pair in enumerate(pairs)], disable_tqdm=True
    )


def ours(model: Any) -> Callable[[list[Pair]], list[Result]]:
    """Scores pairs by ``engines/score.py``."""
    scorer = Scorer(model)
    return lambda pairs: [(scored.logprob, scored.greedy) for scored in scorer.continuation_logprobs(pairs)]


def disagreement(first: list[Result], second: list[Result]) -> str:
    """What differs between two lists of results, nothing where they agree."""
    off = max(abs(a[0] - b[0]) for a, b in zip(first, second, strict=True))
    flags = sum(a[1] != b[1] for a, b in zip(first, second, strict=True))
    return f"{off:.1e} nats and {flags} greedy flags" if off > TOLERANCE or flags else ""


def seconds(score: Callable[[list[Pair]], list[Result]], pairs: list[Pair]) -> tuple[float, list[Result]]:
    """Wall time, and what was found."""
    started = time.perf_counter()
    found = score(pairs)
    return time.perf_counter() - started, found


def race(model: Any, tokenizer: Any, pairs: list[Pair], rounds: int) -> dict[str, Any]:
    """Both in turn; raises SystemExit where they do not agree."""
    few = pairs[:COMPARED]
    if told := disagreement(ours(model)(few), harness(model, tokenizer, 4, torch.float64)(few)):
        raise SystemExit(f"the two do not agree: {told}")
    tried = {size: harness(model, tokenizer, size) for size in BATCH_SIZES}
    times = {size: seconds(score, pairs) for size, score in tried.items()}
    best = min(times, key=lambda size: times[size][0])
    record: dict[str, Any] = {"batch_size": best, "answers": len(pairs), "tokens": sum(len(a) + len(b) for a, b in pairs)}
    record |= {"default": [], "best": [], "ours": [], "largest_difference": 0.0}
    for _ in range(rounds):
        mine, found = seconds(ours(model), pairs)
        record["ours"].append(mine)
        for name, size in (("default", DEFAULT), ("best", best)):
            yours, expected = seconds(tried[size], pairs)
            record[name].append(yours)
            off = max(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True))
            record["largest_difference"] = max(record["largest_difference"], off)
    return record | {f"over_{name}": _ratios(record[name], record["ours"]) for name in ("default", "best")}


def _ratios(theirs: list[float], ours: list[float]) -> dict[str, float]:
    found = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


def main() -> None:
    """Parse, race, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / f"score-{date.today()}.json")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])  # ours takes a process a core
    torch.set_num_threads(given.threads)
    directory = find_model(given.model)
    model, tokenizer = load_model(directory, "fp32"), load_tokenizer(directory)
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    records = {}
    print(
        f"{'shape':10} {'answers':>7} {'tokens':>7} {'ours s':>7}  {'over default (1)':19} {'over best':19} batch  difference"
    )
    for shape in SHAPES:
        record = race(model, tokenizer, encode(tokenizer, texts(shape, given.questions, list(rows))), given.rounds)
        records[shape] = record
        over = [record[name] for name in ("over_default", "over_best")]
        told = " ".join(f"{x['median']:5.2f} ({x['low']:.2f} - {x['high']:.2f})".ljust(19) for x in over)
        print(
            f"{shape:10} {record['answers']:7} {record['tokens']:7} {statistics.median(record['ours']):7.2f}  {told} "
            f"{record['batch_size']:5}  {record['largest_difference']:.1e} nats",
            flush=True,
        )
    figures = {"machine": machine(), "model": given.model, "threads": given.threads, "records": records}
    given.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(given.out, file=sys.stderr)


if __name__ == "__main__":
    main()
