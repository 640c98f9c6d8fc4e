"""A base whose modules lie in different forms: NF4, Q8_0 or 16 bits each, as a budget allowed.

Three forms, because steps between them buy little: from NF4 to eight bits the squared error of a weight falls 200-fold for half
a byte, from there to sixteen nothing is left to gain but a whole byte is spent, which is worth it for a few small modules. What
stays in NF4 gets searched absmax (``kernels/nf4_search.py``), weighted by what the loss says of its channels. What the loss
says nothing of, as the experts of a mixture, is NF4 as bitsandbytes has it: a search by plain squares lowers the error of the
weights, and raised the KL to the 16-bit base (docs/LOG.md).

The same choice and the same sensitivities give the same bytes on every device, so whoever loads the base again, to train on, to
ask or to merge, holds what the training held; nothing quantised is stored.

Shape suffixes: O out_features, I in_features.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tunesmith.bits.sensitivity import Sensitivity
from tunesmith.kernels.blocks import Blocks, row_bytes
from tunesmith.kernels.blocks_quantize import BF16, Q8_0, WEIGHTS, quantize_blocks
from tunesmith.kernels.nf4 import BLOCK, NESTED, NF4, quantize_nf4_parts
from tunesmith.kernels.nf4_search import importance_of, searched

NF4_FORM = "nf4"
FORMS = (NF4_FORM, Q8_0, BF16)


class MixedBase(NamedTuple):
    """What each module of a base is kept in.

    Attributes:
        forms: by full name of the module, one of ``FORMS``; what is not named is in NF4.
        sensitivity: by full name; the scales of a module without one are not searched.
    """

    forms: Mapping[str, str]
    sensitivity: Mapping[str, Sensitivity]

    def quantize(self, module: str, parts: Iterable[Tensor], shape: Sequence[int], device: torch.device | str) -> NF4 | Blocks:
        """A weight in the form of its module.

        Args:
            module: its full name; of a stack of experts the name of the weight.
            parts: runs of the flat weight on ``device``, one after another.
            shape: of the whole.
            device: where the result lies.

        Raises:
            ModelError: a part holds NaN or infinity.
        """
        form = self.forms.get(module, NF4_FORM)
        if form != NF4_FORM:
            rows, columns = shape
            return quantize_blocks(parts, form, (rows, columns), device)
        known = self.sensitivity.get(module)
        encode = None if known is None else searched(importance_of(known.gradient_O, known.input_I, device))
        return quantize_nf4_parts(parts, shape, device, encode)


def forms_of(shape: Sequence[int]) -> tuple[str, ...]:
    """The forms that a weight can take: rows that are no multiple of 32 have no blocks."""
    return FORMS if shape[-1] % WEIGHTS == 0 else (NF4_FORM, BF16)


def form_bytes(form: str, shape: tuple[int, int]) -> int:
    """Bytes of a weight in a form."""
    if form != NF4_FORM:
        return shape[0] * row_bytes(form, shape[1])
    count = shape[0] * shape[1]
    return -(-count // 2) + -(-count // BLOCK) + 4 * -(-count // (BLOCK * NESTED))
