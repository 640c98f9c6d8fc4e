"""What the loss says of each linear layer, and what it costs to round its weight.

Change a weight by dW, and the loss changes by about half of ``sum_t (g_t^T dW x_t)^2``, the Fisher form (LeCun et al. 1989;
SqueezeLLM, Kim et al. 2023), where x is the layer's input at a token and g the gradient of its output there. Its diagonal is a
matrix, ``A_oi = sum_t g_to^2 x_ti^2``, of which the best product of two vectors with its sums by row, by column and in all is
kept: two vectors a layer, and the cost of a rounding is ``tokens * sum_oi g2_o dW_oi^2 x2_i``. Every form of every layer is
priced from one pass over the rows, and nobody has to run the model again.

**Tokens do not count alike.** The squares of x are weighted by the gradient of their token, those of g by the input of theirs.
Plain means price the input layers of a small model 14 times too high (docs/LOG.md): its first token, which holds activations a
thousand times larger than any other, is one whose output hardly anybody reads.

An embedding table is priced by the same formula: row v counts by the gradients of the tokens that read it (its ``gradient``),
column d by the squares of the gradient of what was read (its ``input``).

Refused: the error of the weight alone (it cannot know that a channel is hardly ever read), and that of the output (it cannot
know that nobody listens to the layer).

Shape suffixes: O out_features, I in_features, P some of the rows.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tunesmith.errors import RunError
from tunesmith.rundir.atomic import writing_file

PIECE = 2**22  # weights whose error is in memory at once
GRADIENT, INPUT = "gradient", "input"


class Sensitivity(NamedTuple):
    """What the loss says of one linear layer: mean squares over the tokens of the pass, each weighted by the other factor's.

    Attributes:
        gradient_O: of the gradient of the loss, which is a sum over supervised tokens, by output channel; fp32, shape (O,).
        input_I: of the input, by input channel, tokens weighted by the squares of their gradients; fp32, shape (I,).
        tokens: of the pass.
    """

    gradient_O: Tensor
    input_I: Tensor
    tokens: int


@torch.no_grad()
def rounding_cost(weight_OI: Tensor, rounded_OI: Tensor, sensitivity: Sensitivity) -> float:
    """``tokens * sum_oi g2_o dW_oi^2 x2_i``: twice the expected rise of the loss, summed over the pass.

    Args:
        weight_OI: shape (O, I), any floating dtype.
        rounded_OI: what takes its place, same shape and device.
    """
    gradient_O, input_I = (x.to(weight_OI.device) for x in (sensitivity.gradient_O, sensitivity.input_I))
    assert weight_OI.shape == rounded_OI.shape == (len(gradient_O), len(input_I)), (weight_OI.shape, rounded_OI.shape)
    step = max(1, PIECE // len(input_I))
    total = 0.0
    for first in range(0, len(gradient_O), step):
        rows = slice(first, first + step)
        error_PI = rounded_OI[rows].float() - weight_OI[rows].float()
        total += float((error_PI.square_() @ input_I).double() @ gradient_O[rows].double())
    return sensitivity.tokens * total


def save_sensitivity(path: Path, sensitivities: Mapping[str, Sensitivity]) -> None:
    """Write what was measured as one file of safetensors, whole or not at all.

    Args:
        sensitivities: by the model's name of the module, as ``model.layers.0.mlp.down_proj``.

    Raises:
        RunError: the disk is full, or the place cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, each in sensitivities.items():
        tensors[f"{name}.{GRADIENT}"] = each.gradient_O.detach().float().cpu().contiguous()
        tensors[f"{name}.{INPUT}"] = each.input_I.detach().float().cpu().contiguous()
    tokens = json.dumps({name: each.tokens for name, each in sensitivities.items()})
    with writing_file(path) as file:
        file.write(save(tensors, {"tokens": tokens}))


def load_sensitivity(path: Path) -> dict[str, Sensitivity]:
    """Read what ``save_sensitivity`` wrote, in its order.

    Raises:
        RunError: not there, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            tokens: dict[str, int] = json.loads((opened.metadata() or {})["tokens"])
            return {
                name: Sensitivity(opened.get_tensor(f"{name}.{GRADIENT}"), opened.get_tensor(f"{name}.{INPUT}"), count)
                for name, count in tokens.items()
            }
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunError(
            f"{path}: no sensitivities there: {error}", "remove it; the stage that writes it makes it again"
        ) from error
