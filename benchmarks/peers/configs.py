"""Import every example configuration that the peers publish, and count what becomes of them.

    python benchmarks/peers/configs.py SOURCES [--markdown PAGE]

``SOURCES`` holds a checkout of each repository below its name (``REPOSITORIES``); one that is missing is cloned there. Every
configuration is imported with stand-in rows, since the question is what becomes of its keys. A file is imported, or refused by
name: a traceback ends the script, and an unknown key is a reason of its own, so that a new one is seen.

Scripts of ms-swift are command lines; their arguments are written as the YAML that ``swift sft FILE`` reads.
"""

import argparse
import json
import logging
import re
import shlex
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import yaml

from tunesmith.errors import RecipeError
from tunesmith.pipeline.import_config import Wishes, import_config

REPOSITORIES = {
    "axolotl": ("https://github.com/axolotl-ai-cloud/axolotl", ("examples/**/*.yml", "examples/**/*.yaml")),
    "LLaMA-Factory": ("https://github.com/hiyouga/LLaMA-Factory", ("examples/**/*.yaml",)),
    "trl": ("https://github.com/huggingface/trl", ("examples/cli_configs/*.yaml", "examples/accelerate_configs/*.yaml")),
    "notebooks": ("https://github.com/unslothai/notebooks", ("nb/*.ipynb",)),
    "ms-swift": (
        "https://github.com/modelscope/ms-swift",
        ("examples/**/*.yaml", "examples/**/*.sh", "tests/llm/config/*.json"),
    ),
}
TOOLS = {"axolotl": "Axolotl", "LLaMA-Factory": "LLaMA-Factory", "trl": "TRL", "notebooks": "Unsloth", "ms-swift": "ms-swift"}
ROWS = 100
REASONS = (  # the first that fits the words of a refusal
    ("all weights are trained", "all weights are trained"),
    ("computed", "a value is computed"),
    ("expected a number", "a value is computed"),
    ("expected one training", "no training of the tool"),
    ("nothing is trained there", "no training of the tool"),
    ("images, sound", "images, sound or video"),
    ("preference data", "preference data or rewards"),
    ("a setting of RL", "preference data or rewards"),
    ("texts are learnt", "plain texts are learnt"),
    ("plain texts", "plain texts are learnt"),
    ("not known as a key", "an unknown key"),
    ("cannot tell which tool", "no training of the tool"),
    ("which is no training", "no training of the tool"),
    ("trains nothing", "no training of the tool"),
    ("is no notebook", "no training of the tool"),
    ("this is", "another form of file, or many devices"),
    ("spreads one model", "one model over several devices"),
    ("encoder", "encoders, classes"),
    ("class", "encoders, classes"),
    ("trainer of", "a trainer of its own"),
    ("quantised", "a quantised base of another kind"),
    ("bits", "a quantised base of another kind"),
    ("8-bit base", "a quantised base of another kind"),
    ("to be quantised", "a quantised base of another kind"),
    ("no recipe changes it", "another optimizer or schedule"),
    ("on the routing", "another loss"),
    ("another loss", "another loss"),
    ("answers count by", "another loss"),
    ("not open", "closed weights"),
    ("optimizer", "another optimizer or schedule"),
    ("schedule", "another optimizer or schedule"),
    ("vocabulary", "the vocabulary is changed"),
    ("weights beside", "weights beside the adapters"),
    ("not given", "a value that the tool needs is missing"),
    ("absent, and the model's own", "a value that the tool needs is missing"),
    ("no model is named", "a value that the tool needs is missing"),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        file: its path in the repository.
        reasons: of refusal, in short; none for one that was imported.
        keys: with their words.
        final: whether one of them cannot be left out.
    """

    file: str
    reasons: tuple[str, ...]
    keys: tuple[str, ...]
    final: bool


def main() -> None:
    """Print a line a file, then the totals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path)
    parser.add_argument("--markdown", type=Path, help="page that takes the totals")
    arguments = parser.parse_args()
    logging.getLogger("tunesmith").setLevel(logging.ERROR)
    outcomes: dict[str, list[Outcome]] = {}
    commits: dict[str, str] = {}
    for name, (url, patterns) in REPOSITORIES.items():
        folder = arguments.sources / name
        if not folder.exists():
            subprocess.run(["git", "clone", "--depth", "1", url, str(folder)], check=True)
        commits[name] = _commit(folder)
        outcomes[name] = [_outcome(folder, file) for pattern in patterns for file in sorted(folder.glob(pattern))]
        outcomes[name] = [outcome for outcome in outcomes[name] if outcome.reasons != ("no command",)]
        for outcome in outcomes[name]:
            print(f"{name}/{outcome.file}: {'; '.join(outcome.keys) if outcome.reasons else 'imported'}")
    page = "\n".join(_page(outcomes, commits))
    print(page)
    if arguments.markdown is not None:
        arguments.markdown.write_text(page + "\n")


