"""Keys of the adapter and of its training."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tunesmith.recipe.amount import AmountText, checked_amount
from tunesmith.recipe.section import Section
from tunesmith.recipe.tables import tables_of


def _memory(text: str) -> str:
    return checked_amount(text, "auto", "off")


class Lora(Section):
    """The adapter. Names and meanings are PEFT's."""

    r: Annotated[int, Field(ge=1)] = Field(default=16, description="rank: rows of lora_A and columns of lora_B")
    alpha: Annotated[float, Field(gt=0.0)] = Field(default=32, description="the update is scaled by alpha / r")
    dropout: Annotated[float, Field(ge=0.0, le=0.99)] = Field(
        default=0.05, description="share of an adapter's inputs that a training step leaves out"
    )
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear",
        description="all-linear | peft-default (attention only, as PEFT chooses) | a list of names | a regular expression",
    )
    use_rslora: bool = Field(
        default=False, description="scale the update by alpha / sqrt(r) instead of alpha / r (rsLoRA), for ranks above 64 or so"
    )
    use_dora: bool = Field(
        default=False, description="train the length of every row of the weight apart from its direction (DoRA); slower"
    )

    modules_to_save: tuple[str, ...] = Field(
        default=(),
        description="embed_tokens, lm_head or both: the whole table is trained too, in fp32 beside the frozen one, and lies in "
        "the adapter; a head and an embedding that are one table stay one; for single new tokens chat.new_tokens is enough",
    )

    @model_validator(mode="after")
    def _tables_alone(self) -> Self:
        tables_of(self.modules_to_save)
        return self

    @property
    def scale(self) -> float:
        """Factor on ``B A``: ``alpha / r`` (Hu et al. 2021), or ``alpha / sqrt(r)`` (rsLoRA, arXiv 2312.03732)."""
        return self.alpha / math.sqrt(self.r) if self.use_rslora else self.alpha / self.r


Rate = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]


