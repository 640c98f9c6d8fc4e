"""Make one model instance compute in fp16 without overflow: large weights in fp16, everything that flows in fp32.

A model that was loaded in float16 would compute all of it in float16, and end at 65,504. Here its embeddings put fp32 into the
residual stream, and then every stock operation computes in fp32, because it follows its input; norms, biases, scales and other
small tensors are made fp32. What stays in fp16 are tables and the weights of linear layers, and each product with such a weight
scales its input row by row (``kernels/fp16_scaled_mm.py``): the layers are swapped for ``HalfLinear`` and
``HalfQuantizedLinear`` here, and adapters that are put on them later do the same (``layers/lora.py``). Experts in NF4 become
dense in fp16 too.

A parameter that belongs to no linear layer and no table (a router's matrix, the experts of a mixture in 16 bits) is read by
stock code that multiplies it as it is, so it becomes fp32; what that costs is printed. Ties are kept, except where an
embedding's class is not known: it becomes fp32 and its head does not.

Refused: ``torch.autocast``, which casts activations to fp16 unscaled; and forward hooks that cast, which would round the
residual stream and hide in a list.

Cost: the activations of fp32, twice those of fp16. Embedded rows are cast as they are read.

Source of the hazard: any model whose feed-forward product passes 65,504; see ``Family.half_hazard``.
"""

import logging

import torch
from rich.filesize import decimal
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.layers.embedding import FrozenEmbedding, HostEmbedding
from tunesmith.layers.experts import NF4Experts
from tunesmith.layers.half import HalfLinear, HalfQuantizedLinear
from tunesmith.layers.int8 import Int8Table
from tunesmith.layers.nf4 import NF4Embedding
from tunesmith.layers.quantized import QuantizedLinear
from tunesmith.models.swap import put_module

logger = logging.getLogger(__name__)

HINT = "set train.compute: fp32"


class HalfEmbedding(nn.Embedding):
    """A frozen fp16 table whose rows come out in fp32, times a scale.

    Args:
        base: its weight is taken over as it is, ties included.
        scale: factor on the rows, unrounded.
    """

    def __init__(self, base: nn.Embedding, scale: float):
        super().__init__(base.num_embeddings, base.embedding_dim, base.padding_idx, device="meta")
        self.weight = base.weight.requires_grad_(False)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        """Int64 of shape (...) to (..., D), fp32."""
        return nn.functional.embedding(input, self.weight).float().mul_(self.scale)


def keep_residual_in_fp32(model: PreTrainedModel) -> None:
    """Swap what multiplies fp16 weights, and make everything else fp32. Call it after loading, before adapters are put on.

    Args:
        model: loaded with ``dtype=torch.float16``, its linear layers dense or in NF4; frozen here.

    Raises:
        ModelError: a weight is infinite or not a number in fp16.
    """
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        # The sum of all is finite if each is: 2^112 elements of 2^16 make an infinite fp32.
        if parameter.dtype == torch.float16 and not parameter.sum(dtype=torch.float32).isfinite():
            raise ModelError(f"{name}: a value beyond {torch.finfo(torch.float16).max:,.0f}, the largest of fp16", HINT)
    linears = 0
    embedding = model.get_input_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, Int8Table):
            module.in_fp16 = True
        if isinstance(module, FrozenEmbedding) and module is embedding:
            module.widens = True
        swapped = _swapped(module)
        if swapped is not None:
            put_module(model, name, swapped.train(module.training))
            linears += not isinstance(swapped, HalfEmbedding)
    widened = _widen(model)
    rest = f"activations in fp32; {decimal(widened)} of other tensors made fp32"
    logger.info(f"fp16: {linears} linear layers multiply in fp16, rows scaled; {rest}")


def _swapped(module: nn.Module) -> nn.Module | None:
    """The module that takes its place, or None."""
    if isinstance(module, QuantizedLinear) and not isinstance(module, HalfQuantizedLinear):
        return HalfQuantizedLinear(module)
    if type(module) is nn.Linear and module.weight.dtype == torch.float16:
        return HalfLinear(module)
    if isinstance(module, nn.Embedding) and not isinstance(module, HalfEmbedding) and module.weight.dtype == torch.float16:
        # Scaled word embeddings keep their factor as a number, beside a buffer that loading rounds to fp16.
        scale = 1.0 if type(module) is nn.Embedding else vars(module).get("scalar_embed_scale")
        return None if scale is None or module.max_norm is not None else HalfEmbedding(module, float(scale))
    return None


def _widen(model: nn.Module) -> int:
    """Make all other fp16 tensors fp32, and say what NF4 tables and experts come out as; the bytes of the new tensors."""
    wide: dict[int, nn.Parameter] = {}  # a parameter that two modules share stays one
    size = 0
    for module in model.modules():
        if isinstance(module, NF4Embedding):
            module.weight.dtype = torch.float32  # of the rows that come out
        if isinstance(module, NF4Experts):
            module.gate_up_proj.in_fp16 = module.down_proj.in_fp16 = True
        if isinstance(module, HalfLinear | HalfEmbedding | HostEmbedding):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dtype == torch.float16:
                if id(parameter) not in wide:
                    wide[id(parameter)] = nn.Parameter(parameter.detach().float(), requires_grad=False)
                    size += wide[id(parameter)].nbytes
                module.register_parameter(name, wide[id(parameter)])
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dtype == torch.float16:
                persistent = name not in module._non_persistent_buffers_set
                module.register_buffer(name, buffer.float(), persistent=persistent)
                size += 4 * buffer.numel()
    return size
