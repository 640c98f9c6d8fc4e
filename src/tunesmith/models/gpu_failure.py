"""What a GPU says when it cannot go on, told as what it is: with its numbers, and the next thing to try.

PyTorch raises ``OutOfMemoryError`` where memory ends and ``AcceleratorError`` where a kernel failed; cuBLAS and older paths
raise a plain ``RuntimeError`` that begins with their name. All of them say something about the machine or a kernel and nothing
about the model's type, so no check may take them for "this model is not supported".

Triton's errors share no class with those: a kernel of ours that its compiler or the assembler refuses, or that asks for more
shared memory than the card has. They are about the card and the versions that meet there, and are told with the kernel's name,
which only their traceback knows.

A kernel's failure is noticed later than it happens, at the next read; the line that a traceback names is often innocent. Only
a run that waits for every launch (``CUDA_LAUNCH_BLOCKING=1``) names the right one.

Refused: going on with a smaller batch by itself, which would change what a run is without a word. (What may be turned without
changing it is turned once, aloud: ``pipeline/replan.py``.)
"""

import re

import torch

from tunesmith.formatting import parse_amount
from tunesmith.models.recompute import Policy

ASKED = re.compile(r"Tried to allocate ([\d.]+ \w+)")
FREE = re.compile(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free")
HELD = re.compile(r"([\d.]+ \w+) is allocated by PyTorch(?:[^,]*), and ([\d.]+ \w+) is reserved")
LIBRARIES = ("CUDA", "cuBLAS", "cuDNN", "CUBLAS", "CUDNN")
KERNELS = "tunesmith.kernels.triton."
OTHER_TRITON = (
    "python -m pip install --force-reinstall torch brings the Triton that belongs to this PyTorch; CUDA_VISIBLE_DEVICES= "
    "before the same command computes on the CPU. Please report the kernel's name with the card's"
)
BLOCKING = "give the same command again with CUDA_LAUNCH_BLOCKING=1 before it: the last line of its traceback is the place"


def is_gpu_failure(error: BaseException) -> bool:
    """Whether an error is about the GPU's memory, a launch or a library of it, and not about what was computed."""
    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError):
        return True
    return is_of_triton(error) or (isinstance(error, RuntimeError) and str(error).startswith(LIBRARIES))


def is_of_triton(error: BaseException) -> bool:
    """Whether Triton could not compile or start a kernel; by its class's name, since not every machine has Triton."""
    return any(kind.__module__.partition(".")[0] == "triton" for kind in type(error).__mro__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's memory was what was missing."""
    return isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error)


def asked_bytes(error: BaseException) -> int:
    """Bytes that the allocator was asked for when memory ended; 0 where the error does not say."""
    asked = ASKED.search(" ".join(str(error).split()))
    return 0 if asked is None else parse_amount(asked[1])


def words_of(error: BaseException) -> str:
    """What happened, in one sentence; of memory with what was asked for, free, held by tensors and reserved."""
    text = " ".join(str(error).split())
    if is_of_triton(error):
        what = "does not fit this GPU" if type(error).__name__ == "OutOfResources" else "cannot be compiled for this GPU"
        last = str(error).strip().rpartition("\n")[2] if text else type(error).__name__
        return f"the kernel {_kernel(error)} {what}: {last:.300}"
    if not is_out_of_memory(error):
        return f"the GPU failed: {text.partition(' For debugging')[0]:.300}"
    asked, free, held = ASKED.search(text), FREE.search(text), HELD.search(text)
    if asked is None:
        return f"the GPU's memory is full: {text:.300}"
    figures = f"the GPU's memory is full: {asked[1]} were asked for"
    if free is not None:
        figures += f", {free[2]} of {free[1]} are free"
    if held is not None:
        figures += f"; tensors hold {held[1]}, and {held[2]} more are reserved"
    return figures


def _kernel(error: BaseException) -> str:
    """The innermost function of ours on the way to a launch."""
    name, trace = "of a layer", error.__traceback__
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        if module.startswith(KERNELS):
            name = f"{module.removeprefix(KERNELS)}.{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    return name


def next_try(error: BaseException, in_training: bool, recompute: Policy, base: str, max_length: int, batch_size: int) -> str:
    """What to do next.

    Args:
        in_training: whether it was training that failed, or something that answers and scores.
        recompute, base, max_length: of the recipe.
        batch_size: of its evaluation.
    """
    if is_of_triton(error):
        return OTHER_TRITON
    if not is_out_of_memory(error):
        return BLOCKING
    steps: list[str] = []
    if in_training and recompute != "layer":
        steps.append("train.recompute: layer")
    if not in_training and batch_size > 1:
        steps.append(f"evaluate.batch_size: {batch_size // 2}")
    if base != "nf4":
        steps.append("base: nf4")
    if in_training:
        steps.append(f"train.max_length: {max_length // 2}, where rows are short enough")
    steps.append("a smaller model")
    return f"try in this order: {'; '.join(steps)}. nvidia-smi shows what other programs hold"
