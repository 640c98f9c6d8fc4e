"""Unsloth's side of ``train_step.py``: its loader and its trainer on a CPU, stopped before every optimizer step.

    PYTHON-OF-THE-PEER benchmarks/peers/unsloth_step.py JOB ARM THREADS

Where PyTorch sees no accelerator, Unsloth is a backend of its own: stock transformers, PEFT and TRL with its loss in chunks
over the supervised tokens, its choice of dtypes, and no packing. Rows, adapter, commands and what is measured are those of
``trl_step.py``. ``unsloth_default`` is what its loader and ``SFTConfig()`` say.
"""

import protocol

with protocol.stdout_kept():
    import unsloth  # before trl, which it changes

import torch
import trl_step

BEST = "unsloth_bf16_single"  # fastest setting as measured; train_step.py --settle unsloth measures them all
# dtype of the weights (None: its choice), bf16 autocast (None: its choice), checkpointing, rows a batch
ARMS: dict[str, tuple[torch.dtype | None, bool | None, bool | str, int]] = {
    "unsloth_default": (None, None, "unsloth", 8),
    "unsloth_fp32": (torch.float32, False, False, 4),
    "unsloth_fp32_single": (torch.float32, False, False, 1),
    "unsloth_autocast": (torch.float32, True, False, 4),
    "unsloth_bf16": (torch.bfloat16, True, False, 4),
    "unsloth_bf16_single": (torch.bfloat16, True, False, 1),
}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # all linear layers, as it names them


def make_trainer(job: protocol.Job, arm: str, folder: str) -> trl_step.Measured:
    """A trainer on the job's rows, its adapter set to the job's."""
    dtype, autocast, checkpointing, batch = ARMS[BEST if arm == "unsloth_best" else arm]
    lora = job["lora"]
    longest = max(len(row["ids"]) for row in job["rows"])
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        job["model"], max_seq_length=longest, dtype=dtype, load_in_4bit=False, use_gradient_checkpointing=checkpointing
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=MODULES,
        use_gradient_checkpointing=checkpointing,
    )
    trainer = trl_step.Measured(
        model=model,
        args=trl_step.make_config(job, folder, autocast, bool(checkpointing), 0, batch),
        train_dataset=trl_step.Dataset.from_list(trl_step.rows_as_trl_takes_them(job, 0)),
        processing_class=tokenizer,
    )
    trl_step.set_adapter(job, trainer)
    return trainer


if __name__ == "__main__":
    trl_step.main(make_trainer)
