"""The optimizer: AdamW, in 32 or 8 bits a moment, with one learning rate for A and another for B.

AdamW (Loshchilov and Hutter 2019) keeps two moments a trained weight, 8 bytes in fp32. The 8-bit one (Dettmers et al.
2022, arXiv 2110.02861) keeps them in blocks of 256 codes with one scale a block, 2 bytes; tensors below 4,096 weights stay
in fp32. The paged one lets the driver move them to host memory when the GPU runs full. Both are bitsandbytes' own classes:
the fp32 step is torch's fused one, which for the hundreds of small tensors of an adapter takes half the time of the
default on a CPU and gives its result to rounding (a test holds it). A home-made optimizer was refused: there is nothing to
gain over these.

LoRA+ (Hayou et al. 2024, arXiv 2402.12354): B starts at zero and A does not, so that for wide layers their gradients differ
by the width, and one learning rate is wrong for one of them. Parameter groups carry ``lr_ratio``; whoever sets the
learning rate of a step sets ``rate * lr_ratio``. DoRA's magnitudes go with B, as in PEFT. Weight decay pulls A and B to
zero, which is the base model; it leaves magnitudes and the rows of new tokens alone, whose zero is no model at all. Whole
tables (``lora.modules_to_save``) it does pull, as it does where a trainer of PEFT's asks for both.

The state goes to a checkpoint and comes back to the bit: ``optimizer_state`` gives it as tensors and plain numbers, which
safetensors and JSON hold. bitsandbytes' ``load_state_dict`` would put a paged moment back as an ordinary one on the GPU,
so its tensors are made anew by the optimizer itself and filled in place.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tunesmith.errors import MissingPackage, TrainingError
from tunesmith.layers.dora import DoRALinear
from tunesmith.layers.experts import Adapted
from tunesmith.layers.new_rows import NewRows
from tunesmith.layers.whole_table import WholeTable
from tunesmith.recipe import TrainSettings

MOMENTS = ("exp_avg", "exp_avg_sq", "state1", "state2")  # of torch and of bitsandbytes: as large as what they belong to


def make_optimizer(layers: Mapping[str, Adapted], train: TrainSettings) -> torch.optim.Optimizer:
    """The recipe's optimizer over all trained tensors of the layers.

    Returns:
        An optimizer whose groups carry ``lr_ratio``: the group's learning rate is the step's times this.

    Raises:
        MissingPackage: 8-bit moments without bitsandbytes.
        TrainingError: a paged optimizer on a machine without CUDA.
    """
    adapters = [layer for layer in layers.values() if not isinstance(layer, NewRows)]
    A = [layer.lora_A for layer in adapters]
    B = [layer.lora_B for layer in adapters]
    magnitudes = [layer.lora_magnitude_vector for layer in adapters if isinstance(layer, DoRALinear)]
    tables = [layer.rows for layer in layers.values() if isinstance(layer, WholeTable)]
    rows = [layer.rows for layer in layers.values() if isinstance(layer, NewRows) and not isinstance(layer, WholeTable)]
    ratio, decay = train.loraplus_lr_ratio, train.weight_decay
    groups = [_group(A, train, 1.0, decay), _group(B, train, ratio, decay), _group(magnitudes, train, ratio, 0.0)]
    groups += [_group(rows, train, 1.0, 0.0), _group(tables, train, 1.0, decay)]
    groups = [group for group in groups if group["params"]]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.learning_rate, fused=True)
    try:
        from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
    except ImportError as error:
        raise MissingPackage(
            f"train.optimizer: {train.optimizer} needs the package bitsandbytes, which is not installed",
            "pip install 'tunesmith[bnb]', or use train.optimizer: adamw",
        ) from error
    if train.optimizer == "adamw_8bit":
        return AdamW8bit(groups, lr=train.learning_rate)
    if any(parameter.device.type != "cuda" for parameter in A):
        raise TrainingError(
            "train.optimizer: paged_adamw_8bit pages between a CUDA GPU and its host, and the adapter is not on one",
            "use train.optimizer: adamw_8bit, or adamw",
        )
    return PagedAdamW8bit(groups, lr=train.learning_rate)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, int | float]]:
    """What the optimizer carries from step to step.

    Returns:
        Tensors (on the CPU, in their own dtypes) and plain numbers, both by ``<index of the parameter>.<name>``. A tensor
        that several parameters share (the code book of 8-bit moments) is there once, under the first.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int | float] = {}
    shared: set[int] = set()
    for index, (_, _, parameter) in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                numbers[f"{index}.{name}"] = value
            elif value.data_ptr() not in shared:
                shared.add(value.data_ptr())
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
    return tensors, numbers


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, int | float]) -> None:
    """Put back what ``optimizer_state`` gave, into an optimizer made from the same recipe for the same layers."""
    states: dict[int, dict[str, Tensor | int | float]] = {}
    for key, value in (*tensors.items(), *numbers.items()):
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = value
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        return
    for index, (group, position, parameter) in enumerate(_parameters(optimizer)):
        if index not in states:
            continue
        optimizer.init_state(optimizer.param_groups[group], parameter, group, position)  # type: ignore[attr-defined]
        state = optimizer.state[parameter]
        for name, value in states[index].items():
            if isinstance(value, Tensor):
                state[name].copy_(value)
            else:
                state[name] = value


def misfit_of_state(optimizer: torch.optim.Optimizer, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why tensors of these names and shapes cannot be put into an optimizer; nothing if they can.

    Args:
        shapes: of what ``optimizer_state`` gave, by name.
    """
    parameters = [parameter for _, _, parameter in _parameters(optimizer)]
    for key, shape in shapes.items():
        index, name = key.split(".", 1)
        if int(index) >= len(parameters):
            return f"{key} belongs to parameter {index} of {len(parameters)}"
        if name in MOMENTS and shape != tuple(parameters[int(index)].shape):
            return f"{key} has shape {shape}, expected {tuple(parameters[int(index)].shape)}"
    return ""


def _group(parameters: list[nn.Parameter], train: TrainSettings, ratio: float, decay: float) -> dict:
    return {"params": parameters, "lr": train.learning_rate * ratio, "lr_ratio": ratio, "weight_decay": decay}


def _parameters(optimizer: torch.optim.Optimizer) -> list[tuple[int, int, nn.Parameter]]:
    """(group, position in the group, parameter), in the order of torch's own numbering."""
    return [
        (number, position, parameter)
        for number, group in enumerate(optimizer.param_groups)
        for position, parameter in enumerate(group["params"])
    ]
