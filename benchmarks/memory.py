"""What training on a CPU was foretold to take of memory, and what it took: the demo, Gemma 3 270M, a random model of 1B.

    python benchmarks/memory.py --out benchmarks/results/memory-DATE.json          # a quarter of an hour on two cores
    python benchmarks/memory.py --cases demo --steps 2

Each case trains a few steps in a process of its own, with as many ranks as the machine has cores, and the run's own record
gives both figures: nothing is measured here that a user's run does not write. The model of 1B is Llama 3.2's shape with random
weights and the tokenizer of the demo's model; it is written into ``--room`` once.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data import machine
from tunesmith.formatting import gb
from tunesmith.pipeline.base import directory_of
from tunesmith.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
DEMO, GEMMA = ROOT / "recipes" / "question_types.yaml", ROOT / "recipes" / "us_addresses_gemma.yaml"
ONE_B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
CASES: dict[str, tuple[Path, dict[str, Any]]] = {  # the recipe whose rows and task they take, and what is changed in it
    "demo": (DEMO, {}),
    "demo in fp32": (DEMO, {"base": "fp32"}),
    "Gemma 3 270M": (GEMMA, {}),
    "1B": (DEMO, {"model": ONE_B}),
    "1B in nf4": (DEMO, {"model": ONE_B, "base": "nf4"}),
    "1B in nf4 and recomputed": (DEMO, {"model": ONE_B, "base": "nf4", "train": {"recompute": "layer"}}),
    "1B in nf4 and streamed": (DEMO, {"model": ONE_B, "base": "nf4", "train": {"resident_layers": 0}}),
}


def one_b(room: Path) -> Path:
    """The random model's directory, written when it is first asked for."""
    directory = room / "one_b"
    if not directory.exists():
        tokenizer = AutoTokenizer.from_pretrained(directory_of(load_recipe(DEMO)))
        torch.manual_seed(0)
        config = LlamaConfig(**ONE_B, num_key_value_heads=8, vocab_size=len(tokenizer), tie_word_embeddings=True)
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
        with torch.no_grad():  # it expects frequent tokens, which come first: a model that knows nothing is refused as damaged
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.mul_(0.01)
                layer.mlp.down_proj.weight.mul_(0.01)
            frequent_V = math.log(len(tokenizer)) - torch.arange(1, len(tokenizer) + 1).log()
            model.model.embed_tokens.weight.mul_(0.25)[:, 0] = 0.02 * frequent_V
        model.save_pretrained(room / "half")
        tokenizer.save_pretrained(room / "half")
        (room / "half").rename(directory)
    return directory


def measure(name: str, room: Path, steps: int) -> dict[str, Any]:
    """A short training of a case, and what its record says."""
    path, changes = CASES[name]
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = (path.parent / raw["data"]["path"]).read_text(encoding="utf-8").splitlines(keepends=True)
    short = room / "rows.jsonl"
    short.write_text("".join(rows[: 60 * steps]), encoding="utf-8")
    for key in ("model", "json_schema", "tasks_path"):
        for section in (raw, raw["task"]):
            if str(section.get(key, "")).startswith(("../", "us_addresses/")):
                section[key] = str((path.parent / section[key]).resolve())
    raw["data"] = {"path": str(short), "test_fraction": 0.1, "dev_fraction": 0.1}
    raw["train"] = {**raw["train"], "replay": 0.0, "num_train_epochs": 1, "evals_per_epoch": 1, "tokens_per_step": 2048}
    raw["train"] |= changes.get("train", {})
    if "model" in changes:
        del raw["model_sha256"]
        raw["model"] = str(one_b(room))
    recipe = room / "case.yaml"
    recipe.write_text(yaml.safe_dump({**raw, "base": changes.get("base", "auto")}), encoding="utf-8")
    run = room / "run"
    shutil.rmtree(run, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "tunesmith", "run", recipe, "--out", run, "--until", "train"], check=True)
    training = json.loads((run / "training.json").read_text(encoding="utf-8"))
    predicted, measured = training["predicted"], training["measured"]
    return {"case": name, "steps": training["steps"], "predicted": predicted, "measured": measured}


def line(result: dict[str, Any]) -> str:
    """A row of the table."""
    predicted, measured = result["predicted"]["resident"], result["measured"]["resident"]
    of = f"{result['predicted']['ranks']} ranks, packs of {result['predicted']['tokens']:,} tokens"
    return f"{result['case']:32} {of:34} {gb(predicted):>9} {gb(measured):>9} {predicted / measured - 1:+7.1%}"


def main() -> None:
    """Measure, print a line a case, and write what was measured after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="names, between commas")
    parser.add_argument("--steps", type=int, default=4, help="about so many")
    parser.add_argument("--room", type=Path, help="where the random model is written and kept")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    chosen = [name for name in CASES if name in arguments.cases.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        room = arguments.room or Path(temporary)
        room.mkdir(parents=True, exist_ok=True)
        results: list[dict[str, Any]] = []
        for name in chosen:
            results.append(measure(name, room, arguments.steps))
            print(line(results[-1]), flush=True)
            if arguments.out is not None:
                arguments.out.write_text(
                    json.dumps({"machine": machine(), "results": results}, indent=1) + "\n", encoding="utf-8"
                )


if __name__ == "__main__":
    main()
