"""A frozen weight that is held in NF4 and is dense only while it is multiplied (``layers/quantized.py``).

**bitsandbytes' names.** The state dict of a layer equals that of ``bitsandbytes.nn.Linear4bit``, byte for byte: ``weight``,
``weight.absmax``, ``weight.nested_absmax``, ``weight.quant_map``, ``weight.nested_quant_map`` and, as JSON in a tensor,
``weight.quant_state.bitsandbytes__nf4``. What we save, transformers loads, and the other way round.

Shape suffixes: T tokens, O out_features, I in_features, E experts, V vocabulary, D hidden size (width of a table).
"""

import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import ModelError
from tunesmith.kernels.nf4 import (
    BLOCK,
    NESTED,
    NF4,
    dequantize_nf4,
    dequantize_nf4_rows,
    nf4_part,
    quantize_nf4,
    values,
)
from tunesmith.layers.dense_buffer import DENSE
from tunesmith.memory.streamed_weight import StreamedWeight

QUANT_STATE = "quant_state.bitsandbytes__nf4"


class NF4Weight(nn.Module):
    """A frozen weight in NF4, of a linear layer (O, I) or of the experts of a mixture (E, O, I), blocks over the flat run.

    Args:
        q: its parts, which become buffers; or where they are, for a weight that is streamed (``memory/stream.py``).
        dtype: of the weight before it was quantised; written into the state dict.

    Attributes:
        streamed: where its bytes are; None where they are here.
    """

    packed: Tensor
    absmax: Tensor
    nested_absmax: Tensor
    nested_map: Tensor

    def __init__(self, q: NF4 | StreamedWeight, dtype: torch.dtype):
        super().__init__()
        self.streamed = q if isinstance(q, StreamedWeight) else None
        if isinstance(q, NF4):
            self.register_buffer("packed", q.packed)
            self.register_buffer("absmax", q.absmax)
            self.register_buffer("nested_absmax", q.nested_absmax)
            self.register_buffer("nested_map", q.nested_map)
        self._mean = 0.0 if isinstance(q, StreamedWeight) else q.offset
        self.shape = torch.Size(q.place.shape if isinstance(q, StreamedWeight) else q.shape)
        self.dtype = dtype

    @classmethod
    def from_state(cls, name: str, state: dict[str, Tensor]) -> "NF4Weight":
        """A weight from the tensors of a bitsandbytes checkpoint.

        Args:
            name: full name of the weight, for messages.
            state: its tensors by what follows the name: ``""`` (the packed codes), ``absmax``, ``quant_map``, ...

        Raises:
            ModelError: a part is missing or of the wrong size, or the format is another one.
        """
        parts = ("", "absmax", "nested_absmax", "nested_quant_map", "quant_map", QUANT_STATE)
        lacking = [part for part in parts if part not in state]
        if lacking:
            raise ModelError(
                f"{name}: {lacking[0] or 'the packed weight'} is not in the checkpoint",
                "NF4 with double quantisation is read (bnb_4bit_use_double_quant); or quantise the original model",
            )
        facts = json.loads(bytes(state[QUANT_STATE].tolist()))
        kind = (facts["quant_type"], facts["blocksize"], facts["nested_blocksize"])
        if kind != ("nf4", BLOCK, NESTED) or not torch.equal(state["quant_map"].cpu(), values(torch.device("cpu"))):
            raise ModelError(f"{name}: 4-bit format {kind}, expected ('nf4', {BLOCK}, {NESTED})", "quantise the original model")
        shape = tuple(facts["shape"])
        packed, absmax = state[""].view(torch.uint8).view(-1), state["absmax"]
        q = NF4(packed, absmax, state["nested_absmax"], state["nested_quant_map"], facts["nested_offset"], shape)
        count = q.numel()
        expected = (-(-count // 2), -(-count // BLOCK), -(-count // (BLOCK * NESTED)), 256)
        sizes = (len(packed), len(absmax), len(q.nested_absmax), len(q.nested_map))
        if sizes != expected:
            raise ModelError(f"{name}: parts of {sizes} elements, expected {expected} for {shape}", "get the checkpoint again")
        return cls(q, dtype_of(name, facts["dtype"]))

    @property
    def q(self) -> NF4:
        """The parts, for the kernels; of a streamed weight valid until one of another layer is asked for."""
        if self.streamed is not None:
            return self.streamed.parts()
        return NF4(self.packed, self.absmax, self.nested_absmax, self.nested_map, self._mean, tuple(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of its parts; the map of the absmax codes, which weights share, is not counted."""
        return self.q.nbytes if self.streamed is None else sum(self.streamed.place.sizes)

    @property
    def device(self) -> torch.device:
        """Where it is computed with."""
        return self.packed.device if self.streamed is None else self.streamed.layers.device

    def numel(self) -> int:
        """Number of weights."""
        return self.shape.numel()

    def dense(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The dense weight in the process-wide buffer: valid until the next call on any weight, never to be kept.

        Args:
            dtype: of the result.
            out: where to write instead, of the weight's shape; rows may lie apart, all at one distance.
        """
        with torch.no_grad():
            if out is None:
                out = DENSE.first(self.device, dtype, self.numel()).view(self.shape)
            return dequantize_nf4(self.q, dtype, out)

    def expert(self, number: int, dtype: torch.dtype) -> Tensor:
        """One matrix of a weight of three dimensions, dense, without the others.

        Args:
            number: which, along the first dimension.
            dtype: of the result.

        Returns:
            Shape (O, I), contiguous, in the process-wide buffer: valid until the next call on any weight.
        """
        assert len(self.shape) == 3, f"a weight of shape {tuple(self.shape)} has no experts"
        size = self.shape[1] * self.shape[2]
        part, place = nf4_part(self.q, number * size, (number + 1) * size)
        with torch.no_grad():
            run = dequantize_nf4(part, dtype, DENSE.first(self.device, dtype, part.numel()))
        return run[place:].view(self.shape[1:])

    def _apply(self, fn: Any, recurse: bool = True) -> "NF4Weight":
        """Follow a move to another device, not a change of dtype: the statistics are fp32 whatever the model is."""
        if self.streamed is not None:
            return self  # there is nothing here to move
        before = {name: self._buffers[name] for name in ("nested_absmax", "nested_map")}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            assert tensor is not None
            self._buffers[name] = tensor.to(self.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        q = self.q
        if self.streamed is not None:  # the next layer comes where this one lies
            q = replace(q, packed=q.packed.clone(), absmax=q.absmax.clone(), nested_absmax=q.nested_absmax.clone())
        facts = {
            "quant_type": "nf4",
            "blocksize": BLOCK,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(self.shape),
            "nested_blocksize": NESTED,
            "nested_dtype": "float32",
            "nested_offset": q.offset,
        }
        destination[prefix.removesuffix(".")] = q.packed.view(-1, 1)
        destination[prefix + "absmax"] = q.absmax
        destination[prefix + "quant_map"] = values(self.device).clone()
        destination[prefix + "nested_absmax"] = q.nested_absmax
        destination[prefix + "nested_quant_map"] = q.nested_map.clone()  # safetensors refuses shared memory
        destination[prefix + QUANT_STATE] = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        error_msgs.append(
            f"{prefix.removesuffix('.')} is quantised and frozen; models/nf4_load.py reads it, not load_state_dict"
        )


class NF4Embedding(nn.Module):
    """A frozen table in NF4, of which only the rows that are asked for become dense.

    Every row has blocks of its own: a width that is no multiple of 64 is filled up with zeros.

    Args:
        table_VD: dense table, fp32, fp16 or bf16, which is not kept; its dtype is that of the output.

    Raises:
        ModelError: the table holds NaN or infinity.
    """

    def __init__(self, table_VD: Tensor):
        super().__init__()
        self.num_embeddings, self.embedding_dim = table_VD.shape
        missing = -self.embedding_dim % BLOCK
        padded = nn.functional.pad(table_VD.detach(), (0, missing)) if missing else table_VD.detach()
        self.weight = NF4Weight(quantize_nf4(padded), table_VD.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 of shape (...) to (..., D)."""
        rows_TD = dequantize_nf4_rows(self.weight.q, ids.reshape(-1), self.weight.dtype)
        return rows_TD[:, : self.embedding_dim].reshape(*ids.shape, self.embedding_dim)


def dtype_of(name: str, text: str) -> torch.dtype:
    """A dtype by the name that a weight's facts have for it.

    Args:
        name: of the weight.

    Raises:
        ModelError: none of those that are quantised.
    """
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if text not in known:
        raise ModelError(f"{name}: dtype {text!r} in its quant_state", f"expected one of {', '.join(known)}")
    return known[text]
