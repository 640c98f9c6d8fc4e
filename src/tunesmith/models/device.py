"""Where a model computes: on the first CUDA GPU if there is one, else on the CPU.

No switch in the recipe: a recipe says what is trained, and the machine where. Whoever wants another GPU hides the others
(``CUDA_VISIBLE_DEVICES``), whoever wants the CPU hides all. Facts of the machine that need no torch are in
``tunesmith/hardware.py``.

cuBLAS may cut a long sum of a bf16 or fp16 product into parts and add those in bf16 or fp16. Then nothing is rounded once,
and a fresh adapter's updates are what is lost (``layers/lora.py``). So the process that is told to compute on a GPU adds in
fp32 from then on: PyTorch has a switch for all products, not for one.
"""

import torch

from tunesmith import hardware
from tunesmith.launch.variables import launch
from tunesmith.rundir.records.training import GpuUse

ROOM = 1.5  # of a dense model's bytes: weights, activations of one pack and what the loader holds on the way


def best_device() -> torch.device:
    """The GPU of this process where PyTorch can use one, whose products add up in fp32 from then on; else ``cpu``.

    It is the first, and of several processes that were launched together that of its local rank.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    launched = launch()
    return torch.device("cuda", 0 if launched is None else launched.local_rank)


def device_name(device: torch.device) -> str:
    """For people: the GPU's product name, or ``the CPU``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def device_memory(device: torch.device) -> int:
    """Bytes that a GPU has in all."""
    return torch.cuda.get_device_properties(device).total_memory


def usable_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process has or may still take."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def context_bytes(device: torch.device) -> int:
    """What a GPU lacks beside what PyTorch holds: this process's context and modules, and what other programs have there.

    It depends on the card, the driver and what is loaded, so it is read behind the first kernel and no table has it.
    """
    free, total = torch.cuda.mem_get_info(device)
    return max(0, total - free - torch.cuda.memory_reserved(device))


def reserved_bytes(device: torch.device) -> int:
    """Bytes of a GPU that PyTorch's allocator holds."""
    return torch.cuda.memory_reserved(device)


def give_back(device: torch.device) -> None:
    """Give back what the allocator holds and no tensor uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def watch_gpu(device: torch.device) -> None:
    """Begin the peak of ``gpu_use`` anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def gpu_use(device: torch.device) -> GpuUse | None:
    """The GPU and the most that this process held there since ``watch_gpu``; None for a CPU."""
    if device.type != "cuda":
        return None
    return GpuUse(
        name=torch.cuda.get_device_name(device),
        driver=hardware.gpu_driver(),
        capability=".".join(map(str, torch.cuda.get_device_capability(device))),
        total_bytes=device_memory(device),
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        peak_allocated=torch.cuda.max_memory_allocated(device),
        peak_reserved=torch.cuda.max_memory_reserved(device),
    )


def device_with_room(nbytes: int) -> torch.device | None:
    """Where a dense model of so many bytes can compute: the GPU, the CPU, or nowhere (None)."""
    device = best_device()
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] >= ROOM * nbytes:
        return device
    memory = hardware.describe().memory_bytes
    return torch.device("cpu") if memory >= ROOM * nbytes else None