def _commit(folder: Path) -> str:
    asked = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip() or "unknown"


def _outcome(folder: Path, file: Path) -> Outcome:
    name = str(file.relative_to(folder))
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in _rows()))
        config = file
        if file.suffix == ".sh":
            arguments = _arguments(file.read_text())
            if arguments is None:
                return Outcome(name, ("no command",), (), True)
            config = Path(scratch) / "args.yaml"
            config.write_text(yaml.safe_dump(arguments))
        tool = "ms-swift" if file.suffix == ".sh" else None
        wishes = Wishes(tool=tool, data=str(rows), metric="exact_match", out=Path(scratch) / "recipe.yaml")
        try:
            refused = import_config(config, wishes).refused
            if refused and not any(key.final for key in refused):  # what the table says of --without is tried
                names = tuple(dict.fromkeys(key.key for key in refused))
                left = import_config(config, replace(wishes, without=names)).refused
                assert not left, f"{name}: {left} after --without {names}"
        except RecipeError as error:
            return Outcome(name, (_reason(str(error.message)),), (error.message.replace(scratch, ""),), True)
    keys = tuple(f"{key.key}: {key.words}" for key in refused)
    return Outcome(name, tuple(dict.fromkeys(_reason(key.words) for key in refused)), keys, any(key.final for key in refused))


def _rows() -> Iterator[dict[str, str]]:
    for number in range(ROWS):
        yield {"prompt": f"What is {number} in words? Write it out in full.", "completion": f"The number {number}"}


def _arguments(script: str) -> dict[str, object] | None:
    """The arguments of the first ``swift sft`` of a script; None where it has none."""
    joined = re.sub(r"^\s*#.*$", "", script, flags=re.MULTILINE).replace("\\\n", " ")
    found = re.search(r"^.*\bswift sft\b(.*)$", joined, re.MULTILINE)
    if found is None:
        return None
    arguments: dict[str, object] = {}
    key = ""
    for word in shlex.split(found.group(1)):
        if word.startswith("--"):
            key = word[2:]
            arguments[key] = True
        elif key:
            value = yaml.safe_load(word)
            before = arguments[key]
            arguments[key] = value if before is True else [*(before if isinstance(before, list) else [before]), value]
    return arguments


def _reason(words: str) -> str:
    return next((short for part, short in REASONS if part in words), "a key without an equivalent")


def _page(outcomes: dict[str, list[Outcome]], commits: dict[str, str]) -> Iterator[str]:
    yield "# What becomes of the peers' example configurations"
    yield ""
    yield (
        f"Made by `python benchmarks/peers/configs.py SOURCES --markdown docs/reference/imports.md` on {date.today()}, with "
        "stand-in rows; change that, not this page. Each file is imported, or refused by name; a file with several reasons "
        "counts in each. What is done with the keys stands in [Come from another tool](../how-to/come-from-another-tool.md)."
    )
    yield ""
    yield "| tool | commit | files | imported | after `--without` | refused |"
    yield "|---|---|---|---|---|---|"
    for name, files in outcomes.items():
        imported = sum(not outcome.reasons for outcome in files)
        final = sum(outcome.final for outcome in files)
        yield f"| {TOOLS[name]} | {commits[name]} | {len(files)} | {imported} | {len(files) - imported - final} | {final} |"
    yield ""
    yield "Why a file is not imported as it is:"
    yield ""
    yield f"| reason | {' | '.join(TOOLS[name] for name in outcomes)} |"
    yield f"|---|{'---|' * len(outcomes)}"
    counts = {name: Counter(reason for outcome in files for reason in outcome.reasons) for name, files in outcomes.items()}
    total: Counter[str] = Counter()
    for counter in counts.values():
        total.update(counter)
    for reason, _ in total.most_common():
        yield f"| {reason} | {' | '.join(str(counts[name][reason] or '') for name in outcomes)} |"


if __name__ == "__main__":
    main()
