"""What can be turned to make a training take more or less memory, in one record.

A dial changes memory and time and never the result, but for ``base``, ``compute``, ``r`` and the optimizer, which a recipe
fixes. Whoever plans a run turns the others (``dataclasses.replace``) and asks ``memory/estimate.py`` again.
"""

from dataclasses import dataclass
from typing import Literal

from tunesmith.recipe import Lora, TrainSettings
from tunesmith.recipe.tables import Table, tables_of

# Bytes of a weight: of the mixtures of llama.cpp the mean over the layers of an 8B model, of a file that is not known the most.
BLOCKS = {"Q4_0": 4.5 / 8, "Q4_K_M": 4.85 / 8, "Q5_K_M": 5.68 / 8, "Q6_K": 6.5625 / 8, "Q8_0": 8.5 / 8, "gguf": 8.5 / 8}
BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "nf4": (4.0 + 8.0 / 64 + 32.0 / (64 * 256)) / 8.0, **BLOCKS}
WIDTH = {"fp32": 4, "bf16": 2, "fp16": 4}  # of an activation: fp16 keeps the residual stream in fp32
DENSE = {"fp32": 4, "bf16": 2, "fp16": 2}  # of a weight in the dtype of the products
Recompute = Literal["auto", "none", "attention", "mlp", "layer"] | int | tuple[int, ...]
AUTO = 2**27  # numbers of gate and up in a tile of an MLP where nobody names its tokens
POLICIES: tuple[Literal["none", "attention", "mlp", "layer"], ...] = ("none", "attention", "mlp", "layer")


def auto_tile(features: int) -> int:
    """Tokens of a tile of an MLP where nobody names them: a power of two, 4,096 in an 8B model.

    Args:
        features: of the hidden layer.
    """
    return 1 << (max(1, AUTO // (2 * features)).bit_length() - 1)


@dataclass(frozen=True, kw_only=True)
class Dials:
    """How a training is run.

    Attributes:
        base: what the frozen linear layers are kept in: ``fp32``, ``bf16``, ``fp16``, ``nf4`` or the blocks of a GGUF.
        compute: dtype of the products: ``fp32``, ``bf16`` or ``fp16``.
        technique: ``lora`` trains adapters, ``full`` every weight.
        r: rank of the adapters.
        new_tokens: whose rows of embedding and head are trained with them.
        tables: that are trained whole, of the embedding and the head; of a tied model one is both.
        dropout: of their inputs.
        optimizer: as in a recipe.
        recompute: as in a recipe; a tuple holds the numbers of the layers that are recomputed. ``auto`` counts as ``none``.
        tokens: of a micro-batch (T).
        rows: supervised tokens of it (N).
        packs: micro-batches of an optimizer step; from the second on, all gradients are there throughout.
        longest: tokens that a token of the micro-batch sees; None for all. A CPU keeps probabilities of short documents.
        device: ``gpu`` or ``cpu``.
        embedding_on: ``host`` leaves an untied table in host memory and copies the rows.
        head: ``int8`` keeps the head in one byte a weight.
        offload: ``inputs`` of recomputed layers to host memory, or these and what ``attention`` gave.
        mlp_tile: tokens of a piece that an MLP is computed in, 0 for all at once, ``auto`` for what suits its width.
        qat: weights are trained on the grid of a file: its scales lie beside each, and a rounded copy through a step.
        plain: adapters are plain LoRA, so that the layers are ours; others keep stock ones, which cannot be cut.
        resident_layers: layers whose frozen weights stay on the device, from the front; the others come through two slots.
            None for all.
        extra: bytes of linear layers beyond what ``base`` says, which a budget gave them.
    """

    base: str = "nf4"
    compute: str = "bf16"
    technique: Literal["lora", "full"] = "lora"
    r: int = 16
    new_tokens: int = 0
    tables: tuple[Table, ...] = ()
    dropout: float = 0.0
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    recompute: Recompute = "none"
    tokens: int = 2048
    rows: int = 2048
    packs: int = 1
    longest: int | None = None
    device: Literal["gpu", "cpu"] = "gpu"
    embedding_on: Literal["device", "host"] = "device"
    head: Literal["compute", "int8"] = "compute"
    offload: Literal["none", "inputs", "attention"] = "none"
    mlp_tile: int | Literal["auto"] = 0
    qat: bool = False
    plain: bool = True
    resident_layers: int | None = None
    extra: int = 0

    @property
    def quantised(self) -> bool:
        """Whether frozen weights become dense only while they are multiplied."""
        return self.base not in DENSE

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return WIDTH[self.compute]

    def recomputed(self, number: int) -> Literal["none", "attention", "mlp", "layer"]:
        """What of a layer is computed a second time."""
        if isinstance(self.recompute, tuple):
            return "layer" if number in self.recompute else "none"
        if isinstance(self.recompute, int):
            return "layer" if number % self.recompute == 0 else "none"
        return "none" if self.recompute == "auto" else self.recompute


def dials_of(
    base: str,
    compute: str,
    lora: Lora,
    train: TrainSettings,
    device: Literal["gpu", "cpu"] = "gpu",
    base_head: str = "auto",
    new_tokens: int = 0,
) -> Dials:
    """The dials as a recipe sets them; every token of a micro-batch is taken for supervised, which is the most.

    Args:
        base: ``fp32``, ``bf16``, ``fp16``, ``nf4`` or the blocks of a GGUF.
        compute: dtype of the products, the same for a base that is not quantised.
        lora: read for ``r``, ``dropout`` and ``modules_to_save`` (its ``target_modules`` are taken for all linear layers: an
            upper bound).
        train: read for the optimizer, the tokens and all of its dials.
        base_head: as in a recipe.
        new_tokens: how many ``chat.new_tokens`` names.
    """
    tokens = min(train.max_length, train.tokens_per_step)
    return Dials(
        base=base,
        compute=compute,
        r=lora.r,
        new_tokens=new_tokens,
        tables=tables_of(lora.modules_to_save),
        dropout=lora.dropout,
        optimizer=train.optimizer,
        recompute=train.recompute,
        tokens=tokens,
        rows=tokens,
        packs=-(-train.tokens_per_step // train.max_length),
        device=device,
        embedding_on=train.embedding_on,
        head="int8" if base_head == "int8" else "compute",
        offload=train.offload,
        mlp_tile=train.mlp_tile,
        qat=train.qat,
        plain=not lora.use_dora,
        resident_layers=None if train.resident_layers == "all" else train.resident_layers,
    )
