"""Unsloth's side of ``gpu_peers.py``: its loader and its trainer in four bits, stopped before every optimizer step.

    PYTHON-OF-THE-PEER benchmarks/peers/unsloth_gpu_step.py JOB ARM THREADS

``unsloth_gpu_fast`` packs rows and keeps all activations; ``unsloth_gpu_lean`` is what its notebooks say: its own
checkpointing, batches of 8 rows, which it flattens without padding where it can. Without a GPU it is another backend, which
packs nothing (``unsloth_step.py``); there only the second is tried.
"""

import protocol

with protocol.stdout_kept():
    import unsloth  # before trl, which it changes

import torch
import trl_gpu_step
import trl_step
import unsloth_step

ARMS: dict[str, tuple[bool | str, bool]] = {"unsloth_gpu_fast": (False, True), "unsloth_gpu_lean": ("unsloth", False)}


def make_trainer(job: protocol.Job, arm: str, folder: str) -> trl_step.Measured:
    """A trainer on the job's rows, its base in NF4, its adapter set to the job's.

    Raises:
        SystemExit: packing asked for without a GPU.
    """
    checkpointing, packed = ARMS[arm]
    on_cpu, lora = not torch.cuda.is_available(), job["lora"]
    if on_cpu and packed:
        raise SystemExit("unsloth packs nothing without a GPU")
    longest = job["pack_tokens"] if packed else max(len(row["ids"]) for row in job["rows"])
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        job["model"],
        max_seq_length=longest,
        dtype=torch.bfloat16,
        load_in_4bit=True,
        use_gradient_checkpointing=checkpointing,
        use_exact_model_name=True,
    )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=unsloth_step.MODULES,
        use_gradient_checkpointing=checkpointing,
    )
    trainer = trl_step.Measured(
        model=model,
        args=trl_gpu_step.config(job, folder, bool(checkpointing), packed, on_cpu),
        train_dataset=trl_step.Dataset.from_list(trl_gpu_step.rows(job, packed)),
        processing_class=tokenizer,
    )
    trl_step.set_adapter(job, trainer)
    return trainer


if __name__ == "__main__":
    trl_step.main(make_trainer)