class Optimisation(Section):
    """What training is told and nothing derives. Names and meanings are TRL's where TRL has them."""

    from_adapter: Path | None = Field(
        default=None,
        description="a PEFT adapter directory to go on from, a trainer's checkpoint among them: its rank, alpha, targets and "
        "kind are taken over, the optimizer is fresh; none for a new adapter",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="how the learning rate falls from there to zero, or stays"
    )
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.05, description="share of the steps in which it rises from zero"
    )
    max_grad_norm: Annotated[float, Field(gt=0.0)] = Field(
        default=1.0, description="a longer gradient of a step is scaled down to this length"
    )
    compute: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="dtype of the matrix products where base is auto or nf4; auto takes the faster of fp32 and bf16 on this "
        "machine, and fp16 on a GPU without bf16; fp16 scales each row and keeps all else in fp32, so nothing overflows",
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        default="adamw",
        description="adamw keeps 8 bytes of state a trained weight; the 8-bit ones 2 (bitsandbytes, extra bnb); paged moves it "
        "to host memory when the GPU is full",
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(
        default=0.0, description="decoupled decay of lora_A and lora_B; 0 pulls nowhere, more pulls towards the base model"
    )
    loraplus_lr_ratio: Annotated[float, Field(gt=0.0)] = Field(
        default=1.0, description="learning rate of lora_B over that of lora_A (LoRA+); its authors suggest about 16"
    )
    deterministic: bool = Field(
        default=False,
        description="refuse what depends on scheduling: a GPU gives the same bytes again, as a CPU does anyway; "
        "without it the gradients of attention are added up in the order in which a GPU finishes them",
    )
    memory: Annotated[AmountText, AfterValidator(_memory)] = Field(
        default="auto",
        description="what training may take of a GPU: all that is free (auto) or an amount like 16GB; recompute, offload, "
        "mlp_tile, resident_layers and embedding_on that are left at their defaults are turned until it fits (tunesmith plan "
        "shows how), off leaves them; on a CPU an amount limits the processes",
    )
    recompute: (
        Literal["auto", "none", "attention", "mlp", "layer"]
        | Annotated[int, Field(ge=1)]
        | tuple[Annotated[int, Field(ge=0)], ...]
    ) = Field(
        default="auto",
        description="what is computed a second time in the backward pass instead of kept: nothing, every attention, every mlp, "
        "every layer, every n-th layer, or the layers of a list, counted from 0 (gradient checkpointing); the result is the "
        "same; auto is none on a CPU, and on a GPU what train.memory comes to; a set one binds no other dial",
    )
    resident_layers: Literal["all"] | Annotated[int, Field(ge=0)] = Field(
        default="all",
        description="how many of the first decoder layers stay where the model computes, of a base in nf4; the others are "
        "stored once in the cache and streamed: to a GPU from the host's memory or the disk, on a CPU from the mapped file; 0 "
        "takes the least memory; the adapter is the same",
    )
    shard: bool = Field(
        default=False,
        description="of several processes that were launched together (torchrun) each holds a share of every decoder layer of "
        "a base in nf4, for a model that no card of them holds whole; the adapter is the same to the bit",
    )
    sequence_parallel: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="processes that compute a row together, of those that were launched: each has a run of its tokens, and in "
        "attention some heads (Ulysses), for rows that are too long for one card; a divisor of the model's heads",
    )
    offload: Literal["none", "inputs", "attention"] = Field(
        default="none",
        description="inputs: what a recomputed layer keeps, its input, waits in host memory until the layer goes backward; "
        "attention: so does what its attention gave, which is then not computed twice; for long rows on a GPU, with recompute "
        "layer or n; the result is the same to the bit",
    )
    mlp_tile: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="tokens that pass an MLP at a time, so that its insides do not grow with the rows; 0 for all at once, auto "
        "for as many as make 2^27 numbers (4,096 in an 8B model); the result is the same to rounding",
    )
    embedding_on: Literal["device", "host"] = Field(
        default="device",
        description="where the embedding table lies: host keeps it in host memory and copies the rows of each pack to the GPU; "
        "the result is the same; a model whose head shares the table needs base_head: int8 for it",
    )
    max_length: Annotated[int, Field(ge=2)] = Field(
        default=2048, description="longest row, and the tokens of one packed micro-batch"
    )
    replay: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.1,
        description="samples of the base model's own writing, mixed in against forgetting: their number as a share of the "
        "train rows, 404 at most; 0 for none",
    )
    qat: bool = Field(
        default=False,
        description="train the weights of the file that is deployed: each is rounded onto the grid of the base's GGUF in the "
        "last type of export.gguf, at every step, and that file holds what was trained, to the bit",
    )
    race: bool = Field(
        default=False,
        description="try half, one and twice the learning rate on the first tenth of the steps, at least five, and train from "
        "the start at the one with the lowest dev loss; takes 0.3 of a training more",
    )
    evals_per_epoch: Annotated[int, Field(ge=1)] = Field(default=2, description="dev losses (and checkpoints) an epoch")
    keep_checkpoints: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="how many of the newest checkpoints are kept, beside the best one; the adapter is the same",
    )
    ranks: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto",
        description="processes that a training on a CPU is dealt out to, each with one thread; auto takes one a physical core, "
        "fewer where memory is short or a step has fewer packs; the adapter is the same to the byte",
    )

    @model_validator(mode="after")
    def _offload_needs_recompute(self) -> Self:
        if self.offload != "none" and not (self.recompute == "layer" or isinstance(self.recompute, int)):
            raise ValueError(f"offload: {self.offload} needs recompute: layer, or a number; it is {self.recompute}")
        return self


class Train(Optimisation):
    """The section ``train`` of a recipe: three of its keys may be left to the rows (``recipe/derive.py``)."""

    learning_rate: Literal["auto"] | Rate = Field(
        default="auto",
        description="the highest, after the warm-up; auto follows from the model's width, the adapter's scale, the rows and "
        "answer tokens a step and the number of steps",
    )
    tokens_per_step: Literal["auto"] | Count = Field(
        default="auto",
        description="tokens of one optimizer step, about; auto: 32 rows, fewer where that leaves under 150 steps",
    )
    num_train_epochs: Literal["auto"] | Count = Field(
        default="auto", description="how often every row is trained on; auto: 4 to 1, fewer the more rows there are"
    )


class TrainSettings(Optimisation):
    """The same with numbers in every place: what a training runs by."""

    learning_rate: Rate
    tokens_per_step: Count
    num_train_epochs: Count
