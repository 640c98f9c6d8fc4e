"""What an installed tunesmith has to do, whatever it was installed from: the commands that need no weights, and a training.

    python tools/smoke.py PYTHON [--extra train]

It runs in an empty folder, with an environment that names neither this repository nor a proxy nor the network, so that nothing
answers but the package that PYTHON has. Refused: the suite against the installed package (it imports from the repository beside
it, and takes ten minutes); ``import tunesmith`` alone (a template that the wheel lacks is opened when a page is written).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600
EXTRAS = ("core", "train", "all")
# Only these of the machine's variables are handed on: where programs are, where files may lie, who to trust.
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "SYSTEMROOT", "TEMP", "TMP", "SSL_CERT_FILE", "OPENBLAS_CORETYPE", "OMP_NUM_THREADS")
TINY = """
from pathlib import Path
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
rows = Path("rows.jsonl").read_text(encoding="utf-8").splitlines()
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator(rows, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
fast.save_pretrained("tiny")
config = LlamaConfig(vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=1, max_position_embeddings=512, eos_token_id=fast.eos_token_id)
torch.manual_seed(0)
model = LlamaForCausalLM(config)
ids = torch.tensor([fast("\\n".join(rows))["input_ids"][:500]])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(10):  # no run starts from a model that guesses worse than a fair die
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.save_pretrained("tiny")
"""
RECIPE = """
model: tiny
data: {path: rows.jsonl}
chat: {template: chatml}
task: {metric: exact_match}
train: {num_train_epochs: 1, tokens_per_step: 256}
evaluate: {arms: [instruction, tuned]}
"""
IMPORTS = """
import importlib, pkgutil, re, tunesmith
OTHER_EXTRAS = {"gepa", "lm_eval", "mlflow", "qdrant_client", "tensorboardX", "trackio", "triton", "wandb"}
lacking = {}
for module in pkgutil.walk_packages(tunesmith.__path__, "tunesmith."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except (ImportError, tunesmith.MissingPackage) as error:
        if not OTHER_EXTRAS & set(re.findall(r"\\w+", str(error))):
            lacking[module.name] = str(error)
assert not lacking, lacking
"""


class Answer(NamedTuple):
    """What a command said and how it ended."""

    command: str
    code: int
    output: str


class Failure(Exception):
    """An installed package that does not do what it has to."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment in which nothing of this machine's Python, proxies or hub is known."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    places = {"XDG_CACHE_HOME": str(home / "cache"), "XDG_DATA_HOME": str(home / "data")}
    return {**kept, **places, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "120", "PYTHONUTF8": "0", **more}


def run(python: Path, folder: Path, arguments: list[str], codes: tuple[int, ...] = (0,)) -> Answer:
    """Run Python with arguments in a folder, and look at how it ends.

    Raises:
        Failure: it ended with another code, or took too long.
    """
    command = [str(python), "-P", *arguments]
    shown = (
        "tunesmith " + " ".join(arguments[2:]) if arguments[0] == "-m" else f"python: {' '.join(arguments[1].split())[:60]} ..."
    )
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=SECONDS, encoding="utf-8"
        )
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{shown}: takes more than {SECONDS} s") from error
    if done.returncode not in codes:
        raise Failure(f"{shown}: ended with {done.returncode}, expected {codes}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return Answer(shown, done.returncode, done.stdout)


def smoke(python: Path, extra: str, version: str | None = None) -> Iterator[Answer]:
    """Run what an installation with an extra has to do; an answer a command, as it comes.

    Args:
        python: of the environment.
        extra: one of ``EXTRAS``.
        version: that it has to say; whatever it says when not given.

    Raises:
        Failure: a command does not do what it has to.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-smoke-") as name:
        folder = Path(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8", newline="\n")
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8", newline="\n")

        def tunesmith(*arguments: str, codes: tuple[int, ...] = (0,)) -> Answer:
            return run(python, folder, ["-m", "tunesmith", *arguments], codes)

        said = tunesmith("--version")
        if version is not None and said.output.strip() != version:
            raise Failure(f"--version says {said.output.strip()}, built was {version}")
        where = run(python, folder, ["-c", "import tunesmith; print(tunesmith.__file__)"])
        if Path(where.output.strip()).is_relative_to(ROOT / "src"):
            raise Failure(f"{where.output.strip()} answers, which is the repository and not what was installed")
        yield said
        yield tunesmith("--help")
        yield tunesmith("schema")
        yield tunesmith("check", str(ROOT / "recipes" / "us_addresses" / "us_addresses.jsonl"))
        yield tunesmith("convert", "rows.jsonl", "messages.jsonl")
        yield tunesmith("advise", "recipe.yaml", "--quick", codes=(0, 21, 22, 23, 24))
        yield tunesmith("status", "recipe.yaml")
        if extra == "core":
            refused = tunesmith("train", "recipe.yaml", codes=(20,))  # with the line that installs what is lacking
            yield refused
            return
        run(python, folder, ["-c", TINY])
        yield tunesmith("plan", "recipe.yaml", "--memory", "8GB", codes=(0, 1))
        if extra == "all":
            yield run(python, folder, ["-c", IMPORTS])
            yield tunesmith("check", "rows.jsonl", "--page", "check.html")
            yield tunesmith("run", "recipe.yaml", "--until", "evaluate tuned")
        else:
            yield tunesmith("train", "recipe.yaml")


def rows() -> list[dict[str, object]]:
    """Rows of a task that a page of text describes."""
    colours = ["red", "green", "blue", "black", "white", "brown", "pink", "grey"]
    things = ["car", "house", "river", "bird", "table", "cloud", "door", "stone"]
    return [{"prompt": f"a {colour} {thing}", "completion": f"{colour}, {thing}"} for colour in colours for thing in things]


def main() -> None:
    """Run the commands against one environment."""
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", __doc__ or "")[0])
    parser.add_argument("python", type=Path, help="the Python of the environment that tunesmith is installed in")
    parser.add_argument("--extra", choices=EXTRAS, default="core")
    given = parser.parse_args()
    try:
        for answer in smoke(given.python.absolute(), given.extra):
            print(f"ok {answer.command}")
    except Failure as error:
        sys.exit(f"failed: {error}")


if __name__ == "__main__":
    main()
