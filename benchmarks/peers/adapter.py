"""An adapter that stock TRL and PEFT trained, to be held against what ``tunesmith gate`` makes of it.

    PYTHON-OF-THE-PEER benchmarks/peers/adapter.py BASE ROWS OUT [--rows 480] [--steps 60] [--system TEXT]

Writes into OUT: ``adapter/`` as ``trainer.save_model`` leaves it, ``trained_on.jsonl`` with the rows that it saw, and
``logits.safetensors``: PEFT's own fp32 logits of some rows that it did not see, with their token ids, from which the parity of
our loading is taken:

    python benchmarks/peers/adapter.py --check BASE OUT        (in tunesmith's environment)

prints the largest difference between PEFT's logits and ours, and the base's beside it, over the largest logit.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PROBES = 16


def train(base: Path, rows: Path, out: Path, count: int, steps: int, system: str | None) -> None:
    """Train as TRL's documentation does, on the first rows of a file of conversations."""
    from datasets import Dataset
    from peft import LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    conversations = [json.loads(line)["messages"] for line in rows.read_text(encoding="utf-8").splitlines()]
    turn = [] if system is None else [{"role": "system", "content": system}]
    taught, held_out = conversations[:count], conversations[count : count + PROBES]
    out.mkdir(parents=True, exist_ok=True)
    (out / "trained_on.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in taught), encoding="utf-8")
    pairs = [{"prompt": [*turn, *each[:-1]], "completion": each[-1:]} for each in taught]
    settings = SFTConfig(
        output_dir=str(out / "scratch"),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trainer = SFTTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(pairs), peft_config=lora, processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model(str(out / "adapter"))
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), out / "adapter").eval()
    probes: dict[str, torch.Tensor] = {}
    for number, each in enumerate(held_out):
        ids = tokenizer.apply_chat_template(
            [*turn, *each[:-1]], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            probes[f"{number}.logits"] = tuned(input_ids=ids["input_ids"]).logits[0].contiguous()
        probes[f"{number}.ids"] = ids["input_ids"][0].contiguous()
    save_file(probes, out / "logits.safetensors")


def check(base: Path, out: Path) -> tuple[float, float]:
    """The largest difference between PEFT's logits and ours, and between PEFT's and the base's, over the largest logit."""
    from tunesmith.engines.base import open_base
    from tunesmith.models.swap import without_adapters

    loaded = open_base(base, base="fp32").load(out / "adapter")
    probes = load_file(out / "logits.safetensors")
    apart: list[torch.Tensor] = []
    for number in range(PROBES):
        theirs, ids = probes[f"{number}.logits"], probes[f"{number}.ids"][None]
        with torch.no_grad():
            ours = loaded.model(input_ids=ids).logits[0]
            with without_adapters(loaded.layers):
                untuned = loaded.model(input_ids=ids).logits[0]
        apart.append(torch.stack([(ours - theirs).abs().max(), (untuned - theirs).abs().max()]) / theirs.abs().max())
    worst = torch.stack(apart).amax(0)  # NaN stays NaN
    return float(worst[0]), float(worst[1])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--system")
    settings = parser.parse_args()
    if settings.check:
        ours, untuned = check(*settings.paths)
        print(f"largest difference from PEFT's logits: ours {ours:.1e}, the base's {untuned:.1e}, of the largest logit")
    else:
        train(*settings.paths, settings.rows, settings.steps, settings.system)


if __name__ == "__main__":
    main()
