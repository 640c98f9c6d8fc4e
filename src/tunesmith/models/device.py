"""Where a model computes: on the first CUDA GPU if there is one, else on the CPU.

No switch in the recipe: a recipe says what is trained, and the machine where. Whoever wants another GPU hides the others
(``CUDA_VISIBLE_DEVICES``), whoever wants the CPU hides all. Facts of the machine that need no torch are in
``tunesmith/hardware.py``.
"""

import torch


def best_device() -> torch.device:
    """``cuda:0`` where PyTorch can use a GPU, else ``cpu``."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """For people: the GPU's product name, or ``the CPU``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
