"""Chats of mixed length made from real code, for the training benchmarks: the same rows on every run.

    python benchmarks/train_data.py                  # 1,000 chats as messages JSONL in a temporary file
    python benchmarks/train_data.py --shared-prefix  # short rows behind one long system turn

The material is the standard library of the running Python: its functions that carry a docstring, read with ``ast`` from
the source files in the order of their paths. Half of the chats ask for the docstring of a function, half for its
signature as JSON; both answers are in the file, so nothing is made up. Lengths follow a log-normal curve fitted to a
common mixed set (median 260 tokens, one in ten above 610, none above 2,000, answers 14 % of all tokens): a length is
drawn, and the unused function whose chat is nearest to it is taken. No tokenizer is needed for that, characters stand in
for tokens, so the generator has no dependency and no say in who wins.

Refused: random words. They tokenise worse than text (four tokens a word), their lengths are whatever one chooses, and a
loss on them never falls, so that two trainers could not be compared by it.

The rows change with the Python version; ``sha256`` of the file stands in every result that used it.
"""

import argparse
import ast
import hashlib
import json
import random
import statistics
import sys
import sysconfig
import tempfile
import textwrap
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

SEED = 0
CHATS = 1000
CHARS_PER_TOKEN = 3.45  # of these chats under SmolLM2's tokenizer; of the shared prefix 3.8
MEDIAN, SIGMA, LONGEST = 231, 0.78, 2040  # tokens of the contents, without what a chat template adds (about 35)
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "__pycache__", "ensurepip"}
PREFIX_CHARACTERS = 1900  # 500 tokens
DOCSTRING_ASK = "Write the docstring of this Python function.\n\n```python\n{code}\n```"
SIGNATURE_ASK = "Extract the signature of this Python function as JSON.\n\n```python\n{code}\n```"

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Function:
    """A function of the standard library.

    Attributes:
        module: dotted name of its module.
        code: its source without the docstring, dedented.
        docstring: cleaned.
        signature: JSON: name, parameters in order with defaults as source text, and whether it is asynchronous.
    """

    module: str
    code: str
    docstring: str
    signature: str


@cache
def functions(package: str = "") -> tuple[Function, ...]:
    """Documented functions of the standard library, or of one package in it, by path, then in the order of ``ast.walk``."""
    root = Path(sysconfig.get_paths()["stdlib"], package)
    found: list[Function] = []
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        parts = path.relative_to(root).with_suffix("").parts
        if not SKIPPED & set(parts):
            found += _functions_of(".".join(parts).removesuffix(".__init__"), path.read_text(encoding="utf-8"))
    return tuple(found)


def _functions_of(module: str, source: str) -> Iterator[Function]:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        docstring, first = ast.get_docstring(node), node.body[0]
        if not docstring or not docstring.isascii() or node.end_lineno is None or first.end_lineno is None:
            continue
        kept = lines[node.lineno - 1 : first.lineno - 1] + lines[first.end_lineno : node.end_lineno]
        code = textwrap.dedent("\n".join(kept)).strip()
        if code.isascii() and "<|" not in code + docstring:  # nothing that looks like a control token
            yield Function(module, code, docstring.strip(), _signature(node))


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    plain = [*node.args.posonlyargs, *node.args.args]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(node.args.defaults))
    pairs = [*zip(plain, [*missing, *node.args.defaults], strict=True)]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    parameters = [{"name": a.arg} | ({} if d is None else {"default": ast.unparse(d)}) for a, d in pairs]
    facts = {"name": node.name, "parameters": parameters, "async": isinstance(node, ast.AsyncFunctionDef)}
    return json.dumps(facts)


def _candidates(pool: tuple[Function, ...]) -> dict[str, list[tuple[int, int, Messages]]]:
    """Chats of each task, sorted by their characters; a docstring is no longer than two thirds of its code."""
    found: dict[str, list[tuple[int, int, Messages]]] = {"docstring": [], "signature": []}
    for number, function in enumerate(pool):
        asks = [("signature", SIGNATURE_ASK, function.signature)]
        if 3 * len(function.docstring) <= 2 * len(function.code):
            asks.append(("docstring", DOCSTRING_ASK, function.docstring))
        for task, ask, answer in asks:
            question = ask.format(code=function.code)
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            found[task].append((len(question) + len(answer), number, messages))
    return {task: sorted(entries, key=lambda entry: entry[:2]) for task, entries in found.items()}


