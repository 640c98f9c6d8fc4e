"""TRL's, PEFT's and bitsandbytes' side of ``gpu_peers.py``: a QLoRA step of ``SFTTrainer``, on a GPU or, to be tried, on a CPU.

    PYTHON-OF-THE-PEER benchmarks/peers/trl_gpu_step.py JOB ARM THREADS

Two ways of a user: ``trl_gpu_fast`` packs rows, keeps all activations and takes flash attention where it is installed;
``trl_gpu_lean`` is what ``SFTConfig()`` says: padded batches of 8 rows, layers recomputed. Trainer, adapter, commands and what
is measured are those of ``trl_step.py``.
"""

from importlib.util import find_spec
from typing import Any

import protocol
import torch
import trl_step
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

ARMS = {"trl_gpu_fast": (False, True), "trl_gpu_lean": (True, False)}  # checkpointing, packed
ROWS_A_BATCH = 8  # per_device_train_batch_size of TrainingArguments


def rows(job: protocol.Job, packed: bool) -> list[dict[str, Any]]:
    """All steps' entries: the job's packs, or row by row."""
    if not packed:
        return trl_step.rows_as_trl_takes_them(job, 0)
    return [trl_step.entry(job, pack) for step in job["packs"] for pack in step]


def config(job: protocol.Job, folder: str, checkpointing: bool, packed: bool, on_cpu: bool) -> trl_step.SFTConfig:
    """Arguments of the trainer, for as many micro-batches a step as the job has packs."""
    packs = len(job["packs"][0]) if packed else 0
    batch = min(ROWS_A_BATCH, len(job["steps"][0]))
    return trl_step.make_config(job, folder, True, checkpointing, packs, batch, on_cpu)


def make_trainer(job: protocol.Job, arm: str, folder: str) -> trl_step.Measured:
    """A trainer on the job's rows, its base in NF4, its adapter set to the job's."""
    checkpointing, packed = ARMS[arm]
    on_cpu, lora = not torch.cuda.is_available(), job["lora"]
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    flash = {"attn_implementation": "flash_attention_2"} if packed and not on_cpu and find_spec("flash_attn") else {}
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.bfloat16, quantization_config=nf4, device_map={"": "cpu" if on_cpu else 0}, **flash
    )
    trainer = trl_step.Measured(
        model=model,
        args=config(job, folder, checkpointing, packed, on_cpu),
        train_dataset=trl_step.Dataset.from_list(rows(job, packed)),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=LoraConfig(
            r=lora["r"],
            lora_alpha=lora["alpha"],
            lora_dropout=lora["dropout"],
            target_modules=lora["target_modules"],
            task_type="CAUSAL_LM",
        ),
    )
    trl_step.set_adapter(job, trainer)
    return trainer


if __name__ == "__main__":
    trl_step.main(make_trainer)
