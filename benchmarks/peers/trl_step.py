"""TRL's side of ``train_step.py``: its own ``SFTTrainer`` and PEFT, stopped before every optimizer step.

    PYTHON-OF-THE-PEER benchmarks/peers/trl_step.py JOB ARM THREADS

``trainer.train()`` runs as a user would run it; a callback waits at the beginning of a step and reports at its end, so
what is measured is TRL's whole step: forward, backward, clipping, optimizer, schedule and metrics. Collating is outside,
since the trainer does it before the step begins.

TRL is given token ids and labels (a form it takes as already processed), the very ones that the other arms train on, so
a difference in templates or masks cannot pass for a difference in speed; the rows that its own ``apply_chat_template``
would have tokenised otherwise are counted and reported. The packing arms get the rows of a step in as many packs as TRL
accumulates micro-batches, balanced, which is kinder to it than its own cut at ``max_length``.

``trl_default`` is what ``SFTConfig()`` says (bf16 autocast over fp32 weights, checkpointing); ``trl_fp32`` is plain fp32
without checkpointing, which is the faster of the two readings of fp32.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import protocol
import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

BEST = "trl_bf16_packing8"  # fastest documented setting on a CPU as measured; train_step.py --settle trl measures them all
# dtype of the weights, bf16 autocast, gradient checkpointing, packs a step (0: padded batches of 4 rows)
ARMS: dict[str, tuple[str, bool, bool, int]] = {
    "trl_fp32": ("float32", False, False, 0),
    "trl_default": ("float32", True, True, 0),
    "trl_autocast": ("float32", True, False, 0),
    "trl_bf16": ("bfloat16", True, False, 0),
    "trl_fp32_packing": ("float32", False, False, 2),
    "trl_bf16_packing": ("bfloat16", True, False, 2),
    "trl_bf16_packing4": ("bfloat16", True, False, 4),
    "trl_bf16_packing8": ("bfloat16", True, False, 8),
}
ROWS_A_BATCH = 4


def rows_as_trl_takes_them(job: protocol.Job, packs: int) -> list[dict[str, Any]]:
    """All steps' rows in order: one entry a row, or one a pack."""
    entries = []
    for step in job["steps"]:
        groups = balanced(step, [len(job["rows"][row]["ids"]) for row in step], packs) if packs else [[row] for row in step]
        entries += [entry(job, group) for group in groups]
    return entries


def entry(job: protocol.Job, rows: list[int]) -> dict[str, Any]:
    """Rows one after another, with labels of -100 where nothing is learnt."""
    ids = [job["rows"][row]["ids"] for row in rows]
    taught = [job["rows"][row]["supervised"] for row in rows]
    labels = [t if s else -100 for row, flags in zip(ids, taught, strict=True) for t, s in zip(row, flags, strict=True)]
    return {"input_ids": [t for row in ids for t in row], "labels": labels, "seq_lengths": [len(row) for row in ids]}


def balanced(rows: list[int], lengths: list[int], packs: int) -> list[list[int]]:
    """Rows in so many packs, the longest first into the emptiest.

    Raises:
        ValueError: more packs than rows.
    """
    if packs > len(rows):
        raise ValueError(f"{packs} packs of {len(rows)} rows")
    found: list[list[int]] = [[] for _ in range(packs)]
    sizes = [0] * packs
    for length, row in sorted(zip(lengths, rows, strict=True), key=lambda pair: (-pair[0], pair[1])):
        place = sizes.index(min(sizes))
        found[place].append(row)
        sizes[place] += length
    return found