def chats(count: int = CHATS, seed: int = SEED) -> list[Messages]:
    """``count`` chats of mixed length, each function used once.

    Raises:
        ValueError: the standard library has fewer functions than that.
    """
    rng = random.Random(seed)
    candidates = _candidates(functions())
    used: set[int] = set()
    found = []
    for _ in range(count):
        tokens = min(LONGEST, MEDIAN * rng.lognormvariate(0, SIGMA))
        sizes = candidates[rng.choice(["docstring", "signature"])]
        place = bisect_left(sizes, (round(tokens * CHARS_PER_TOKEN),))
        nearby = chain.from_iterable((place + away, place - away - 1) for away in range(len(sizes) + 1))
        chosen = next((i for i in nearby if 0 <= i < len(sizes) and sizes[i][1] not in used), None)
        if chosen is None:
            raise ValueError(f"{count} chats wanted, the standard library has functions for {len(found)}")
        used.add(sizes[chosen][1])
        found.append(sizes.pop(chosen)[2])
    return found


def shared_prefix_chats(count: int = CHATS, seed: int = SEED) -> list[Messages]:
    """``count`` rows of about 60 tokens behind one system turn of about 500.

    The system turn lists modules of the standard library; a row is the first line of a function's docstring and the
    module it is from. Many real sets look like this: one long instruction, short questions, shorter answers.
    """
    rng = random.Random(seed)
    pool = [f for f in functions() if 60 <= len(f.docstring.splitlines()[0]) <= 110]
    rng.shuffle(pool)
    if len(pool) < count:
        raise ValueError(f"{count} rows wanted, the standard library has {len(pool)} that fit")
    system = "You are given what a function of the Python standard library does. Answer with its name and its module as JSON."
    for module in sorted({f.module for f in pool}):
        if len(system) >= PREFIX_CHARACTERS:
            break
        system += f"\n- {module}: " + next(f.docstring.splitlines()[0] for f in pool if f.module == module)
    rows = []
    for function in pool[:count]:
        answer = json.dumps({"function": json.loads(function.signature)["name"], "module": function.module})
        hint = function.code.splitlines()[-1].strip()[:70]
        question = f"What does this describe? {function.docstring.splitlines()[0]}\nIts last line of code is: {hint}"
        turns = [("system", system), ("user", question), ("assistant", answer)]
        rows.append([{"role": role, "content": content} for role, content in turns])
    return rows


def write_rows(path: Path, rows: list[Messages]) -> str:
    """Write ``messages`` JSONL; returns its sha256."""
    data = "".join(json.dumps({"messages": messages}) + "\n" for messages in rows).encode()
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def quantiles(tokens: list[int]) -> dict[str, Any]:
    """Mean, median, 90th percentile and largest of some lengths."""
    ordered = sorted(tokens)
    return {
        "mean": round(statistics.mean(ordered), 1),
        "p50": ordered[len(ordered) // 2],
        "p90": ordered[int(0.9 * len(ordered))],
        "max": ordered[-1],
    }


def main() -> None:
    """Write the rows and say where they are."""
    parser = argparse.ArgumentParser(description="Chats made from the standard library, as messages JSONL.")
    parser.add_argument("--chats", type=int, default=CHATS)
    parser.add_argument("--shared-prefix", action="store_true", help="short rows behind one long system turn")
    parser.add_argument("--out", type=Path, help="file to write (a temporary one)")
    given = parser.parse_args()
    rows = shared_prefix_chats(given.chats) if given.shared_prefix else chats(given.chats)
    path = given.out or Path(tempfile.mkdtemp(prefix="tunesmith-benchmark-")) / "rows.jsonl"
    digest = write_rows(path, rows)
    characters = quantiles([sum(len(m["content"]) for m in messages) for messages in rows])
    print(f"{len(rows)} chats, characters {characters}, sha256 {digest[:16]}", file=sys.stderr)
    print(path)


if __name__ == "__main__":
    main()
