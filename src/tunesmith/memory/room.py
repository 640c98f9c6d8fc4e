"""What a training takes of a machine beside its tensors, and roughly how long: what ``advise``, ``plan`` and ``train`` ask.

On a GPU a run needs what the allocator reserves and the context that the driver keeps for a process, which differs by card and
driver and is measured once there is a process on it; until then it is taken for ``CONTEXT``. A twentieth is left over for
packs that are not like the one that was reckoned with. On a CPU the step's tensors are a part of the story: libraries, compiled
products, forked processes. Of seven runs of two processes that were held against it (135M to 1.1B parameters, docs/LOG.md) it
foretold 0.78 to 1.07. It is about one process, which is what ``models/ranks.py`` falls back to where memory is short, so a
CPU passes at 1.5 times and is refused only when the estimate itself does not fit.

Time is 4 floating-point operations a weight and token (2 forward, 2 for the gradient of the input: a frozen weight has no
gradient of its own), by a rate that was measured in a real run. It is good to a factor of two or three.

Sources of the rates: 308 tokens/s at 135M parameters on two cores (docs/LOG.md) are 83 GFLOP/s a core in bf16, 175 in fp32 are
47; an RTX 4090 at 3,083 tokens/s with 8B parameters (torchtune's README) is 99 TFLOP/s, and half of that is taken for a GPU.
"""

from tunesmith.memory.dials import BYTES, Dials
from tunesmith.memory.estimate import GRID, estimate, trained_weights
from tunesmith.memory.shape import Shape
from tunesmith.rundir.records.advice import Device

CONTEXT = 500 * 10**6  # of the driver and its modules on a card, where nobody has measured it: 0.3 to 0.6 GB
PROCESS = 700 * 10**6  # torch, transformers and a tokenizer, loaded: the peak of the render stage of the demo
KERNELS = 256 * 10**6  # products in bf16 that oneDNN compiles, 1 MB each, of which a process keeps 256 (hardware.py)
FORKED = 150 * 2**20  # of a forked process: pages that it wrote to, and what its allocator cannot use (train/distributed.py)
HEADROOM: dict[Device, float] = {"gpu": 1.05, "cpu": 1.5, "unknown": 2.5}
FLOPS_PER_CORE = 50e9
FLOPS_OF_A_GPU = 50e12


def training_bytes(shape: Shape, dials: Dials) -> int:
    """Bytes of a machine's memory that a training takes."""
    found = estimate(shape, dials)
    return found.reserved + CONTEXT if dials.device == "gpu" else resident_bytes(shape, dials)


def resident_bytes(shape: Shape, dials: Dials, ranks: int = 1) -> int:
    """Memory of all training processes together on a CPU: what they share once, and what each of them has for itself."""
    found = estimate(shape, dials)
    shared = sum(found.resident.values())
    compiled = KERNELS if dials.compute == "bf16" else 0
    slots = dials.packs * 4 * trained_weights(shape, dials) if ranks > 1 else 0
    # A dense weight has B beside it in every row (``layers/lora.py``), and who writes B comes to pages of its own. What is
    # rounded onto a grid each process has for itself, and the file of the grid lies in mapped pages beside.
    own = 0 if dials.quantised else found.resident.get("rounded weights" if dials.qat else "linear layers", 0)
    shared += int(found.resident["grids of the file"] / GRID * BYTES["gguf"]) if dials.qat else 0
    return (
        PROCESS + shared + slots + (ranks - 1) * (FORKED + own) + ranks * (found.peak - sum(found.resident.values()) + compiled)
    )


def training_hours(shape: Shape, tokens: float, epochs: int, gpu: bool, cores: int) -> float:
    """Hours of training on ``tokens`` tokens an epoch, to a factor of two or three."""
    rate = FLOPS_OF_A_GPU if gpu else FLOPS_PER_CORE * cores
    return 4.0 * shape.used * tokens * epochs / rate / 3600.0