class Measured(SFTTrainer):
    """The trainer as it is, with the losses of a step's micro-batches at hand (each is divided by the step's tokens)."""

    step_loss = 0.0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch."""
        loss = super().training_step(*args, **kwargs)
        self.step_loss += float(loss)
        return loss


class Commands(TrainerCallback):
    """Waits at the beginning of a step, reports at its end."""

    def __init__(self, job: protocol.Job, trainer: Measured, packed: bool, answer: Callable[[dict[str, Any]], None]):
        self._job, self._trainer, self._packed, self._answer = job, trainer, packed, answer
        self._steps = iter(job["steps"])

    def _evaluate(self) -> float:
        groups = [self._job["evaluate"]] if self._packed else [[row] for row in self._job["evaluate"]]
        batch = self._trainer.data_collator([entry(self._job, group) for group in groups])
        model = self._trainer.model
        assert isinstance(model, torch.nn.Module)
        model.eval()
        loss = self._trainer.prediction_step(model, batch, prediction_loss_only=True)[0]
        model.train()
        return float(loss)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait."""
        protocol.next_command(self._answer, self._evaluate)
        self._trainer.step_loss = 0.0
        self._clock = protocol.Clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Report."""
        rows = next(self._steps)
        self._answer(self._clock.figures(self._trainer.step_loss, *protocol.counts(self._job, rows)))


def make_config(
    job: protocol.Job, folder: str, autocast: bool | None, checkpointing: bool, packs: int, batch: int, use_cpu: bool = True
) -> SFTConfig:
    """Arguments of the trainer: ``packs`` a step, or (0) batches of ``batch`` rows."""
    return SFTConfig(
        output_dir=folder,
        use_cpu=use_cpu,
        bf16=autocast,
        gradient_checkpointing=checkpointing,
        per_device_train_batch_size=1 if packs else batch,
        gradient_accumulation_steps=packs or len(job["steps"][0]) // batch,
        max_length=max(len(row["ids"]) for row in job["rows"]) * (len(job["steps"][0]) if packs else 1),
        packing=packs > 0,
        dataset_kwargs={"skip_prepare_dataset": True},
        learning_rate=job["learning_rate"],
        max_grad_norm=job["max_grad_norm"],
        lr_scheduler_type="constant",
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


def make_trainer(job: protocol.Job, arm: str, folder: str) -> Measured:
    """A trainer on the job's rows, its adapter set to the job's."""
    dtype, autocast, checkpointing, packs = ARMS[BEST if arm == "trl_best" else arm]
    lora = job["lora"]
    config = make_config(job, folder, autocast, checkpointing, packs, ROWS_A_BATCH)
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    peft = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"],
        task_type="CAUSAL_LM",
    )
    trainer = Measured(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows_as_trl_takes_them(job, packs)),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=peft,
    )
    set_adapter(job, trainer)
    return trainer


def set_adapter(job: protocol.Job, trainer: Measured) -> None:
    """Start from the job's weights."""
    state = load_file(Path(job["adapter"]) / "adapter_model.safetensors")
    outcome = set_peft_model_state_dict(trainer.model, state)
    lost = [key for key in outcome.missing_keys if "lora" in key] + list(outcome.unexpected_keys)
    assert not lost, f"the adapter does not fit: {lost[:3]}"


def tokenised_otherwise(job: protocol.Job) -> int:
    """Rows whose ids under the peer's own tokenisation are not the job's."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    template = {"chat_template": job["template"]} if job["template"] else {}
    used = sorted({row for step in job["steps"] for row in step if "messages" in job["rows"][row]})
    own = [tokenizer.apply_chat_template(job["rows"][row]["messages"], return_dict=False, **template) for row in used]
    return sum(ids != job["rows"][row]["ids"] for ids, row in zip(own, used, strict=True))


def main(make: Callable[[protocol.Job, str, str], Measured] = make_trainer) -> None:
    """Train, a step at a command."""
    job, arm, threads = protocol.read_job(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    answer = protocol.open_answers()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="peer-step-") as folder:
        trainer = make(job, arm, folder)
        trainer.add_callback(Commands(job, trainer, trainer.padding_free, answer))
        protocol.reset_peak()
        answer({"ready": arm, "torch": torch.__version__, "rows_tokenised_otherwise": tokenised_otherwise(job)})
        trainer.train()
        raise SystemExit("no more steps in the job")


if __name__ == "__main__":
    main()
